"""Metrics by their names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from interp.errors import BadInput
from interp.metrics.catalogue import METRICS
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import output_embeddings
from interp.model.run import run
from interp.names import lookup

Metric = Callable[[Tensor, Batch], Tensor]


def metric_named(name: str) -> Metric:
    """The metric called ``name`` in ``METRICS``: ``(logits, batch) -> [batch]``, with ``.sense`` and ``.positions``.

    Raises:
        UnknownName: with near matches and the full list.
        BadInput: ``"kl"``, which is measured from a clean run; see ``metric_for``.

    Example:
        >>> metric_named("loss").sense
        -1
    """
    entry = lookup(name, METRICS, "metric")
    if entry.needs == "clean run":
        raise BadInput(
            f"metric {name!r} is measured from a clean run: use interp.kl_divergence(interp.run(model, batch)), or "
            f"give metric={name!r} to a function that has the model."
        )
    return _function(entry.function)


def metric_for(metric: Metric | str, model: Model, batch: Batch) -> Metric:
    """The metric to use on ``batch``: a callable as it is, a name from ``METRICS``, ``"kl"`` from an unedited run.

    Args:
        metric: a callable ``(logits, batch) -> [batch]``, or a name.
        model, batch: what ``"kl"`` runs unedited.

    Raises:
        UnknownName: with near matches and the full list.
        BadInput: neither a name nor callable.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> metric_for("kl", model, batch).positions
        'answers'
    """
    if isinstance(metric, str):
        entry = lookup(metric, METRICS, "metric")
        made = _function(entry.function)
        if entry.needs != "clean run":
            return made
        return made(run(model, batch, logits="answers" if output_embeddings(model) is not None else "all"))
    if not callable(metric):
        raise BadInput(f"metric={metric!r}: expected a metric (logits, batch) -> [batch], or the name of one.")
    return metric


def _function(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)
