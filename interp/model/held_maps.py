"""``hold_maps``: the attention maps of one forward, computed afterwards a few rows at a time, in any order of layers.

One forward keeps q, k and v of every layer, so that memory grows with the length of the prompts and not with its
square; a block of rows is made of them whenever it is asked for. What a trace from the top layer down needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput, RunFailed
from interp.model.attention import AttentionCall, attached, pick_rows
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.plain_maps import PlainMaps, plain_maps
from interp.model.row_blocks import Block, block_of
from interp.model.run import Logits, Metric, Run, run
from interp.model.scopes import switched, watched
from interp.model.stacks import Stack
from interp.model.streaming import ENTRIES, FEWEST_ROWS

_Maps = tuple[Tensor, Tensor, Tensor]  # scores, pattern, visible


@dataclass(eq=False)
class HeldMaps:
    """The maps of one forward, and what it read.

    Attributes:
        model: the handle.
        batch: the prompts.
        run: the forward: logits, what was read, gradients where they were asked for.
        stacks: names of the stacks whose maps are held.
        dropped: ``[batch, key]`` True at key columns that blocks come without, None for none.
    """

    model: Model
    batch: Batch
    run: Run
    stacks: tuple[str, ...]
    dropped: Bool[Tensor, "batch key"] | None
    _taps: Mapping[tuple[str, int], _Holding] = field(repr=False)

    def stack(self, name: str | None = None) -> Stack:
        """One of the stacks, the first for None.

        Raises:
            BadInput: its maps are not held.
        """
        wanted = self.stacks[0] if name is None else name
        if wanted not in self.stacks:
            raise BadInput(f"The maps of stack {wanted!r} are not held, only those of {', '.join(self.stacks)}.")
        return self.model.stack(wanted)

    def layers(self, stack: str | None = None) -> tuple[int, ...]:
        """Block indices that have attention, from the first on."""
        found = self.stack(stack)
        return tuple(layer for layer in range(found.n_layers) if found.n_heads(layer))

    def shape(self, layer: int, stack: str | None = None) -> tuple[int, int, int, int]:
        """``(batch, head, query, key)`` of a layer's whole map."""
        return self._taps[self.stack(stack).name, layer].shape

    def value(self, layer: int, stack: str | None = None) -> Float[Tensor, "batch kv_head key d_head"] | None:
        """The value vectors that the layer's map weighs, None where the attention computes its map out of reach."""
        call = self._taps[self.stack(stack).name, layer].call
        return None if call is None else call.value

    def blocks(
        self,
        layer: int,
        *,
        rows: Int[Tensor, "batch row"] | None = None,
        stack: str | None = None,
        logits: bool = False,
        entries: int | None = None,
    ) -> Iterator[Block]:
        """The maps of a layer, some rows at a time, from the first row on.

        Args:
            layer: block index.
            rows: the only rows wanted, as columns; all for None.
            stack: whose map; the first of those held for None.
            logits: whether blocks carry the scores.
            entries: of one block (prompts x heads x rows x keys).
        """
        place = self.stack(stack)
        tap = self._taps[place.name, layer]
        count, heads, length, n_keys = tap.shape
        wanted = torch.arange(length).expand(count, -1) if rows is None else rows
        per_row = count * heads * n_keys
        step = max(1, entries // per_row) if entries is not None else max(FEWEST_ROWS, ENTRIES // per_row)
        mask = self.batch.row_mask(place.name)
        kept = None if self.dropped is None else ~self.dropped
        for some in wanted.split(step, dim=1) if wanted.shape[1] else ():
            with torch.no_grad():
                maps = tap.maps(some)
            yield block_of(place, layer, some, maps, mask=mask, kept=kept, logits=logits, seen={})

    def whole(self, layer: int, stack: str | None = None) -> Float[Tensor, "batch head query key"]:
        """A layer's maps whole, ``exclude_sinks`` applied: for short prompts."""
        shape = self.shape(layer, stack)
        parts = [
            torch.nn.functional.pad(block.pattern, (0, shape[3] - block.n_keys))
            for block in self.blocks(layer, stack=stack)
        ]
        return torch.cat(parts, dim=2)


def hold_maps(
    model: Model,
    batch: Batch,
    *,
    stacks: Iterable[str] | str | None = None,
    read: Iterable[At | Site] = (),
    grad: Metric | None = None,
    logits: Logits | None = None,
    dropped: Bool[Tensor, "batch key"] | None = None,
) -> HeldMaps:
    """The maps of one forward of ``batch``, which can be computed block by block afterwards.

    The model's own fast attention makes the output; what is kept of it are q, k and v. Families that compute their maps
    out of reach (packed towers, attention that bypasses the interface, models loaded with eager attention) have their
    whole maps kept.

    Args:
        model: the handle.
        batch: the prompts.
        stacks: whose maps, the default stack for None.
        read: addresses to record besides.
        grad: a metric whose gradient is taken at every address read; see :func:`interp.run`.
        logits: which positions are unembedded; as few as can be for None (``"all"`` with ``grad``).
        dropped: key columns that blocks come without.

    Raises:
        Unsupported: maps that a stack does not offer.
        NotFinite: NaN or infinity at a real token.
    """
    names = [stacks] if isinstance(stacks, str) else [None] if stacks is None else list(stacks)
    found = [model.stack(name) for name in names]
    for stack in found:
        stack.require(Site.PATTERN, edit=False)
    packed = [stack for stack in found if stack.family.packed]
    taps: dict[tuple[str, int], _Holding] = {}
    reads = list(read)
    if logits is None:
        logits = "all" if grad is not None else fewest_logits(model)
    with ExitStack() as guard:
        for stack in found:
            if stack in packed:
                reads += [
                    At(site, stack=stack.name, layer=i) for i in _layers(stack) for site in (Site.SCORES, Site.PATTERN)
                ]
                continue
            if stack.family.interface:
                guard.enter_context(switched(stack))
            for layer in _layers(stack):
                tap = taps[stack.name, layer] = _Holding(stack.name, layer)
                attention = stack.layer(layer).attention
                if stack.family.interface:
                    guard.enter_context(attached(attention, tap))
                else:
                    guard.enter_context(watched(attention, tap, next(attention.parameters()).dtype))
        made = run(model, batch, reads, grad=grad, logits=logits)
    for stack in packed:
        for layer in _layers(stack):
            tap = taps[stack.name, layer] = _Holding(stack.name, layer)
            scores, pattern = (made[At(site, stack=stack.name, layer=layer)] for site in (Site.SCORES, Site.PATTERN))
            tap.kept = (scores, pattern, scores > -torch.inf)
    missed = [f"{name} {layer}" for (name, layer), tap in taps.items() if tap.call is None and tap.kept is None]
    if missed:
        raise RunFailed(
            f"The attention of layers {', '.join(missed)} was never reached in this forward. Were the stack's inputs "
            "given (images, encoder ids)?"
        )
    return HeldMaps(model, batch, made, tuple(stack.name for stack in found), dropped, taps)


def _layers(stack: Stack) -> list[int]:
    return [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]


class _Holding:
    """Keeps what one attention call was given, as :class:`interp.model.attention.AttentionTap`."""

    eager = False
    on_path = False

    def __init__(self, stack: str, layer: int) -> None:
        self.stack, self.layer = stack, layer
        self.call: AttentionCall | None = None
        self.kept: _Maps | None = None
        self._plain: PlainMaps | None = None
        self._own: AttentionCall | None = None
        self._scores: Tensor | None = None
        self._shown: _Maps | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(batch, head, query, key)``."""
        if self.call is not None:
            batch, heads, length = self.call.query.shape[:3]
            return batch, heads, length, self.call.key.shape[2]
        assert self.kept is not None
        batch, heads, length, n_keys = self.kept[1].shape
        return batch, heads, length, n_keys

    def maps(self, rows: Tensor) -> _Maps:
        """Scores, pattern and what is visible, of ``rows [batch, k]``."""
        if self.call is None:
            assert self.kept is not None
            scores, pattern, visible = (pick_rows(tensor, rows) for tensor in self.kept)
            return scores, pattern, visible
        if self._own is None:
            self._plain = plain_maps(self.call)
            self._own = self.call if self._plain is not None else self.call.in_float32()
        if self._plain is not None:
            return tuple(self._plain.of(rows.to(self.call.query.device)))  # pyright: ignore[reportReturnType]
        self._own.show(self, rows.to(self.call.query.device))
        assert self._shown is not None
        shown, self._shown = self._shown, None
        return shown

    def vectors(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As they are."""
        return q, k, v

    def rows(self) -> Iterator[Tensor | None]:
        """The whole map, where the module computes it itself."""
        yield None

    def look(self, call: AttentionCall) -> None:
        """Keep the call."""
        if self.call is not None or self.kept is not None:
            raise RunFailed(
                f"The attention of layer {self.layer} of stack {self.stack!r} ran twice in one forward (a shared or "
                "recurrent block); one map cannot stand for both."
            )
        kwargs: dict[str, Any] = {
            name: value.detach() if isinstance(value, Tensor) else value for name, value in call.kwargs.items()
        }
        query, key, value = call.query.detach(), call.key.detach(), call.value.detach()
        self.call = replace(call, query=query, key=key, value=value, kwargs=kwargs)

    def scores(self, scores: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """Hold the scores until their pattern comes."""
        self._scores = scores
        return scores

    def pattern(self, pattern: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """Keep a whole map that the forward made, or hand out the rows asked for."""
        assert self._scores is not None
        made = (self._scores.detach(), pattern.detach(), visible)
        self._scores = None
        if rows is not None:
            self._shown = made
        else:
            self.kept = made
        return pattern
