"""``TraceAsk``: what a way of tracing is asked, and ``Traced``: what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.held_maps import HeldMaps, hold_maps
from interp.model.run import Metric
from interp.model.stacks import Stack


@dataclass(frozen=True, eq=False)
class TraceAsk:
    """What a way of tracing is asked.

    Attributes:
        method: its name, for messages.
        model: the handle.
        batch: the prompts.
        stack: whose tokens are traced.
        targets: ``[batch, k]`` columns of the stack's rows.
        metric: what is explained, where a method needs a number per prompt; None for the method's own default
            (see :func:`interp.scores.audits.answer_change.metric_or_own`).
        each_layer: whether the trace at the top of every layer is wanted besides.
        dropped: ``[batch, key]`` True at key columns that are left out of every map (``exclude_sinks``), None for none.
        seed: of what is drawn.
        progress: called with the number of forwards just finished.
    """

    method: str
    model: Model
    batch: Batch
    stack: Stack
    targets: Int[Tensor, "batch k"]
    metric: Metric | None = None
    each_layer: bool = False
    dropped: Bool[Tensor, "batch key"] | None = None
    seed: int = 0
    progress: Callable[[int], Any] | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices that have attention."""
        return tuple(layer for layer in range(self.stack.n_layers) if self.stack.n_heads(layer))

    @property
    def mask(self) -> Bool[Tensor, "batch pos"] | None:
        """Real tokens among the stack's rows, None where nothing is padded (images)."""
        return self.batch.row_mask(self.stack.name)

    @property
    def key_mask(self) -> Bool[Tensor, "batch key"] | None:
        """Real tokens among the stack's keys, None where nothing is padded (images)."""
        return self.batch.key_mask(self.stack.name)

    def hold(
        self, *, stacks: Iterable[str] | None = None, read: Iterable[At | Site] = (), grad: Metric | None = None
    ) -> HeldMaps:
        """The maps of one forward; see :func:`interp.model.held_maps.hold_maps`."""
        held = hold_maps(
            self.model,
            self.batch,
            stacks=[self.stack.name] if stacks is None else stacks,
            read=read,
            grad=grad,
            dropped=self.dropped,
        )
        self.did(1)
        return held

    def did(self, forwards: int) -> None:
        """Tell whoever waits that forwards are done."""
        if self.progress is not None:
            self.progress(forwards)

    def only_answer(self) -> None:
        """Refuse targets other than the position where the answer is read.

        Raises:
            BadInput: a method that explains a metric was asked for other rows.
        """
        if self.mask is None and self.targets.shape[1] == 1:
            return
        if self.targets.shape[1] != 1 or not torch.equal(self.targets[:, 0].cpu(), self.batch.read_at.cpu()):
            raise BadInput(
                f"{self.method} explains the answer's metric and not single rows; leave targets= out, or read the "
                "answer elsewhere with interp.encode(..., read_at=)."
            )


@dataclass(frozen=True, eq=False)
class Traced:
    """What a way of tracing found.

    Attributes:
        values: ``[batch, target, source]``; anything at padded sources (they are blanked afterwards).
        layers: ``[layer, batch, target, source]`` at the top of each layer, None where it was not asked for.
        source_stacks: whose token each source column is, where sources are not the stack's own keys: names and numbers
            of columns in order, such as ``(("encoder", 7), ("decoder", 4))``.
        metadata: what a reader should know; JSON.
    """

    values: Float[Tensor, "batch target source"]
    layers: Float[Tensor, "layer batch target source"] | None = None
    source_stacks: tuple[tuple[str, int], ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
