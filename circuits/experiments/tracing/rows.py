"""Traces of many prompts as pieces of work: one row of sources per prompt and method."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from jaxtyping import Float

import interp
from circuits.experiments.pieces import Pieces
from circuits.experiments.tracing.config import TracingConfig
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.errors import HeadscopeError
from interp.tensor_file import plain_json
from interp.tracing import METHODS
from interp.tracing.protocols.trace_agreement import one_target

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model
    from interp.model.run import Metric
    from interp.tracing.result import Trace


Fold = Literal["read", "mean", "max"]


class Part(Protocol):
    """Some prompts that run together."""

    @property
    def fingerprint(self) -> str:
        """Of everything that can change a number."""
        ...

    def batch(self, model: Model) -> Batch:
        """The prompts as the model takes them."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """What one method says of every prompt.

    Attributes:
        method: its name.
        values: ``[prompt, source]`` numbers of the one target; NaN at padding and at sources without a number.
        layers: ``[layer, prompt, source]`` the same at the top of each layer, where the method has that.
        about: what the method said of each part of the prompts.
        said: warnings on the way, each once.
    """

    method: str
    values: Float[np.ndarray, "prompt source"]
    layers: Float[np.ndarray, "layer prompt source"] | None = None
    about: tuple[Mapping[str, Any], ...] = ()
    said: tuple[str, ...] = ()

    @property
    def signed(self) -> bool:
        """Whether a number below 0 speaks against the answer."""
        return METHODS[self.method].signed


@dataclass(frozen=True)
class Traced:
    """The traces of all methods.

    Attributes:
        rows: method -> its traces.
        refused: method -> why this model cannot do it.
    """

    rows: Mapping[str, Rows]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Tracer:
    """What traces are made with.

    Attributes:
        model: the handle.
        parts: the prompts.
        pieces: what is finished.
        progress: told about every method.
        metric: what is explained; None for each method's own.
        stack: whose tokens; None for the default stack.
        seed: of what is drawn.
        metric_name: part of the names of the pieces.
        fold: which row of a method that has one for every token: that where the answer is read, or the mean or maximum
            over all rows (of an encoder whose answer is the mean over its tokens).
    """

    model: Model
    parts: Sequence[Part]
    pieces: Pieces
    progress: Progress
    metric: Metric | None = None
    stack: str | None = None
    seed: int = 0
    metric_name: str = ""
    fold: Fold = "read"

    def traced(self, config: TracingConfig) -> Traced:
        """The traces of every method that is asked for; a method that this model cannot do is named with its reason."""
        rows, refused = {}, {}
        for name in config.asked:
            try:
                rows[name] = self.rows(name, config.options.get(name, {}))
            except HeadscopeError as error:
                refused[name] = " ".join(str(error).split())
        width = rows[config.references[0]].values.shape[1] if config.references[0] in rows else None
        for name in [name for name, own in rows.items() if width is not None and own.values.shape[1] != width]:
            refused[name] = (
                f"its {rows.pop(name).values.shape[1]} sources are not the {width} of {config.references[0]!r}."
            )
        return Traced(rows, refused)

    def rows(self, method: str, options: Mapping[str, Any] | None = None) -> Rows:
        """The traces of one method.

        Raises:
            HeadscopeError: the model cannot do it.
        """
        chosen = dict(options or {})
        found = []
        with self.progress.stage(f"Trace, {method}", len(self.parts)) as done:
            for part in self.parts:
                made_of = fingerprint_of(part.fingerprint, self.metric_name, self.stack, self.fold, chosen)
                compute = _Compute(self, method, part, chosen)
                found.append(self.pieces.arrays(f"trace/{method}", made_of, compute))
                done()
        return _joined(method, found)


@dataclass(frozen=True)
class _Compute:
    tracer: Tracer
    method: str
    part: Part
    options: Mapping[str, Any]

    def __call__(self) -> Arrays:
        fold = self.tracer.fold if METHODS[self.method].targets == "rows" else "read"
        more = {} if fold == "read" else {"targets": "all"}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trace = traced_batch(self.tracer, self.method, self.part.batch(self.tracer.model), self.options, **more)
        said = list(dict.fromkeys(str(one.message) for one in told))
        target = -1 if fold == "read" else fold
        arrays = {
            "values": one_target(self.method, trace.values, target),
            "about": _text(plain_json(dict(trace.metadata))),
            "said": _text(said),
        }
        if trace.layers is None:
            return arrays
        return {**arrays, "layers": np.stack([one_target(self.method, layer, target) for layer in trace.layers])}


def traced_batch(tracer: Tracer, method: str, batch: Batch, options: Mapping[str, Any], **more: Any) -> Trace:
    """The trace of a batch with what the tracer knows; ``more`` goes to :func:`interp.trace`."""
    given = {"each_layer": METHODS[method].layered, "stack": tracer.stack, "seed": tracer.seed, **more}
    return interp.trace(tracer.model, batch, method, metric=tracer.metric, **given, **options)


def _text(content: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(content, sort_keys=True).encode(), dtype=np.uint8)


def _joined(method: str, found: Sequence[Arrays]) -> Rows:
    width = max(one["values"].shape[-1] for one in found)
    layers = [one["layers"] for one in found if "layers" in one]
    said = [text for one in found for text in json.loads(one["said"].tobytes())]
    return Rows(
        method,
        np.concatenate([_padded(one["values"], width) for one in found]),
        np.concatenate([_padded(one, width) for one in layers], axis=1) if layers else None,
        tuple(json.loads(one["about"].tobytes()) for one in found),
        tuple(dict.fromkeys(said)),
    )


def _padded(values: np.ndarray, width: int) -> np.ndarray:
    room = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, room, constant_values=np.nan)
