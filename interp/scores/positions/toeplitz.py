"""How much of a head's scores is position, and how much of that is distance: on random tokens, before the softmax."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.inputs import context_limit, output_embeddings
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.positions.places import whole_number
from interp.scores.prompts import ordinary_tokens
from interp.scores.reducer import Reducer

_PROMPTS, _LENGTH = 32, 64  # ours
_ERRORS = 2.0  # standard errors above 0 that a variance must have to be divided by
_ROUNDING = 1e-10  # of a variance, against the mean square: less than this is float32's rounding


def toeplitz_residual_of(
    scores: Float[Tensor, "*batch query key"], visible: Bool[Tensor, "query key"]
) -> Float[Tensor, "*batch"]:
    """``Var(residual) / Var(total)`` over visible entries, the residual being a score less its diagonal's mean.

    0 for a matrix that depends on the distance alone; NaN for a constant one.

    Args:
        scores: mean scores, anything at blocked entries.
        visible: which entries count.

    Example:
        >>> distance = torch.arange(4.0)[:, None] - torch.arange(4.0)
        >>> toeplitz_residual_of(distance, torch.ones(4, 4, dtype=torch.bool).tril()).item()
        0.0
    """
    rows = torch.arange(scores.shape[-2], device=scores.device)
    flat = scores.masked_fill(~visible, 0).double()
    found = _sums(flat[None], visible.expand(scores.shape), rows, scores.shape[-1])
    return found.residual(corrected=False) / found.total(corrected=False)


class Diagonals(NamedTuple):
    """Sums along diagonals, by distance (query minus key) from ``1 - T`` to ``T - 1``.

    Attributes:
        number: visible entries.
        sums: of each prompt's scores.
        squares: of the squared scores of all prompts.
        together: of the squares of each entry's sum over prompts.
        shared: ``[prompt, ...]`` sum of the products of a prompt's scores with those of all others.
    """

    number: Float[Tensor, "*batch diagonal"]
    sums: Float[Tensor, "prompt *batch diagonal"]
    squares: Float[Tensor, "*batch diagonal"]
    together: Float[Tensor, "*batch diagonal"]
    shared: Float[Tensor, " prompt *batch"]

    def plus(self, other: Diagonals) -> Diagonals:
        """Both together."""
        return Diagonals(*(a + b for a, b in zip(self, other, strict=True)))

    def residual(self, *, corrected: bool) -> Float[Tensor, "*batch"]:
        """Sum of squares of the mean scores about their diagonals' means."""
        number = self.number.clamp(min=1)
        return (self._entries(corrected) - self._squared(self.sums, corrected) / number).sum(-1)

    def total(self, *, corrected: bool) -> Float[Tensor, "*batch"]:
        """Sum of squares of the mean scores about their mean; NaN where it is nothing but rounding or noise."""
        squares = self._entries(corrected).sum(-1)
        found = squares - self._squared(self.sums.sum(-1), corrected) / self.number.sum(-1)
        least = _ROUNDING * self.squares.sum(-1) / len(self.sums)
        return found.masked_fill(
            found <= (torch.maximum(least, _ERRORS * self._error()) if corrected else least), torch.nan
        )

    def _error(self) -> Float[Tensor, "*batch"]:
        """The standard error of the corrected total: of a mean over pairs of prompts, from each prompt's part in it."""
        n = len(self.sums)
        each = self.sums.sum(-1)
        parts = (self.shared - each * (each.sum(0) - each) / self.number.sum(-1)) / (n - 1)
        return 2 * parts.std(0) / n**0.5

    def spread(self) -> Float[Tensor, "*batch"]:
        """Sum of squares of all scores about their mean, for one prompt."""
        n = len(self.sums)
        mean = self.sums.sum((0, -1)) / n
        return self.squares.sum(-1) / n - mean.square() / self.number.sum(-1)

    def _entries(self, corrected: bool) -> Tensor:
        """Sums of squares of the mean scores; corrected, of products of two prompts' scores, which have no noise."""
        n = len(self.sums)
        return (self.together - self.squares) / (n * (n - 1)) if corrected else self.together / n**2

    @staticmethod
    def _squared(sums: Tensor, corrected: bool) -> Tensor:
        """The same of sums ``[prompt, ...]``."""
        n = len(sums)
        together, squares = sums.sum(0).square(), sums.square().sum(0)
        return (together - squares) / (n * (n - 1)) if corrected else together / n**2


