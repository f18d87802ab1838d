"""``Request``: what is asked of an attribution method, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.address import Head, Pos, Site
from interp.metrics import logit_difference
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.sweep import logits_for

By = Literal["head", "position", "kv"]
Freeze = Literal["none", "other_heads", "patterns", "norms"]
Direction = Literal["denoise", "noise"]


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of an attribution method; made and checked by :func:`interp.attribute`.

    Attributes:
        metric: ``(logits, batch) -> [batch]``.
        source: the other side of a pair: a ``Batch`` of equal lengths (or a ``Run`` that has read what is needed).
        reference: the ``Batch`` that means are taken over.
        site: where heads are edited.
        by: what gets a number.
        stack: whose heads, the default stack for ``None``.
        heads: which heads (key/value heads where the unit is kv), all for ``None``.
        pos: positions that edits are restricted to, as in :class:`interp.At`.
        freeze: what is held at the unedited run's.
        direction: of patching; ``denoise`` the batch is the corrupted one, ``noise`` the clean one.
        normalise: divide by the metric's difference between source and batch.
        batch_size: rows in one forward, chosen by :func:`interp.sweep` for ``None``.
        cluster: one label per prompt; prompts of one label are resampled together.
        seed: of what is drawn.
        progress: called with the number of variants just finished.
        method: the name that it was asked by.
        options: the method's own options.
    """

    metric: Metric = logit_difference
    source: Any = None
    reference: Any = None
    site: Site = Site.Z
    by: By = "head"
    stack: str | None = None
    heads: tuple[Head, ...] | None = None
    pos: Pos = None
    freeze: Freeze = "none"
    direction: Direction = "denoise"
    normalise: bool = False
    batch_size: int | None = None
    cluster: Sequence[object] | None = None
    seed: int = 0
    progress: Callable[[int], Any] | None = None
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric_name(self) -> str:
        """The metric's name, for results and messages."""
        return getattr(self.metric, "__name__", repr(self.metric))

    def logits(self, model: Model) -> Literal["answers", "all"]:
        """Which positions are unembedded: what the metric reads, all where the model unembeds no single ones."""
        return logits_for(self.metric, model)

    @property
    def metric_sense(self) -> int:
        """+1 where a larger metric is better, -1 where a smaller one is (loss, KL, rank)."""
        return int(getattr(self.metric, "sense", 1))
