"""Columns that act as attention sinks on the very prompts, found in a forward of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.row_blocks import Block
from interp.model.streaming import stream

EPS = 0.3  # Gu et al., 2025, for one head's alpha; here of a layer's mean over heads
FEWEST = 8  # queries that must see a key before it can be called a sink: ours


class _Received:
    """A watcher that adds up what every key receives from later queries, head by head averaged."""

    maps, logits, layered, rows, sites = True, False, False, None, frozenset[Site]()

    def __init__(self, width: int) -> None:
        self.width = width
        self.mass: dict[int, Tensor] = {}
        self.number: dict[int, Tensor] = {}

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor | None:
        """None."""
        return None

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Nothing is needed."""

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block, each row's own key left out."""
        own = block.rows.unsqueeze(-1) == torch.arange(block.n_keys, device=block.rows.device)
        others = block.visible.any(1) & ~own & block.real.unsqueeze(-1)
        received = (block.whole.mean(1) * others).sum(1, dtype=torch.float64)
        short = (0, self.width - block.n_keys)
        mass, number = (torch.nn.functional.pad(x, short) for x in (received, others.sum(1)))
        if block.layer in self.mass:
            mass, number = self.mass[block.layer] + mass, self.number[block.layer] + number
        self.mass[block.layer], self.number[block.layer] = mass, number

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Nothing is left to do."""


def sink_columns(
    model: Model, batch: Batch, *, stack: str | None = None, eps: float = EPS, fewest: int = FEWEST
) -> Bool[Tensor, "batch key"]:
    """``[batch, key]`` True at keys that act as sinks: for ``exclude_sinks=``, primary and secondary ones alike.

    A key is one where, at some layer, the mean over heads of what it receives from the other queries that can see it,
    ``alpha_k = mean_{i > k} A[i, k]`` (Gu et al., 2025), exceeds ``eps``, and at least ``fewest`` queries see it. One
    forward.

    Args:
        model: the handle.
        batch: the prompts.
        stack: whose maps, the default stack for None.
        eps: the threshold; the paper's 0.3 is of one head, this is of a layer's mean.
        fewest: queries that must see a key: what few queries look at is no sink yet (ours).

    Raises:
        BadInput: a threshold outside (0, 1), or a stack whose keys are not its queries.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]))
        >>> sink_columns(model, batch, fewest=5)[0].tolist()
        [True, False, False, False, False, False, False]
    """
    if not 0 < eps < 1:
        raise BadInput(f"sink_columns: eps={eps!r}; expected a share of attention between 0 and 1.")
    found = model.stack(stack)
    mask = batch.key_mask(found.name)
    if mask is None or found.cross:
        raise BadInput(
            f"sink_columns: the keys of stack {found.name!r} are not tokens that are queries too; give exclude_sinks= "
            "a BoolTensor [batch, key]."
        )
    watcher = _Received(mask.shape[1])
    stream(model, batch, [watcher], stack=found.name)
    made = torch.zeros_like(mask)
    for layer, mass in watcher.mass.items():
        number = watcher.number[layer].to(mask.device)
        made |= (mass.to(mask.device) / number.clamp(min=1) > eps) & (number >= fewest)
    return made & mask
