"""``MapSlopes``: the gradient of a metric with respect to attention maps, a few rows at a time.

A head's z is ``z_i = sum_j A_ij v_j``, and nothing else depends on its map, so that

    dm / dA_ij = <dm / dz_i, v_j>

exactly. One forward and one backward through the model's own fast attention give dm/dz; maps and their gradients are
then made of q, k, v and dm/dz in blocks of rows, in any order of layers, and no map is kept. That z is the map times
the values is checked on rows of the run itself: where a family gates or subtracts in between, or keeps its values out
of reach, that layer's whole maps are recorded with their gradients instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.handle import Model
from interp.model.held_maps import HeldMaps, hold_maps
from interp.model.linear_parts import nearness
from interp.model.row_blocks import Block
from interp.model.run import Metric, Run, kernels_of, run
from interp.model.sweep import logits_for
from interp.tracing.ask import TraceAsk

_ROWS_CHECKED = 4  # of each layer
_Place = tuple[str, int]  # stack, layer


@dataclass(frozen=True, eq=False)
class SlopeBlock:
    """A few rows of one layer's maps, with their gradients.

    Attributes:
        rows: ``[batch, row]`` columns of the rows.
        pattern: ``[batch, head, row, key]`` the maps; keys beyond the last one are 0.
        slopes: ``[batch, head, row, key]`` the metric's gradient with respect to them.
    """

    rows: Int[Tensor, "batch row"]
    pattern: Float[Tensor, "batch head row key"]
    slopes: Float[Tensor, "batch head row key"]

    @property
    def weighted(self) -> Float[Tensor, "batch head row key"]:
        """Gradient times attention."""
        return self.pattern * self.slopes


@dataclass(frozen=True, eq=False)
class MapSlopes:
    """The gradient of a metric with respect to the maps of some stacks.

    Attributes:
        held: the forward, with its maps.
        z_slopes: (stack, layer) -> ``[batch, pos, head, d_head]`` dm/dz, of layers whose z is the map times the values.
        whole: a run with the maps of all other layers, and their gradients; None where there are none.
        whole_layers: those layers.
        metric: ``[batch]`` the metric's values.
        dropped: key columns of the first stack that blocks come without.
    """

    held: HeldMaps
    z_slopes: Mapping[_Place, Float[Tensor, "batch pos head d_head"]]
    metric: Float[Tensor, " batch"]
    whole: Run | None = None
    whole_layers: tuple[_Place, ...] = ()
    dropped: Bool[Tensor, "batch key"] | None = None

    def blocks(
        self, layer: int, *, rows: Int[Tensor, "batch row"] | None = None, stack: str | None = None
    ) -> Iterator[SlopeBlock]:
        """Maps and gradients of a layer, from the first row on; rows whose gradients are all 0 may be missing.

        Args:
            layer: block index.
            rows: the only rows wanted, as columns; all for None.
            stack: whose; the first of those held for None.
        """
        name = self.held.stack(stack).name
        if (name, layer) in self.z_slopes:
            slopes = self.z_slopes[name, layer]
            wanted = _active(slopes, rows)
            if not wanted.shape[1]:
                return
            values = values_of(self.held, name, layer)
            assert values is not None
            for block in self._kept(name, self.held.blocks(layer, rows=wanted, stack=name)):
                yield SlopeBlock(block.rows, block.pattern, products(slopes, values, block.rows, block.n_keys))
            return
        assert self.whole is not None and self.whole.grad is not None
        whole = self.whole.grad[At(Site.PATTERN, layer, stack=name)].float()
        for block in self._kept(name, self.held.blocks(layer, rows=rows, stack=name)):
            index = block.rows[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
            yield SlopeBlock(block.rows, block.pattern, whole.gather(2, index)[..., : block.n_keys])

    def carried(
        self, block: SlopeBlock, layer: int, z_slopes: Float[Tensor, "batch pos head d_head"], stack: str | None = None
    ) -> Float[Tensor, "batch head row key"]:
        """The map times ``<g_i, v_j>`` of other slopes ``g`` at z, at the rows of a block."""
        values = values_of(self.held, self.held.stack(stack).name, layer)
        assert values is not None
        return block.pattern * products(z_slopes, values, block.rows, block.pattern.shape[-1])

    def _kept(self, name: str, blocks: Iterable[Block]) -> Iterator[Block]:
        """Blocks without the columns that are left out, of the stack whose columns they are."""
        for block in blocks:
            if self.dropped is None or name != self.held.stacks[0]:
                yield block
            else:
                yield replace(block, kept=~self.dropped.to(block.whole.device))

    @property
    def metadata(self) -> dict[str, object]:
        """What a reader should know of how the gradients were made."""
        kernels = sorted(set(self.held.run.kernels.values()))
        return {"kernels": ", ".join(kernels), "whole_maps": [f"{name} {layer}" for name, layer in self.whole_layers]}


def products(
    slopes: Float[Tensor, "batch pos head d_head"],
    values: Float[Tensor, "batch kv_head key d_head"],
    rows: Int[Tensor, "batch row"],
    n_keys: int,
) -> Float[Tensor, "batch head row key"]:
    """``<dm/dz_i, v_j>`` of every query head, ``i`` among ``rows``, ``j`` below ``n_keys``, in float32 at least."""
    wide = torch.promote_types(slopes.dtype, torch.float32)
    index = rows.to(slopes.device)[:, :, None, None].expand(-1, -1, *slopes.shape[2:])
    chosen = slopes.gather(1, index).to(wide).transpose(1, 2)  # [batch, head, row, d_head]
    grouped = chosen.unflatten(1, (values.shape[1], -1)).flatten(2, 3)  # [batch, kv_head, head in group x row, d_head]
    made = grouped @ values[:, :, :n_keys].to(wide).mT
    return made.unflatten(2, (-1, chosen.shape[2])).flatten(1, 2)


def map_slopes(ask: TraceAsk, metric: Metric, stacks: Iterable[str] | None = None) -> MapSlopes:
    """The gradient of ``metric`` with respect to the maps of some stacks: one forward, one backward.

    A second forward and backward with whole maps is made for layers whose z is not the map times the values.

    Args:
        ask: what is traced.
        metric: what is differentiated.
        stacks: whose maps; the asked stack's for None.

    Raises:
        Unsupported: maps or z that a stack does not offer, or gradients that do not pass through any map.
    """
    names = [ask.stack.name] if stacks is None else list(stacks)
    for name in names:
        _check_stack(ask, name)
    reads = [at for name in names for at in wanted_reads(ask.model, name)]
    logits = logits_for(metric, ask.model)
    held = hold_maps(ask.model, ask.batch, stacks=names, read=reads, grad=metric, logits=logits)
    ask.did(1)
    assert held.run.grad is not None and held.run.metric is not None
    places = [(name, layer) for name in names for layer in held.layers(name)]
    direct = [place for place in places if is_weighted_sum(held, *place)]
    slopes = {(name, layer): held.run.grad[At(Site.Z, layer, stack=name)] for name, layer in direct}
    others = tuple(place for place in places if place not in slopes)
    whole = _whole_maps(ask, metric, held, others) if others else None
    return MapSlopes(held, slopes, held.run.metric, whole, others, ask.dropped)


def wanted_reads(model: Model, name: str) -> list[At]:
    """z of a stack, and the values of its layers whose own attention is eager, which keeps no call."""
    stack = model.stack(name)
    kernels = kernels_of(model, ())
    layers = [layer for layer in range(stack.n_layers) if kernels.get((name, layer)) == "eager"]
    eager = layers if stack.refusal(Site.V, False) is None else []
    return [At(Site.Z, stack=name), *(At(Site.V, layer, stack=name) for layer in eager)]


def values_of(held: HeldMaps, stack: str, layer: int) -> Float[Tensor, "batch kv_head key d_head"] | None:
    """The values that a layer's map weighs, None where they are out of reach."""
    kept = held.value(layer, stack)
    if kept is not None:
        return kept
    try:
        return held.run[At(Site.V, layer, stack=stack)].transpose(1, 2)
    except KeyError:
        return None


