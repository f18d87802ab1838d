"""Raw attention: one layer's map, heads fused. The baseline of every trace."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.fusion import Heads, fusion_of


def raw(ask: TraceAsk, layer: int | None = None, heads: Heads = "mean") -> Traced:
    """The attention of one layer from each target to each source, ``fuse_h A_l[h, i, j]`` (Abnar and Zuidema, 2020).

    Args:
        ask: what is traced.
        layer: block index, the last for None.
        heads: ``mean``, ``max`` or ``min`` over heads, or what weighs them: ``[layer, head]``, HeadScores or Gates.

    Raises:
        BadInput: a layer without attention, or weights of other heads.
        UnknownName: another fusion.
    """
    counts = [ask.stack.n_heads(index) for index in ask.layers]
    fuse = fusion_of(heads, counts, layers=ask.layers, stack=ask.stack.name)
    chosen = ask.layers[-1] if layer is None else layer
    if chosen not in ask.layers:
        raise BadInput(f"{ask.method}: layer={layer!r}; the layers with attention are {list(ask.layers)}.")
    held = ask.hold()

    def rows(index: int) -> Tensor:
        parts = [
            torch.nn.functional.pad(
                fuse(block.pattern, ask.layers.index(index)), (0, held.shape(index)[3] - block.n_keys)
            )
            for block in held.blocks(index, rows=ask.targets)
        ]
        return torch.cat(parts, dim=1)

    values = rows(chosen)
    each = torch.stack([rows(index) for index in ask.layers]) if ask.each_layer else None
    return Traced(values, each, metadata={"layer": chosen, "heads": fuse.name})
