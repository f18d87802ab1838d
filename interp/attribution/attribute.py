"""``attribute``: a number for every head, by the name of the method."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from torch import Tensor

from interp.address import At, Head, Pos, Site
from interp.attribution.methods import METHODS, Method
from interp.attribution.request import By, Direction, Freeze, Request
from interp.errors import BadAddress, BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.names import lookup, unknown
from interp.results import HeadScores


def attribute(
    model: Model,
    batch: Batch,
    method: str = "zero",
    *,
    metric: Metric | str = logit_difference,
    source: Any = None,
    reference: Batch | None = None,
    site: Site | str = Site.Z,
    by: By | str = "head",
    stack: str | None = None,
    heads: Iterable[Head | str | Sequence[int]] | None = None,
    pos: Pos = None,
    freeze: Freeze | str = "none",
    direction: Direction | str = "denoise",
    normalise: bool = False,
    batch_size: int | None = None,
    cluster: Sequence[object] | None = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> HeadScores:
    """What every head of a stack does to a metric, per prompt, by one method.

    Args:
        model: the handle.
        batch: the prompts; with ``method="patch"`` the side that is edited.
        method: a name of ``interp.attribution.METHODS``.
        metric: ``(logits, batch) -> [batch]``, or a name of ``interp.metrics.METRICS``.
        source: the other side of a pair (patching): a ``Batch`` of the same lengths, or a ``Run`` that has read it.
        reference: the prompts that means are taken over.
        site: where heads are edited: ``Z``, and for some methods ``Q``, ``K``, ``V`` or ``PATTERN``. Key/value heads
            get the numbers at ``K`` and ``V``.
        by: ``"head"``; ``"position"`` edits one position at a time (columns of the batch; NaN at padding); ``"kv"``
            edits all query heads of a key/value head together.
        stack: whose heads; the default stack for ``None``.
        heads: only these heads (key/value heads where those get the numbers); the others are NaN.
        pos: only these positions are edited, as in :class:`interp.At`.
        freeze: what is held at the unedited run's while a head is edited: ``"other_heads"`` (the direct effect: every
            later head of the same blocks keeps its z, MLPs are computed anew), ``"patterns"`` (of later layers),
            ``"norms"`` (the scale that every norm divides by), or ``"none"``.
        direction: of patching. ``"denoise"``: ``batch`` is the corrupted side; ``"noise"``: it is the clean one.
        normalise: effects become shares of ``m(source) - m(batch)``: their mean is the ratio of the batch means, and a
            prompt whose own difference is at most 10 % of the median one is NaN and counted in the metadata.
        batch_size: rows in one forward; chosen so as to fit by default.
        cluster: one label per prompt; prompts of one label are resampled together.
        seed: of what is drawn.
        progress: called with the number of variants just finished.
        options: the method's own, such as ``std=`` for ``"noise"``.

    An effect is ``metric(edited) - metric(unedited)``, both through the same attention kernels.

    Raises:
        UnknownName: a method, metric, freeze or option that is not there.
        BadInput: what the method needs is missing, or does not fit the batch, before any forward.
        Unsupported: a site or freeze that this model cannot offer.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> interp.attribute(model, batch, "zero").values.round().tolist()
        [[-10.0, 0.0], [-10.0, 0.0]]
    """
    asked = {
        "metric": metric,
        "source": source,
        "reference": reference,
        "site": site,
        "by": by,
        "stack": stack,
        "heads": heads,
        "pos": pos,
        "freeze": freeze,
        "direction": direction,
        "normalise": normalise,
        "batch_size": batch_size,
        "cluster": cluster,
        "seed": seed,
        "progress": progress,
    }
    request = requested(model, batch, method, **asked, **options)
    module, function = METHODS[method].function.split(":")
    return getattr(importlib.import_module(module), function)(model, batch, request)


def requested(
    model: Model,
    batch: Batch,
    method: str,
    *,
    metric: Metric | str = logit_difference,
    source: Any = None,
    reference: Batch | None = None,
    site: Site | str = Site.Z,
    by: By | str = "head",
    stack: str | None = None,
    heads: Iterable[Head | str | Sequence[int]] | None = None,
    pos: Pos = None,
    freeze: Freeze | str = "none",
    direction: Direction | str = "denoise",
    normalise: bool = False,
    batch_size: int | None = None,
    cluster: Sequence[object] | None = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Request:
    """The checked request that the arguments of :func:`attribute` make.

    Raises:
        BadInput: what cannot be, before any forward.
    """
    row = lookup(method, METHODS, "attribution method")
    _check_batch(batch, model)
    place = _site(method, row, site)
    _check_words(method, row, by=by, freeze=freeze, direction=direction)
    _check_options(method, row, options)
    _check_pair(method, row, batch, source, reference, normalise)
    wanted = (
        None if heads is None else [Head.parse(head) for head in ([heads] if isinstance(heads, str | Head) else heads)]
    )
    named = {head.stack for head in wanted or () if head.stack is not None}
    found = model.stack(stack if stack is not None or len(named) != 1 else named.pop())
    return Request(
        metric=metric_for(metric, model, batch),
        source=source,
        reference=reference,
        site=place,
        by=cast(By, by),
        stack=found.name,
        heads=_heads(model, wanted, found.name, kv=by == "kv" or place in (Site.K, Site.V)),
        pos=_positions(pos, place, by),
        freeze=cast(Freeze, freeze),
        direction=cast(Direction, direction),
        normalise=normalise,
        batch_size=_positive(batch_size, "batch_size"),
        cluster=_cluster(cluster, batch),
        seed=_seed(seed),
        progress=progress,
        method=method,
        options=options,
    )


def _check_batch(batch: Any, model: Any) -> None:
    if not isinstance(model, Model):
        raise BadInput(f"attribute: the model is a {type(model).__name__}; expected what interp.load(...) returns.")
    if not isinstance(batch, Batch):
        raise BadInput(
            f"attribute: the batch is a {type(batch).__name__}; expected what interp.encode(model, ...) returns."
        )


def _site(method: str, row: Method, site: Site | str) -> Site:
    place = At(site).site
    if place is Site.Z and "z" not in row.sites:  # a head named by its output
        return Site(row.sites[0])
    if place.value not in row.sites:
        allowed = ", ".join(f"Site.{name.upper()}" for name in row.sites)
        raise BadInput(f"{method}: site={place!r}; this method works at {allowed}.")
    return place


def _check_words(method: str, row: Method, *, by: Any, freeze: Any, direction: Any) -> None:
    for word, every, allowed, kind in (
        (by, get_args(By), row.by, "by"),
        (freeze, get_args(Freeze), row.freeze, "freeze"),
    ):
        if word not in every:
            raise BadInput(unknown(word, every, kind))
        if word not in allowed:
            raise BadInput(f"{method}: {kind}={word!r} is not offered; it takes {' or '.join(map(repr, allowed))}.")
    if direction not in get_args(Direction):
        raise BadInput(unknown(direction, get_args(Direction), "direction"))
    if direction != "denoise" and row.needs != "source":
        raise BadInput(f"{method}: direction={direction!r} is for methods that patch; leave it out.")


def _check_options(method: str, row: Method, options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in row.options:
            own = "; ".join(f"{key}: {line}" for key, line in row.options.items())
            raise BadInput(
                f"{unknown(name, row.options, f'option of {method!r}')}"
                + (f" ({own}.)" if own else f" {method!r} has no options of its own.")
            )


def _check_pair(method: str, row: Method, batch: Batch, source: Any, reference: Any, normalise: Any) -> None:
    if row.needs == "source" and source is None:
        raise BadInput(f"{method}: source= is missing; give the other side of the pair, a Batch of equal lengths.")
    if row.needs != "source" and source is not None and method != "resample":
        raise BadInput(f"{method}: source= has no meaning here; it is for 'patch' and 'resample'.")
    if normalise and (row.needs != "source" or source is None):
        raise BadInput(f"{method}: normalise=True divides by m(source) - m(batch) and is for methods that patch.")
    if reference is not None:
        if method not in ("mean", "all_but_one", "shapley") and row.needs != "reference":
            raise BadInput(f"{method}: reference= has no meaning here; it is for 'mean' and 'shapley'.")
        if not isinstance(reference, Batch):
            raise BadInput(f"{method}: reference is a {type(reference).__name__}; expected a Batch.")
    if source is not None:
        paired = getattr(source, "batch", source)
        if not isinstance(paired, Batch):
            raise BadInput(f"{method}: source is a {type(source).__name__}; expected a Batch, or a Run.")
        if row.needs == "source":
            _check_lengths(method, batch, paired)


def _check_lengths(method: str, batch: Batch, source: Batch) -> None:
    if len(source) != len(batch):
        raise BadInput(
            f"{method}: the source holds {len(source)} prompts and the batch {len(batch)}; they are pairs, so give one "
            "source for each prompt."
        )
    if source.lengths != batch.lengths or source.mask.shape != batch.mask.shape:
        wrong = [
            f"{i} ({a} and {b} tokens)"
            for i, (a, b) in enumerate(zip(source.lengths, batch.lengths, strict=True))
            if a != b
        ]
        what = f"prompts {', '.join(wrong[:5])}" if wrong else f"widths {source.width} and {batch.width}"
        raise BadInput(
            f"{method}: source and batch have unequal lengths ({what}); a pair is aligned position by position."
        )


def _heads(model: Model, heads: Sequence[Head] | None, stack: str, *, kv: bool) -> tuple[Head, ...] | None:
    """The heads asked for, which must be there and on ``stack``; without a stack of their own they are taken to be.

    Raises:
        BadAddress: a head of another stack, or one that the model does not have.
    """
    if heads is None:
        return None
    if not heads:
        raise BadInput("heads=[] names no head; leave it out for all.")
    found = model.stack(stack)
    for head in heads:
        if head.stack not in (None, stack):
            raise BadAddress(f"{head} is not on stack {stack!r}; one call takes the heads of one stack.")
        found.layers_of(At(Site.K if kv else Site.Z, head.layer, heads=(head.index,)))
    return tuple(dict.fromkeys(Head(head.layer, head.index, stack) for head in heads))


def _positions(pos: Pos, site: Site, by: str) -> Pos:
    if pos is not None and by == "position":
        raise BadInput("by='position' edits every position in its turn; leave pos= out.")
    checked = At(site, pos=pos).pos
    return checked.sort(-1).values if isinstance(checked, Tensor) else checked


def _positive(value: Any, name: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BadInput(f"{name}={value!r}: expected an int of at least 1.")
    return value


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput(f"seed={value!r}: expected an int of at least 0.")
    return value


def _cluster(cluster: Any, batch: Batch) -> Sequence[object] | None:
    if cluster is not None and len(cluster) != len(batch):
        raise BadInput(f"cluster: {len(cluster)} labels for {len(batch)} prompts; give one label per prompt.")
    return cluster
