"""Value zeroing: what a token's state loses in a block when another's value is 0 there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.value_zeroing import BlockCalls, record_blocks
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.held_stages import stacks_read
from interp.tracing.values.contribution_trace import one_hot
from interp.tracing.values.contributions import shares
from interp.tracing.values.steps import StepRows, ValueStep, ValueTower, descend


def zeroing_trace(ask: TraceAsk, residual: float = 0.0, rolled: bool = True) -> Traced:
    """Shares of how far a token's state after a block moves without another's value (Mohebbi et al., 2023).

    ``c_ij = 1 - cos(x_i, x_i^{without j})`` with x the block's output, MLP and norms counted in, and the value of
    token j 0 in all heads of the layer while the map stays; rows divided by their sum. That layers are multiplied as
    they are, without a residual, is our reading. A token's own column says what its value does for it by attention:
    its residual stream is not zeroed.

    The cost is one forward of the model and one of each block per token: ``L T`` block forwards.

    Args:
        ask: what is traced.
        residual: a share that stays on the token at each layer before layers are multiplied (``r I + (1 - r) C``); 0
            multiplies the shares as they are. The share is ours.
        rolled: multiply the layers; False for each layer's own shares.

    Raises:
        BadInput: options outside their range, or the cross-attention alone.
        Unsupported: values that cannot be edited, or blocks that read another stack.
    """
    if isinstance(residual, bool) or not isinstance(residual, int | float) or not 0 <= residual <= 1:
        raise BadInput(f"{ask.method}: residual={residual!r}; expected a share from 0 to 1.")
    if not isinstance(rolled, bool):
        raise BadInput(f"{ask.method}: rolled={rolled!r}; expected True or False.")
    stacks_read(ask)
    calls = record_blocks(ask.model, ask.batch, ask.stack)
    ask.did(1)
    first = calls.calls[ask.layers[0]][2]
    sizes = {calls.calls[layer][2].shape[:2] for layer in ask.layers}
    if len(sizes) > 1 or first.shape[0] != len(ask.batch):
        raise BadInput(
            f"{ask.method}: the blocks of stack {ask.stack.name!r} give states of the sizes {sorted(map(list, sizes))} "
            f"for {len(ask.batch)} prompts; layers can be multiplied only where each has the same tokens."
        )
    tower = ValueTower([_step(ask, calls, layer, float(residual)) for layer in ask.layers], first.shape[1])
    like = first.new_zeros((), dtype=torch.float64)
    wanted = list(ask.layers) if ask.each_layer else [ask.layers[-1]]
    start = one_hot(ask, tower, like)
    if rolled:
        found = descend(tower, wanted, start, like=like)
    else:
        alone = {step.layer: ValueTower([step], tower.n_tokens) for step in tower.steps}
        found = torch.stack([descend(alone[layer], [layer], start, like=like)[0] for layer in wanted])
    said = {"block forwards": len(tower.steps) * tower.n_tokens}
    return Traced(found[-1], found if ask.each_layer else None, metadata=said)


def zeroed_shares(ask: TraceAsk, calls: BlockCalls, layer: int) -> Float[Tensor, "batch query key"]:
    """One layer's distances, rows divided by their sum; 0 at padding and at keys that a query cannot see.

    Args:
        ask: what is traced.
        calls: the blocks.
        layer: block index.
    """
    found = calls.distances(layer)
    ask.did(found.shape[-1])
    if ask.stack.causal:
        found = found.tril()
    mask = ask.mask
    if mask is not None:
        real = mask.to(found.device)
        found = found * (real[:, :, None] & real[:, None, :])
    if ask.dropped is not None:
        found = found * ~ask.dropped[:, None].to(found.device)
    return shares(found)


def _step(ask: TraceAsk, calls: BlockCalls, layer: int, residual: float) -> ValueStep:
    made: list[Tensor] = []

    def read(columns: Tensor) -> Iterator[StepRows]:
        if not made:
            made.append(zeroed_shares(ask, calls, layer))
        rows = columns.to(made[0].device)
        keys = made[0].gather(1, rows.unsqueeze(-1).expand(-1, -1, made[0].shape[-1])) * (1 - residual)
        yield StepRows(rows, keys, torch.full_like(rows, residual, dtype=keys.dtype))

    width = calls.calls[layer][2].shape[1]
    return ValueStep(layer, ask.stack.name, False, read, width)
