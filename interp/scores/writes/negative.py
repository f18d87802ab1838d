"""The negative attention score: which of two candidates in the prompt a head leans to, by how much of its attention."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput, Unsupported
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import RowMean

LEAST_MASS = 1e-9  # so that a mass that underflowed gives a large number and no infinity; this library's choice


def negative_attention_score(yes: Float[Tensor, "*row"], no: Float[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """``(yes + no) log(no / yes)`` for each row: 0 where both masses are equal, with the other sign when exchanged.

    The score of a head is the sum over rows (Yu et al., 2024, as given by Zheng et al., 2024, arXiv 2409.03752).
    Positive leans to the negative candidate. Masses below 1e-9 count as 1e-9. In float64: rows of either sign cancel in
    the sum over rows.

    Args:
        yes: attention to the positive candidate.
        no: attention to the negative candidate.

    Example:
        >>> negative_attention_score(torch.tensor([0.25, 0.5]), torch.tensor([0.25, 0.0])).tolist()[0]
        0.0
    """
    yes, no = yes.double().clamp(min=LEAST_MASS), no.double().clamp(min=LEAST_MASS)
    return (yes + no) * (no.log() - yes.log())


class NegativeAttention(RowMean):
    """The sum over the rows behind both candidates of :func:`negative_attention_score`.

    Args:
        ask: what is scored.
        yes, no: the candidates' tokens in the prompts, as groups of columns.
    """

    def __init__(self, ask: Ask, yes: Group, no: Group) -> None:
        super().__init__(ask)
        self.candidates, self.behind = candidates_of(ask, yes, no)

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "batch key 2"]:
        """The two candidates' columns."""
        return self.candidates[:, :n_keys]

    def per_row(self, block: Block, products: Tensor | None) -> Float[Tensor, "batch head row"]:
        """The score of each row."""
        assert products is not None
        return negative_attention_score(products[..., 0], products[..., 1])

    def counted(self, block: Block) -> Bool[Tensor, "batch row"]:
        """Rows behind both candidates."""
        return block.real & self.behind.gather(1, block.rows)

    def measured(self) -> Measured:
        """The sums; NaN where no row stands behind both candidates."""
        made = {layer: self.sums[layer].where(self.numbers[layer] > 0, torch.nan) for layer in self.sums}
        return Measured(made)


def candidates_of(ask: Ask, yes: Group, no: Group) -> tuple[Float[Tensor, "batch key 2"], Bool[Tensor, "batch pos"]]:
    """The two candidates as columns, and True at the rows behind both.

    Raises:
        Unsupported: cross-attention, whose keys are other tokens than its rows.
        BadInput: the candidates overlap in a prompt, or a group has no token in one.
    """
    if ask.stack.cross:
        raise Unsupported(
            f"{ask.name}: it reads the rows behind both candidates, and the keys of stack {ask.stack.name!r} are the "
            "tokens of another stack; score a stack's attention to its own tokens."
        )
    both = [ask.columns(group, what) for group, what in ((yes, "yes"), (no, "no"))]
    shared = (both[0] & both[1]).any(-1).nonzero().flatten().tolist()
    if shared:
        raise BadInput(
            f"{ask.name}: yes={yes!r} and no={no!r} share tokens in prompts {shared[:5]}; name two candidates apart."
        )
    places = torch.arange(both[0].shape[1], device=both[0].device)
    last = torch.where(both[0] | both[1], places, -1).amax(-1)
    return torch.stack(both, dim=-1).float(), places > last[:, None]


def negative_attention(ask: Ask, yes: Group = "yes", no: Group = "no") -> NegativeAttention:
    """``sum_i (A[i, yes] + A[i, no]) log(A[i, no] / A[i, yes])`` over the rows i behind both candidates.

    0 where both candidates get the same mass; the sign changes when they are exchanged. A candidate of several tokens
    has the sum of their masses, and masses below 1e-9 count as 1e-9 (this library's choice, so that an underflow stays
    finite). Yu et al., 2024, as given by Zheng et al., 2024 (arXiv 2409.03752).

    Args:
        ask: what is scored.
        yes: the positive candidate's tokens: a span's name, an int, a slice, or a tensor of columns.
        no: the negative candidate's.

    Raises:
        BadInput: a prompt without a candidate, or with one that is both.
        BadAddress: an unknown span.
        Unsupported: cross-attention, whose keys are other tokens than its rows.
    """
    return NegativeAttention(ask, yes, no)
