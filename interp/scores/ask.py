"""``Ask``: what a score is asked, and ``Measured``: what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.edits.groups import Group, columns_of
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.row_blocks import Watcher
from interp.model.stacks import Stack
from interp.model.streaming import stream


@dataclass(frozen=True, eq=False)
class Ask:
    """What a score is asked.

    Attributes:
        name: the score, for messages.
        model: the handle.
        batch: the prompts that are scored (those the score draws, where it brings its own).
        stack: whose heads.
        dropped: ``[batch, key]`` True at key columns that ``exclude_sinks`` leaves out, None for none. Blocks come
            without them already.
        seed: of what is drawn.
        block: entries of one block of maps (rows x keys x heads x prompts), None for the default.
        progress: called with the number of forwards just finished.
    """

    name: str
    model: Model
    batch: Batch
    stack: Stack
    dropped: Bool[Tensor, "batch key"] | None = None
    seed: int = 0
    block: int | None = None
    progress: Callable[[int], Any] | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices that have attention."""
        return tuple(layer for layer in range(self.stack.n_layers) if self.stack.n_heads(layer))

    @property
    def mask(self) -> Bool[Tensor, "batch pos"] | None:
        """Real tokens among the stack's rows, None where nothing is padded or known (images)."""
        return self.batch.row_mask(self.stack.name)

    @property
    def key_mask(self) -> Bool[Tensor, "batch key"] | None:
        """Real tokens among the stack's keys, None where nothing is padded or known (images)."""
        return self.batch.key_mask(self.stack.name)

    def columns(self, group: Group, what: str = "group") -> Bool[Tensor, "batch pos"]:
        """True at the columns that ``group`` means; see :func:`interp.edits.groups.columns_of`.

        Raises:
            BadInput: the stack's positions are not known, or no position is meant in some prompt.
            BadAddress: an unknown span or a position outside the prompt.
        """
        mask = self.mask
        if mask is None:
            raise BadInput(
                f"{self.name}: {what}={group!r} cannot be placed on stack {self.stack.name!r}, whose positions are not "
                "tokens; score stack 'text', or use a score of image grids."
            )
        member = columns_of(group, self.batch, mask.shape[1], mask.device, mask=mask) & mask
        empty = (~member.any(-1)).nonzero().flatten().tolist()
        if empty:
            raise BadInput(f"{self.name}: {what}={group!r} means no token in prompts {empty[:5]}; name at least one.")
        return member

    def stream(self, watchers: Sequence[Watcher], batch: Batch | None = None) -> None:
        """One forward of ``batch`` (the ask's own for None) that ``watchers`` see; for scores with their own passes."""
        own = batch is None
        stream(
            self.model,
            self.batch if batch is None else batch,
            watchers,
            stack=self.stack.name,
            dropped=self.dropped if own else None,
            entries=self.block,
        )
        if self.progress is not None:
            self.progress(1)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a score found.

    Attributes:
        by_layer: layer -> ``[sample, head]``, or ``[sample, head, bin]`` with ``bins``.
        bins: labels of the last axis.
        sample_axis: ``"prompt"``, ``"seed"``, or None for one number per head (then sample has length 1).
        unit: ``"query"`` heads or ``"kv"`` heads.
        metadata: what a reader of the table should know; ``"tokens"`` is the length of each prompt.
        totals: metadata that is counted over the prompts, name -> number or name -> mapping to numbers.
    """

    by_layer: Mapping[int, Tensor]
    bins: Sequence[str] | None = None
    sample_axis: str | None = "prompt"
    unit: str = "query"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def nowhere(stack: Stack, layer: int, samples: int) -> Tensor:
        """``[sample, head]`` NaN: a layer at which the score has no meaning."""
        return torch.full((samples, stack.n_heads(layer)), torch.nan)
