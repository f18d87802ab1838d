"""The lookback ratio: does a head look at the context, or at what was generated since?"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.groups.groups import members_of
from interp.scores.long_context.chosen_rows import columns_with_filler, one_before, standing
from interp.scores.reducer import Reducer


def lookback_ratio(
    on_context: Float[Tensor, "*any"],
    n_context: Float[Tensor, "*#any"],
    on_rest: Float[Tensor, "*any"],
    n_rest: Float[Tensor, "*#any"],
) -> Float[Tensor, "*any"]:
    """``a / (a + b)`` of the mean attention a on context tokens and b on the others; NaN where it is not defined.

    ``a = on_context / n_context``, ``b = on_rest / n_rest``: means, so that the number of tokens on either side does
    not count (Chuang et al., 2024). Uniform attention gives 1/2, all mass on the context 1.

    Args:
        on_context, on_rest: mass on the context tokens, and on the others up to and including the query.
        n_context, n_rest: how many tokens these are.

    Example:
        >>> one = torch.tensor(1.0)
        >>> round(lookback_ratio(0.6 * one, 3 * one, 0.4 * one, 2 * one).item(), 6)
        0.5
    """
    a, b = on_context / n_context, on_rest / n_rest
    return a / (a + b)


class LookbackRatio(Reducer):
    """The ratio at every row that predicts a generated token, and its mean over them.

    Args:
        ask: what is scored.
        context: ``[batch, pos]`` the tokens of the context.
        rows: ``[batch, pos]`` the rows that predict generated tokens.
        tokens: keep one value for each of so many first generated tokens; None for the mean over all.
    """

    def __init__(self, ask: Ask, context: Tensor, rows: Tensor, *, tokens: int | None) -> None:
        super().__init__(ask)
        assert ask.mask is not None
        open_columns = ask.mask if ask.dropped is None else ask.mask & ~ask.dropped
        self.chosen, self.tokens = rows, tokens
        self.rows = columns_with_filler(rows)
        self.sides = torch.stack([context & open_columns, ~context & open_columns], dim=-1)  # [batch, key, side]
        self.until = self.sides.cumsum(1).double()  # how many up to and including each column
        self.number = rows.cumsum(-1) - 1  # which generated token a row predicts
        self.found: dict[int, Tensor] = {}

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Float[Tensor, "batch key side"]:
        """Context and rest as columns; later tokens get no attention."""
        return self.sides[:, :n_keys].float()

    def block(self, block: Block, products: Tensor | None) -> None:
        """Put each row's ratio at the place of the token that it predicts."""
        assert products is not None
        index = block.rows[..., None].expand(-1, -1, 2)
        counts = self.until.gather(1, index)[:, None]  # [batch, 1, row, side]
        mass = products.double()
        ratio = lookback_ratio(mass[..., 0], counts[..., 0], mass[..., 1], counts[..., 1])
        counted = standing(block, self.chosen)
        counted = (counted if counted.ndim == 3 else counted[:, None]).expand_as(ratio)  # noqa: PLR2004
        if block.layer not in self.found:
            shape = (*ratio.shape[:2], int(self.chosen.sum(-1).max()) + 1)
            self.found[block.layer] = ratio.new_full(shape, torch.nan)
        nowhere = self.found[block.layer].shape[-1] - 1
        place = self.number.gather(1, block.rows)[:, None].expand_as(ratio).masked_fill(~counted, nowhere)
        self.found[block.layer].scatter_(-1, place, ratio)

    def measured(self) -> Measured:
        """Per token, or the mean over the tokens where it is defined; NaN where it is at none."""
        kept = {layer: values[..., :-1] for layer, values in self.found.items()}
        if self.tokens is not None:
            wanted = {layer: _of_length(values, self.tokens) for layer, values in kept.items()}
            return Measured(wanted, bins=tuple(map(str, range(self.tokens))))
        return Measured({layer: values.nanmean(-1) for layer, values in kept.items()})


def _of_length(values: Tensor, length: int) -> Tensor:
    missing = length - values.shape[-1]
    return torch.nn.functional.pad(values[..., :length], (0, max(missing, 0)), value=torch.nan)


def lookback(
    ask: Ask, *, generated: Any = "generated", tail: int = 1, context: Any = None, tokens: int | None = None
) -> LookbackRatio:
    """The mean over generated tokens of the share of attention per token that goes to the context, in [0, 1].

    At the row that predicts generated token t: ``LR = a / (a + b)`` with a the mean attention on the context's tokens
    ``[0, N)`` and b that on all other tokens up to and including the row (Chuang et al., 2024, "Lookback Lens"). N is
    the prompt's length without its tail, so that b is defined at the first token. BOS is a context token, and as a sink
    raises the ratio: see ``exclude_sinks``.

    Args:
        ask: what is scored; prompt and generated tokens in one batch (:func:`interp.with_generated`,
            :func:`interp.with_answer`): one forward, of which the rows before generated tokens alone are computed.
        generated: the generated tokens: a span, or a group.
        tail: how many of the prompt's last tokens are not context ("Answer:").
        context: the context's tokens, in place of everything before the tail.
        tokens: one bin for each of so many first generated tokens, NaN where a prompt has fewer; the mean over all of
            them for None.

    Raises:
        BadInput: no token before the generated ones, a tail as long as the prompt or shorter than 1.
        Unsupported: a stack that sees later tokens, or whose keys are other tokens.
    """
    if not ask.stack.causal or ask.stack.cross or ask.mask is None:
        raise Unsupported(
            f"{ask.name}: it compares what lies before a row, and stack {ask.stack.name!r} is not a causal stack of "
            "tokens; score a decoder's own attention."
        )
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise BadInput(
            f"{ask.name}: tokens={tokens!r}; expected how many first generated tokens get a bin, at least 1."
        )
    answer = members_of(ask, generated, "generated", keys=False)[1].any(0)
    rows, at_start = one_before(answer, ask.mask)
    if bool(at_start.any()):
        raise BadInput(
            f"{ask.name}: prompts {at_start.nonzero().flatten().tolist()[:5]} begin with a generated token; the ratio "
            "needs a prompt before it."
        )
    if context is None:
        member = _before_the_tail(ask, answer, tail)
    else:
        member = members_of(ask, context, "context", keys=True)[1].any(0)
    return LookbackRatio(ask, member, rows, tokens=tokens)


def _before_the_tail(ask: Ask, answer: Bool[Tensor, "batch pos"], tail: int) -> Bool[Tensor, "batch pos"]:
    assert ask.mask is not None
    ordinal = ask.mask.cumsum(-1) - 1
    first: Int[Tensor, " batch"] = torch.where(answer, ordinal, ordinal.shape[1]).min(-1).values
    shortest = int(first.min())
    if isinstance(tail, bool) or not isinstance(tail, int) or not 1 <= tail < shortest:
        raise BadInput(
            f"{ask.name}: tail={tail!r}; expected how many of a prompt's last tokens are not context, from 1 (without "
            f"one the ratio is not defined at the first generated token) to {shortest - 1}."
        )
    return ask.mask & (ordinal < (first - tail)[:, None])