def is_weighted_sum(held: HeldMaps, stack: str, layer: int) -> bool:
    """Whether the z of a layer is its map times its values, on a few rows of this run.

    Args:
        held: a forward that read z.
        stack, layer: which.
    """
    values, z = values_of(held, stack, layer), held.run[At(Site.Z, layer, stack=stack)]
    batch, heads, length, _ = held.shape(layer, stack)
    if values is None or z.shape != (batch, length, heads, values.shape[-1]) or heads % values.shape[1]:
        return False
    near = max(nearness(z.dtype), nearness(torch.float32))  # maps are made in float32
    rows = torch.linspace(0, length - 1, min(length, _ROWS_CHECKED)).round().long().expand(batch, -1)
    for block in held.blocks(layer, rows=rows, stack=stack):
        each = values.float().repeat_interleave(heads // values.shape[1], dim=1)
        made = (block.whole @ each[:, :, : block.n_keys]).transpose(1, 2)
        index = block.rows.to(z.device)[:, :, None, None].expand(-1, -1, *z.shape[2:])
        gap = (made - z.gather(1, index).float()) * block.real[:, :, None, None]
        if float(gap.abs().max()) > near * max(float(made.abs().max()), 1e-6):
            return False
    return True


def _check_stack(ask: TraceAsk, name: str) -> None:
    stack = ask.model.stack(name)
    for site in (Site.PATTERN, Site.Z):
        stack.require(site, edit=False)
    if stack.family.packed:
        raise Unsupported(
            f"{ask.method}: stack {name!r} packs the rows of all prompts without a batch axis, so that gradients "
            "cannot be told apart by prompt."
        )


def _whole_maps(ask: TraceAsk, metric: Metric, held: HeldMaps, places: Iterable[_Place]) -> Run:
    reads = [At(Site.PATTERN, layer, stack=name) for name, layer in places]
    made = run(ask.model, ask.batch, reads, grad=metric, logits=logits_for(metric, ask.model))
    ask.did(1)
    assert made.grad is not None and held.run.grad is not None
    for (name, layer), at in zip(places, reads, strict=True):
        if bool(held.run.grad[At(Site.Z, layer, stack=name)].any()) and not bool(made.grad[at].any()):
            raise Unsupported(
                f"{ask.method}: the attention of layer {layer} of stack {name!r} keeps both its values and the way of "
                "the gradient through its map out of reach (a fused kernel called by the module itself). Load the "
                "model with attn_implementation='eager', or use a method without gradients."
            )
    return made


def _active(slopes: Tensor, rows: Tensor | None) -> Tensor:
    """The rows among ``rows`` at which any prompt has a gradient."""
    active = (slopes != 0).flatten(2).any(-1)  # [batch, pos]
    if rows is None:
        used = active.any(0).nonzero()[:, 0]
        return used.expand(len(slopes), -1)
    here = active.gather(1, rows.to(active.device)).any(0)
    return rows[:, here.to(rows.device)]
