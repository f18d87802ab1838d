"""The steps of a rollout from the maps held after a forward: one stack's, or a decoder's with all that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput
from interp.model.held_maps import HeldMaps, hold_maps
from interp.tracing.ask import TraceAsk
from interp.tracing.descent import Tower
from interp.tracing.fusion import Heads, fusion_of
from interp.tracing.given_maps import ROUNDED
from interp.tracing.rollout import part_of, shares_of
from interp.tracing.stages import Mixing, Rows, Stage
from interp.tracing.transitions import Missing, check_options

MEASURED = "measured"


@dataclass(frozen=True, eq=False)
class HeldTower:
    """The steps of a traced stack, and what made them.

    Attributes:
        tower: the steps.
        held: the maps.
        metadata: shares and rules that were used; JSON.
    """

    tower: Tower
    held: HeldMaps
    metadata: dict[str, Any]

    @property
    def source_stacks(self) -> tuple[tuple[str, int], ...] | None:
        """Whose tokens the sources are, where they are of two stacks."""
        if not self.tower.n_encoder:
            return None
        return (("encoder", self.tower.n_encoder), (self.held.stacks[0], self.tower.n_tokens))

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device of the maps."""
        first = self.tower.stages[0]
        return next(iter(first.read(torch.zeros(1, dtype=torch.long)))).pattern.new_zeros(())


def held_tower(
    ask: TraceAsk,
    *,
    heads: Heads = "mean",
    residual: Any = 0.5,
    discard: float = 0.0,
    keep_first: bool = True,
    start: int = 0,
    missing: Missing | None = None,
    normalise: bool = True,
) -> HeldTower:
    """The steps of the stack that is asked about, from one forward.

    The decoder of an encoder-decoder comes with its cross-attention and its encoder.

    Args:
        ask: what is traced.
        heads, discard, keep_first, normalise: see :func:`interp.rollout`.
        residual: as there, or ``"measured"``; see :func:`measured_shares`.
        start: block index of the first layer of the stack that counts.
        missing: as there; None for ``"sink"``, and ``"renormalise"`` where maps were computed in 16 bits and their
            rows miss 1 by rounding alone.

    Raises:
        BadInput: the cross-attention alone, or options outside their range.
    """
    names = stacks_read(ask)
    check_options(discard=discard, missing=missing, start=start)
    if start > max(ask.layers):
        raise BadInput(f"{ask.method}: start={start}; the layers with attention are {list(ask.layers)}.")
    alone = len(names) == 1
    plans = []
    for name in names:
        stack = ask.model.stack(name)
        layers = [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]
        of_heads = part_of(heads, name, alone, "heads")
        fusion = fusion_of(of_heads, [stack.n_heads(layer) for layer in layers], layers=layers, stack=name)
        plans.append((name, layers, Mixing(fusion, discard, keep_first, missing, normalise)))
    shares = {name: part_of(residual, name, alone, "residual") for name in names}
    for name, layers, _ in plans:
        if not isinstance(shares[name], str):
            shares_of(shares[name], len(layers), _width(ask, name))
        elif shares[name] != MEASURED:
            raise BadInput(f"residual={shares[name]!r}: expected shares, or {MEASURED!r}.")
    measured = [name for name in names if isinstance(shares[name], str)]
    reads = [at for name, layers, _ in plans if name in measured for layer in layers for at in _norm_sites(name, layer)]
    held = hold_maps(ask.model, ask.batch, stacks=names, read=reads, dropped=ask.dropped if alone else None)
    ask.did(1)
    stages: dict[str, list[Stage]] = {}
    for name, layers, mixing in plans:
        own = (
            [measured_shares(held, name, layer) for layer in layers]
            if name in measured
            else shares_of(shares[name], len(layers), held.shape(layers[0], name)[2])
        )
        rounded = mixing.missing is None and _only_rounded(ask, held, name)
        stages[name] = [
            _stage(ask, held, name, layer, index, mixing, own[index], rounded=rounded)
            for index, layer in enumerate(layers)
        ]
    return HeldTower(_tower(names, stages, start, ask), held, _said(names, stages, measured, heads))


def stacks_read(ask: TraceAsk) -> list[str]:
    """The stack that is traced, and those that it reads: a decoder's cross-attention and encoder.

    Raises:
        BadInput: the cross-attention alone.
    """
    name, known = ask.stack.name, ask.model.stacks
    if ask.stack.cross:
        raise BadInput(
            f"{ask.method}: stack {name!r} is the cross-attention alone, whose rows and columns are different tokens, "
            "so that layers cannot be multiplied. Trace stack='decoder', which goes through cross-attention and "
            "encoder as well, or one layer's map with interp.trace(..., 'raw', stack='cross')."
        )
    return [name, "cross", "encoder"] if name == "decoder" and "cross" in known else [name]