def _sums(
    scores: Float[Tensor, "prompt *batch row key"],
    visible: Bool[Tensor, "*batch row key"],
    rows: Int[Tensor, " row"],
    width: int,
) -> Diagonals:
    """The sums of a few rows (0 where blocked) of maps that are ``width`` wide."""
    n_keys = scores.shape[-1]
    diagonal = (rows[:, None] - torch.arange(n_keys, device=rows.device) + width - 1).flatten()

    def gathered(values: Tensor) -> Tensor:
        zeros = torch.zeros(*values.shape[:-2], 2 * width - 1, dtype=torch.float64, device=values.device)
        return zeros.index_add(-1, diagonal, values.flatten(-2).double())

    total = scores.sum(0)
    return Diagonals(
        number=gathered(visible),
        sums=gathered(scores),
        squares=gathered(scores.square().sum(0)),
        together=gathered(total.square()),
        shared=(scores * (total - scores)).sum((-2, -1)),
    )


class MeanScores(Reducer):
    """Sums along the diagonals of the scores of equally long prompts, and of their mean matrix, which is never kept.

    All prompts are in one block, so that the mean over prompts is at hand for each of its rows.

    Args:
        ask: what is scored.
        width: tokens of each prompt.
        skipped: how many first columns are left out.
    """

    logits = True

    def __init__(self, ask: Ask, width: int, *, skipped: int) -> None:
        super().__init__(ask)
        self.width, self.skipped = width, skipped
        self.diagonals: dict[int, Diagonals] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the block's rows."""
        assert block.logits is not None
        rows = block.rows[0]
        assert bool((block.rows == rows).all()), "prompts of one length, without padding"
        prompts, heads = block.whole.shape[:2]
        visible = block.visible.expand(prompts, heads, -1, -1).all(0)
        visible = visible & (torch.arange(block.n_keys, device=rows.device) >= self.skipped)
        scores = torch.where(visible, block.logits, 0).double()  # [prompt, head, row, key]
        added = _sums(scores, visible, rows, self.width)
        before = self.diagonals.get(block.layer)
        self.diagonals[block.layer] = added if before is None else before.plus(added)


def random_prompts(ask: Ask, prompts: int, length: int) -> Batch:
    """``prompts`` sequences of ``length`` ordinary tokens, each drawn by itself from all of them; no start token.

    Raises:
        BadInput: the stack reads no tokens, or ``length`` is more than the context.
    """
    model = ask.model
    stack = ask.stack.name
    tokens = {model.default_stack, "encoder"} if model.default_stack == "decoder" else {model.default_stack}
    foreign = ask.batch.ids is None or stack.startswith(("vision", "audio")) or "input_features" in ask.batch.inputs
    towers = "vision" in model.stacks and output_embeddings(model) is None  # their forward wants images, too
    if stack not in tokens or foreign or towers:
        raise Unsupported(
            f"{ask.name}: it draws random tokens, and stack {stack!r} of {model.name!r} reads none; score "
            f"{' or '.join(sorted(map(repr, tokens)))} of a model of texts."
        )
    limit = context_limit(model)
    if limit is not None and length > limit:
        raise BadInput(f"{ask.name}: length={length}, and the context of {model.name!r} holds {limit}.")
    pool = torch.tensor(ordinary_tokens(model))
    drawn = torch.randint(len(pool), (prompts, length), generator=torch.Generator().manual_seed(ask.seed))
    ids = pool[drawn]
    return encode(model, ids, decoder=ids) if model.default_stack == "decoder" else encode(model, ids)


def _mean_scores(ask: Ask, prompts: int, length: int | None) -> MeanScores:
    """The sums of one forward of random prompts."""
    whole_number(ask.name, "prompts", prompts, 2)
    limit = context_limit(ask.model)
    size = min(_LENGTH, limit or _LENGTH) if length is None else whole_number(ask.name, "length", length, 3)
    batch = random_prompts(ask, prompts, size)
    skipped = 0
    if ask.dropped is not None:
        skipped = int(ask.dropped[0].sum())
        mask = ask.key_mask
        place = torch.arange(ask.dropped.shape[1]) if mask is None else mask.cumsum(-1) - 1
        if not torch.equal(ask.dropped, ask.dropped & (place.to(ask.dropped.device) < skipped)) or bool(
            (ask.dropped.sum(-1) != skipped).any()
        ):
            raise BadInput(
                f"{ask.name}: it draws its own prompts, in which the columns of exclude_sinks mean nothing; give "
                "'first' or a number of first tokens."
            )
    if skipped > size - 3:
        raise BadInput(f"{ask.name}: exclude_sinks leaves fewer than 3 of {size} tokens; give a larger length=.")
    found = MeanScores(ask, size, skipped=skipped)
    ask.stream([found], batch)
    return found


