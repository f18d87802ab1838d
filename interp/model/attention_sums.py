"""What an attention sub-layer leaves in the residual stream as a sum over the tokens that it reads.

With ``A`` the maps of a run, ``v`` its values and ``x`` the stream before the sub-layer,

    y_i = sum_j T_i(x_j) + constant_i,   T_i(x_j) = s_i M(sum_h A_ij^h v_j^h W_O^h) + [i = j] r_i

where ``M`` are the linear steps between the output projection and the stream (a norm or layer scale after the
projection, a residual multiplier, the norm after the residual in post-norm blocks), each norm with the scale
``1 / s_i`` that it divides by in this run, and ``r_i`` is what these steps leave of ``x_i``. The constant holds the
biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.families import module_at
from interp.model.handle import Model
from interp.model.held_maps import HeldMaps, hold_maps
from interp.model.linear_parts import Gain, norm_gain
from interp.model.operands import Operands, recording_operands
from interp.model.row_blocks import Block
from interp.model.stacks import Layer, Stack, project_out

_ENTRIES = 1 << 24  # of vectors made at once
_KEPT = 1 << 26  # entries of a layer's transformed values that are kept; longer prompts make them anew for each block
_ROUNDING, _COARSE = 1e-4, 6e-2  # of a row's largest entry, within which the sum must be exact: float32, 16 bits
_SITES = (Site.ATTN_RAW, Site.ATTN_OUT)


@dataclass(frozen=True, eq=False)
class SumBlock:
    """Some rows of one sub-layer's sum.

    Attributes:
        rows: ``[batch, row]`` columns of the rows.
        real: ``[batch, row]`` True at rows that are real tokens.
        keys: the first key column of ``vectors``, and one behind the last.
        pattern: ``[batch, head, row, key]`` the maps' whole rows, all keys that any row sees.
        vectors: ``[batch, key, row, d_model]`` ``T_i(x_j)`` of the keys of this block; what stays of the token itself
            is counted in (not for cross-attention).
        own: ``[batch, row, d_model]`` ``r_i``.
        output: ``[batch, row, d_model]`` ``y_i`` as the model has it.
    """

    rows: Int[Tensor, "batch row"]
    real: Bool[Tensor, "batch row"]
    keys: tuple[int, int]
    pattern: Float[Tensor, "batch head row key"]
    vectors: Float[Tensor, "batch key row d_model"]
    own: Float[Tensor, "batch row d_model"]
    output: Float[Tensor, "batch row d_model"]


@dataclass(eq=False)
class HeldSums:
    """The sums of one forward, made block by block.

    Attributes:
        held: the maps.
        values: (stack, layer) -> the values ``[batch, key, kv head, d_head]`` that its maps weigh.
        errors: (stack, layer) -> the largest gap found so far between sum and truth, relative to the sum's size.
    """

    held: HeldMaps
    values: dict[tuple[str, int], Tensor]
    errors: dict[tuple[str, int], float] = field(default_factory=dict)
    _layers: dict[tuple[str, int, bool], LayerSum] = field(default_factory=dict, repr=False)

    def layer(self, layer: int, stack: str | None = None, *, value_bias: bool = True) -> LayerSum:
        """One sub-layer.

        Args:
            layer: block index.
            stack: whose; the first of those held for None.
            value_bias: whether a bias of the value projection belongs to the tokens, as in the run's own values, or to
                the constant.

        Raises:
            Unsupported: values out of reach, or something between projection and stream that is not linear.
        """
        name = self.held.stack(stack).name
        if (name, layer, value_bias) not in self._layers:
            self._layers.clear()  # one layer's vectors at a time
            self._layers[name, layer, value_bias] = LayerSum(self, self.held.stack(name), layer, value_bias)
        return self._layers[name, layer, value_bias]


def hold_sums(
    model: Model, batch: Batch, stacks: Sequence[str], *, dropped: Bool[Tensor, "batch key"] | None = None
) -> HeldSums:
    """What the attention of one forward leaves in the residual stream, token by token.

    Args:
        model: the handle.
        batch: the prompts.
        stacks: whose sub-layers; ``cross`` is the cross-attention of a decoder.
        dropped: key columns that maps come without (the sums are of the maps as they are).

    Raises:
        Unsupported: maps, values or parts of the stream that the model does not offer.
    """
    found = [model.stack(name) for name in stacks]
    for stack in found:
        if stack.family.packed:
            raise Unsupported(
                f"Stack {stack.name!r} ({stack.model_type}) packs the rows of all images without a batch axis, so that "
                "what its attention writes cannot be split by prompt."
            )
        for site in (*_SITES, Site.PATTERN, *([Site.V] if stack.family.interface else [])):
            stack.require(site, edit=False)
    reads = [at for stack in found for layer in _with_attention(stack) for at in _places(stack, layer)]
    calls: dict[tuple[str, int], list[Operands]] = {}
    with ExitStack() as guard:
        for stack in found:
            if not stack.family.interface:  # its q, k and v never show: the operands of its own products are taken
                for layer in _with_attention(stack):
                    own = calls[stack.name, layer] = []
                    guard.enter_context(recording_operands(stack.layer(layer).attention, own))
        held = hold_maps(model, batch, stacks=list(stacks), read=dict.fromkeys(reads), dropped=dropped)
    values = {}
    for stack in found:
        for layer in _with_attention(stack):
            values[stack.name, layer] = _values(held, stack, stack.layer(layer), calls.get((stack.name, layer)))
    return HeldSums(held, values)


def _with_attention(stack: Stack) -> list[int]:
    return [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]


def _places(stack: Stack, layer: int) -> list[At]:
    """Where the parts of the sum are read: projection, what is written, the stream before, and after post-norms."""
    made = [At(site, layer=layer, stack=stack.name) for site in _SITES]
    made.append(_before(stack, layer))
    if stack.family.interface:
        made.append(At(Site.V, layer=layer, stack=stack.name))
    if stack.family.norm == "post":
        made.append(_after(stack, layer))
    return made


def _before(stack: Stack, layer: int) -> At:
    if stack.cross:
        return At(Site.RESID_MID, layer=layer, stack=stack.name.replace("cross", "decoder", 1))
    return At(Site.RESID_PRE, layer=layer, stack=stack.name)


def _after(stack: Stack, layer: int) -> At:
    if stack.cross:
        return At(Site.RESID_CROSS, layer=layer, stack=stack.name.replace("cross", "decoder", 1))
    return At(Site.RESID_MID, layer=layer, stack=stack.name)


def _values(held: HeldMaps, stack: Stack, layer: Layer, calls: list[Operands] | None) -> Tensor:
    where = f"Layer {layer.index} of stack {stack.name!r} ({stack.model_type})"
    made = held.run[At(Site.V, layer=layer.index, stack=stack.name)] if calls is None else None
    if calls is not None and len(calls) == 1:
        vectors = calls[0].vectors(len(held.batch))
        made = None if vectors is None else vectors[2]
    if made is None:
        raise Unsupported(
            f"{where}: the values that its attention weighs are out of reach, so what it writes cannot be split by "
            "token. Use a method that reads maps alone, such as 'rollout'."
        )
    if made.shape[-1] != layer.d_head or layer.n_heads % made.shape[2]:
        raise Unsupported(
            f"{where}: its values are {made.shape[2]} x {made.shape[-1]} wide and its z {layer.n_heads} x "
            f"{layer.d_head}, so that something stands between them (differential attention, a gate)."
        )
    return made


class LayerSum:
    """One sub-layer's sum, block by block.

    Args:
        sums: the forward.
        stack: whose sub-layer.
        layer: block index.
        value_bias: whether a bias of the value projection belongs to the tokens.

    Attributes:
        constant: ``[batch, query, d_model]`` what belongs to no token: biases.
        own: ``[batch, query, d_model]`` ``r_i``, what the linear steps leave of the token's own state.
        output: ``[batch, query, d_model]`` ``y_i`` as the model has it.
        scale: ``[batch, query, 1]`` ``s_i``.
    """

    def __init__(self, sums: HeldSums, stack: Stack, layer: int, value_bias: bool = True) -> None:
        self.sums, self.stack, self.index = sums, stack, layer
        self.layer = stack.layer(layer)
        self.shape = sums.held.shape(layer, stack.name)
        run = sums.held.run
        raw, written = (run[At(site, layer=layer, stack=stack.name)].double() for site in _SITES)
        before = run[_before(stack, layer)].double()
        self._like = run[At(Site.ATTN_RAW, layer=layer, stack=stack.name)]
        self._gains = self._steps(raw)
        first, second = self._gains
        nothing = raw.new_zeros(raw.shape[-1]) if first is None else first.bias
        factor = stack.multiplier(Site.ATTN_OUT)
        inverse = _inverse_scale(first, factor * _moved(first, raw), written - factor * nothing)
        if second is None:
            after, outer, self.own = before + written, torch.ones_like(inverse), before
            constant = factor * nothing.expand_as(raw)
        else:
            after = run[_after(stack, layer)].double()
            outer = _inverse_scale(second, _moved(second, before + written), after - second.bias)
            self.own = _moved(second, before) * outer
            constant = _moved(second, factor * nothing.expand_as(raw)) * outer + second.bias
        self.scale = inverse * outer  # [batch, query, 1]
        bias = self._projected_bias(raw)
        self.constant = constant + self.through(bias) * self.scale
        self._attended = after - self.own - self.constant  # the sum's truth without biases of values set apart
        self.output = after
        self.value_bias = None if value_bias else self._value_bias()
        if self.value_bias is not None:
            self.constant = self.constant + self._constant_of_values()
        self._made: Tensor | None = None

    def through(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """``M x``: the linear steps from the output projection to the stream, without what norms divide by."""
        first, second = self._gains
        moved = _moved(first, x) * self.stack.multiplier(Site.ATTN_OUT)
        return _moved(second, moved)

    def values_through(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "batch key head d_model"]:
        """``M(v_j^h W_O^h)`` of keys ``start`` to ``stop``, for each query head."""
        value = self.sums.values[self.stack.name, self.index][:, start:stop]
        if self.value_bias is not None:
            value = value - self.value_bias.to(value.dtype)
        z = value.repeat_interleave(self.layer.n_heads // value.shape[2], dim=2)
        with torch.no_grad():
            return self.through(project_out(self.layer, z).to(torch.promote_types(z.dtype, torch.float32)))

    def blocks(self, columns: Int[Tensor, "batch row"]) -> Iterator[SumBlock]:
        """The sum at some rows, block by block of rows, and within them of keys.

        Args:
            columns: of the rows.

        Raises:
            Unsupported: the sum over tokens is not what the model has.
        """
        held = self.sums.held
        wide = self.output.shape[-1]
        per_row = max(1, self.shape[0] * wide)
        n_keys = self.shape[3]
        rows_at_once = max(1, min(64, _ENTRIES // (per_row * min(n_keys, 64))))
        entries = rows_at_once * self.shape[0] * self.shape[1] * n_keys
        for block in held.blocks(
            self.index, rows=columns.to(self.output.device), stack=self.stack.name, entries=entries
        ):
            yield from self._of_rows(block, max(1, _ENTRIES // (per_row * block.rows.shape[1])))

    def _of_rows(self, block: Block, step: int) -> Iterator[SumBlock]:
        rows, whole = block.rows, block.whole
        kind = torch.promote_types(self._like.dtype, torch.float32)

        def at_rows(x: Tensor) -> Tensor:
            return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1])).to(kind)

        scale, own, output = at_rows(self.scale), at_rows(self.own), at_rows(self.output)
        total = torch.zeros_like(output)
        for start in range(0, block.n_keys, step):
            stop = min(start + step, block.n_keys)
            maps = whole[..., start:stop].permute(0, 3, 2, 1).to(kind)  # [batch, key, row, head]
            vectors = maps @ self._kept(start, stop).to(kind) * scale.unsqueeze(1)
            total += vectors.sum(1)
            if not self.stack.cross:
                keys = torch.arange(start, stop, device=rows.device)
                itself = (rows.unsqueeze(1) == keys.view(1, -1, 1)) & block.real.unsqueeze(1)
                vectors = vectors + itself.unsqueeze(-1) * own.unsqueeze(1)
            yield SumBlock(rows, block.real, (start, stop), whole, vectors, own, output)
        self._check(block, total, at_rows)

    def _kept(self, start: int, stop: int) -> Tensor:
        entries = self.shape[0] * self.shape[3] * self.layer.n_heads * self.output.shape[-1]
        if entries > _KEPT:
            return self.values_through(start, stop)
        if self._made is None:
            self._made = self.values_through()
        return self._made[:, start:stop]

    def _check(self, block: Block, total: Tensor, at_rows: Callable[[Tensor], Tensor]) -> None:
        truth = at_rows(self._attended)
        if self.value_bias is not None:
            truth = truth - at_rows(self._constant_of_values())
        gap = (total - truth).abs().amax(-1)
        own = self._like.dtype
        exact = own in (torch.float32, torch.float64)
        room = 8 * torch.finfo(own).eps * at_rows(self.output).abs().amax(-1)  # y, minus much of it again
        size = torch.maximum(truth.abs().amax(-1), total.abs().amax(-1))
        size = torch.where(block.real, size.clamp(min=1e-12), torch.ones_like(size))
        gap = torch.where(block.real, gap, torch.zeros_like(gap))
        key = (self.stack.name, self.index)
        self.sums.errors[key] = max(self.sums.errors.get(key, 0.0), float((gap / size).max()))
        worst = float(((gap - room).clamp(min=0) / size).max())
        if worst > (_ROUNDING if exact else _COARSE):
            raise Unsupported(
                f"Layer {self.index} of stack {self.stack.name!r} ({self.stack.model_type}): what its attention leaves "
                f"in the stream is not the sum over tokens of A_ij v_j W_O (off by {worst:.2g} of its size): something "
                "that is not linear, such as a gate, stands between the values and the output projection. Use a method "
                "that reads maps alone, such as 'rollout'."
            )

    def _steps(self, raw: Tensor) -> tuple[Gain | None, Gain | None]:
        """What stands between the projection and the residual, and between the residual and the stream."""
        row, block = self.stack.family, self.stack.blocks[self.index]
        cross = row.cross if self.stack.cross else None
        writer = cross.writer if cross else row.attention_writer
        attention = cross.attention if cross else row.attention
        out = cross.out if cross else row.out
        beside = not f"{writer}.".startswith(f"{attention}.") and not attention.startswith(f"{writer}.")
        first = second = None
        if beside and writer != out:
            first = self._gain(module_at(block, writer), writer)
        if row.norm == "post":
            path = cross.post_norm if cross else (row.post_norms or ("",))[0]
            second = self._gain(module_at(block, path or ""), path or "the norm after the residual")
        return first, second

    def _gain(self, module: nn.Module | None, path: str) -> Gain:
        found = None if module is None else norm_gain(module, self._like[:, :1])
        if found is None:
            raise Unsupported(
                f"Layer {self.index} of stack {self.stack.name!r} ({self.stack.model_type}): {path!r}, which stands "
                "between its output projection and the stream, is no norm or scale that is understood, so that what "
                "the attention writes cannot be split by token."
            )
        return Gain(found.factor.flatten(0, -2)[0], found.bias.flatten(0, -2)[0], found.centred, found.scaled)

    def _projected_bias(self, raw: Tensor) -> Tensor:
        with torch.no_grad():
            nothing = self._like.new_zeros(1, 1, self.layer.n_heads * self.layer.d_head)
            return self.layer.out.forward(nothing).double()[0, 0].expand_as(raw)

    def _value_bias(self) -> Tensor | None:
        from interp.model.head_weights import head_weights

        bias = head_weights(self.sums.held.model, self.stack, self.index, fold="none").v_bias
        bias = bias[:: max(1, len(bias) // self.sums.values[self.stack.name, self.index].shape[2])]
        return bias if bool((bias != 0).any()) else None

    def _constant_of_values(self) -> Tensor:
        """``s_i M(sum_h (sum_j A_ij^h) b_V^h W_O^h)``."""
        assert self.value_bias is not None
        mass = torch.cat([block.mass for block in self.sums.held.blocks(self.index, stack=self.stack.name)], dim=-1)
        bias = self.value_bias.repeat_interleave(self.layer.n_heads // len(self.value_bias), dim=0)
        z = (mass.transpose(1, 2).unsqueeze(-1) * bias.to(mass.device, mass.dtype)).to(self._like.dtype)
        with torch.no_grad():
            written = project_out(self.layer, z).double().sum(2)
        return self.through(written) * self.scale


def _moved(gain: Gain | None, x: Tensor) -> Tensor:
    """What a norm makes of ``x`` before it divides, its bias left out."""
    if gain is None:
        return x
    centred = x - x.mean(-1, keepdim=True) if gain.centred else x
    return centred * gain.factor.to(x.device, x.dtype)


def _inverse_scale(gain: Gain | None, moved: Tensor, made: Tensor) -> Float[Tensor, "batch query 1"]:
    """What a norm multiplied each row by in this run: ``made = inverse * moved``."""
    if gain is None or not gain.scaled:
        return torch.ones_like(moved[..., :1])
    square = moved.square().sum(-1, keepdim=True)
    return (moved * made).sum(-1, keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