def measured_shares(held: HeldMaps, stack: str, layer: int) -> Float[Tensor, "batch query"]:
    """The residual stream's share at each token of a layer, from the norms of the run: ``|x| / (|x| + |a|)``.

    ``x`` is what enters the block (for cross-attention what the self-attention left) and ``a`` what the attention adds
    to it. Ours; like the mixing ratio of Kobayashi et al. (2021), but attention of a token to itself counts as
    attention, and no norm is linearised.

    Args:
        held: with the sites read.
        stack: whose layer.
        layer: block index.
    """
    before, written = (held.run[at].float().norm(dim=-1) for at in _norm_sites(stack, layer))
    both = before + written
    return torch.where(both > 0, before / both.clamp(min=torch.finfo(both.dtype).tiny), torch.full_like(both, 0.5))


def _norm_sites(stack: str, layer: int) -> tuple[At, At]:
    before = (
        At(Site.RESID_MID, layer=layer, stack="decoder")
        if stack == "cross"
        else At(Site.RESID_PRE, layer=layer, stack=stack)
    )
    return before, At(Site.ATTN_OUT, layer=layer, stack=stack)


def _width(ask: TraceAsk, name: str) -> int:
    mask = ask.batch.row_mask(name)
    return 0 if mask is None else mask.shape[1]


def _only_rounded(ask: TraceAsk, held: HeldMaps, name: str) -> bool:
    """Whether a stack's maps came in 16 bits, and their rows miss 1 by no more than that; sink logits take more."""
    if ask.model.hf.dtype.itemsize >= torch.float32.itemsize:
        return False
    kept = [layer for layer in held.layers(name) if held.value(layer, name) is None]  # others are made in float32
    for layer in kept:
        for block in held.blocks(layer, stack=name):
            real = block.real.unsqueeze(1)
            if bool((((block.whole.sum(-1) - 1).abs() > ROUNDED) & real).any()):
                return False
    return bool(kept)


def _stage(
    ask: TraceAsk,
    held: HeldMaps,
    name: str,
    layer: int,
    index: int,
    mixing: Mixing,
    residual: float | Tensor,
    *,
    rounded: bool,
) -> Stage:
    batch = held.shape(layer, name)[0]
    own = name == ask.stack.name
    kept: Bool[Tensor, "batch key"] | None = None
    if own and ask.dropped is not None and len(held.stacks) > 1:
        kept = ~ask.dropped

    def read(columns: Int[Tensor, " row"]) -> Iterator[Rows]:
        for block in held.blocks(layer, rows=columns.expand(batch, -1), stack=name):
            whole = block if kept is None else replace(block, kept=kept.to(block.whole.device))
            yield Rows(whole.pattern, whole.rows)

    rule = mixing.missing
    if rule is None:
        rule = "renormalise" if rounded else "sink"
    keys = ask.batch.key_mask(name) if name == "cross" else None
    if own and ask.dropped is not None:
        mask = ask.key_mask
        keys = ~ask.dropped if mask is None else mask & ~ask.dropped
    return Stage(
        layer,
        index,
        held.shape(layer, name),
        read,
        replace(mixing, missing=rule),
        residual,
        cross=name == "cross",
        keys=keys,
    )


def _tower(names: Sequence[str], stages: dict[str, list[Stage]], start: int, ask: TraceAsk) -> Tower:
    own = [stage for stage in stages[names[0]] if stage.layer >= start]
    sizes = {stage.shape[2:] for stage in own}
    if len(sizes) > 1 or any(queries != keys for queries, keys in sizes):
        raise BadInput(
            f"{ask.method}: the maps of stack {names[0]!r} are of the sizes {sorted(sizes)} (query, key); layers can "
            "be multiplied only where each has as many keys as queries. Trace one layer with 'raw'."
        )
    if own[0].shape[0] != len(ask.batch):
        raise BadInput(
            f"{ask.method}: stack {names[0]!r} packs the rows of all {len(ask.batch)} prompts into one map; trace one "
            "prompt at a time, targets= as columns [1, k] of its packed rows."
        )
    if len(names) == 1:
        return Tower(own)
    crossed = {stage.layer: stage for stage in stages["cross"]}
    both = [part for stage in own for part in (stage, crossed.get(stage.layer)) if part is not None]
    return Tower(both, stages["encoder"])


def _said(
    names: Sequence[str], stages: dict[str, list[Stage]], measured: Sequence[str], heads: Heads
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "heads": heads if isinstance(heads, str) else "weights",
        "missing": sorted({str(stage.mixing.missing) for name in names for stage in stages[name]}),
    }
    if measured:
        said["measured"] = {
            name: [round(float(torch.as_tensor(stage.residual).mean()), 4) for stage in stages[name]]
            for name in measured
        }
    return said