def _ratios(
    ask: Ask, kind: Literal["residual", "share"], prompts: int, length: int | None, corrected: bool
) -> Measured:
    found = _mean_scores(ask, prompts, length)
    made = {}
    for layer, diagonals in found.diagonals.items():
        total = diagonals.total(corrected=corrected)
        ratio = diagonals.residual(corrected=corrected) / total if kind == "residual" else total / diagonals.spread()
        if kind == "share":  # scores that vary without any part of it above noise: none of it is position
            ratio = torch.where(total.isnan() & (diagonals.spread() > 0), torch.zeros_like(ratio), ratio)
        made[layer] = ratio.clamp(0, 1)[None]
    return Measured(made, sample_axis=None, metadata=_about(ask, prompts, found))


def _about(ask: Ask, prompts: int, found: MeanScores) -> dict[str, Any]:
    return {"prompts drawn": prompts, "length": found.width, "seed": ask.seed}


def _profile(diagonals: Diagonals, upto: int) -> Float[Tensor, "head bin"]:
    """Mean score at each distance on either side, less the mean over all entries."""
    number, total = diagonals.number, diagonals.sums.mean(0)
    middle = number.shape[-1] // 2
    back = slice(middle, middle + upto + 1)

    def folded(values: Tensor) -> Tensor:
        both = values[..., back] + values.flip(-1)[..., back]
        both[..., 0] /= 2
        return both

    return folded(total) / folded(number) - (total.sum(-1) / number.sum(-1)).unsqueeze(-1)


def toeplitz_residual(ask: Ask, prompts: int = _PROMPTS, length: int | None = None, corrected: bool = True) -> Measured:
    """What position does to a head's scores beyond the distance: ``Var(residual) / Var(total)``, in [0, 1].

    The scores before the softmax are averaged over random prompts, entry by entry; the relative part of the mean is its
    diagonals' means, the residual the rest, variances are over visible entries (Behind RoPE, 2025). 0: mean scores
    depend on the distance alone, as in the first layer of a RoPE model. The bare mean of n prompts has sampling noise,
    all but one part of it residual: where position matters little, it is most of both variances. ``corrected`` (ours)
    takes it out: squares of means over prompts become means of the products of two different prompts, which have the
    same expectation without the noise. NaN where what is left is within two standard errors of nothing: then position
    does too little to say how (see ``positional_share`` for how much).

    Args:
        ask: what is scored; its prompts only say that there are tokens.
        prompts: how many random prompts.
        length: tokens of each; 64, or the context where it is shorter, for None.
        corrected: leave out sampling noise; False is the bare protocol.

    Raises:
        BadInput: fewer than 2 prompts or 3 tokens, or more tokens than the context.
        Unsupported: a stack that reads no tokens.
    """
    return _ratios(ask, "residual", prompts, length, bool(corrected))


def positional_share(ask: Ask, prompts: int = _PROMPTS, length: int | None = None, corrected: bool = True) -> Measured:
    """How much of the variance of a head's scores on random tokens is where query and key stand, in [0, 1].

    ``Var_ij(mean over prompts) / Var(all scores)`` over visible entries: 1 for a head whose scores are the same for any
    tokens, 0 for one that looks at content alone. A companion of ours to :func:`toeplitz_residual`, which splits the
    numerator into distance and the rest.

    Args:
        ask, prompts, length: as for :func:`toeplitz_residual`.
        corrected: leave out sampling noise, which would add up to ``1 / prompts``.

    Raises:
        BadInput, Unsupported: see :func:`toeplitz_residual`.
    """
    return _ratios(ask, "share", prompts, length, bool(corrected))


def score_profile(ask: Ask, prompts: int = _PROMPTS, length: int | None = None, upto: int = 16) -> Measured:
    """Mean score before the softmax at each distance, less the mean over all visible entries, on random tokens.

    The relative part that :func:`toeplitz_residual` takes off: positive at distances that the head prefers whatever the
    tokens are (Behind RoPE, 2025); NaN at distances that no query sees.

    Args:
        ask, prompts, length: as for :func:`toeplitz_residual`.
        upto: the largest distance.

    Raises:
        BadInput, Unsupported: see :func:`toeplitz_residual`.
    """
    whole_number(ask.name, "upto", upto, 0)
    found = _mean_scores(ask, prompts, length)
    furthest = min(upto, found.width - 1)
    made = {layer: _profile(diagonals, furthest)[None] for layer, diagonals in found.diagonals.items()}
    bins = [str(d) for d in range(furthest + 1)]
    return Measured(made, bins=bins, sample_axis=None, metadata=_about(ask, prompts, found))
