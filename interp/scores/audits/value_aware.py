"""What each attended token adds to the answer through one head: attention times value times slope."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import Site
from interp.errors import Unsupported
from interp.model.direct_paths import direct_slopes
from interp.model.row_blocks import Block
from interp.model.run import Metric
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer


def value_aware_weights(
    pattern: Float[Tensor, "*batch query key"],
    values: Float[Tensor, "*batch key d_head"],
    slopes: Float[Tensor, "*batch query d_head"],
) -> Float[Tensor, "*batch key"]:
    """``w_j = sum_i A_ij <v_j, g_i>`` with g the slope of the metric along z; the weights sum to ``sum_i <z_i, g_i>``.

    In a model of one attention layer that is read at one row, g is ``W_O u`` with u the class's direction, so that the
    weights of all heads sum to what attention adds to the class's logit (Attention Meets Post-hoc, 2024).

    Args:
        pattern: one head's map.
        values: its values.
        slopes: ``dm/dz``.

    Example:
        >>> value_aware_weights(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0], [-3.0]]), torch.tensor([[2.0]]))
        tensor([ 1., -3.])
    """
    return (pattern * (slopes @ values.mT)).sum(-2)


class ValueAware(Reducer):
    """``[batch, head, key]`` weights of every head, from the rows at which the metric has a slope.

    Args:
        ask: what is scored, on a stack whose heads write to the stream that makes the logits.
        metric: linear in the logits.
    """

    sites = frozenset({Site.V})

    def __init__(self, ask: Ask, metric: Metric) -> None:
        super().__init__(ask)
        ask.stack.require(Site.V, edit=False)
        if ask.stack.blocks[0] is not ask.model.stack().blocks[0]:
            raise Unsupported(
                f"{ask.name}: the heads of stack {ask.stack.name!r} do not write to the stream that makes the logits; "
                f"take those of {ask.model.default_stack!r}."
            )
        self.slopes = direct_slopes(ask.model, ask.batch, metric)[ask.stack.name]
        if ask.progress is not None:
            ask.progress(2)  # the norms, and the slopes
        if ask.mask is not None:
            used = torch.stack([slope.abs().sum((2, 3)) > 0 for slope in self.slopes.values()]).any(0)
            if int(used.sum(-1).max()) <= 1:
                self.rows = used.to(torch.uint8).argmax(-1, keepdim=True)
        self.found: dict[int, Tensor] = {}
        self._values: Tensor | None = None

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Keep the layer's values, one copy per query head."""
        v = seen[Site.V].float()
        self._values = v.repeat_interleave(self.ask.stack.n_heads(layer) // v.shape[2], dim=2).transpose(1, 2)

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the rows of a block; maps are taken as they are, so that the weights stay complete."""
        assert self._values is not None
        slopes = self.slopes[block.layer]
        index = block.rows[:, :, None, None].expand(-1, -1, *slopes.shape[2:])
        own = slopes.gather(1, index).transpose(1, 2).float() * block.real[:, None, :, None]
        values = self._values[:, :, : block.n_keys]
        made = value_aware_weights(block.whole, values, own).double()
        if block.layer not in self.found:
            self.found[block.layer] = made.new_zeros(*made.shape[:2], self._values.shape[2])
        self.found[block.layer][..., : block.n_keys] += made
