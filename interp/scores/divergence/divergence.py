"""How far a head's output moves when a part of the input is taken away: its image, or a named span of text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.image_tokens import image_columns
from interp.model.shortening import shortened
from interp.scores.ask import Ask
from interp.scores.divergence.head_outputs import (
    Changed,
    moved_columns,
    named_tokens,
    outputs_without,
    token_stack,
    tokens_at,
)


def head_divergence(
    with_part: Float[Tensor, "*batch head d_head"],
    without_part: Float[Tensor, "*batch head d_head"],
    *,
    relative: bool = False,
) -> Float[Tensor, "*batch head"]:
    """``||a - b||_2`` of each head's z, in float64; with ``relative`` ``||a - b|| / (||a|| + ||b||)``.

    Args:
        with_part: z with the part of the input in question, a.
        without_part: z of the same token without it, b.
        relative: divide, so that a head is not large for writing with a large norm; in [0, 1], NaN where both are 0.

    He et al., 2025 (VHD); the relative version is ours.

    Example:
        >>> import torch
        >>> head_divergence(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])).tolist()
        [5.0]
    """
    first, second = with_part.double(), without_part.double()
    gap = (first - second).norm(dim=-1)
    return gap / (first.norm(dim=-1) + second.norm(dim=-1)) if relative else gap


def outlier_heads(
    divergence: Float[Tensor, "*batch head"], without_part: Float[Tensor, "*batch head d_head"], *, ddof: int = 0
) -> Bool[Tensor, "*batch head"]:
    """True at heads that diverge because they are large: ``VHD > mean + std`` and ``TA > mean + std``, both.

    ``TA = ||z without the part||^2``; mean and standard deviation are over the heads of one layer and prompt.

    Args:
        divergence: ``||a - b||``, not squared: with squares the same heads are in another place of the distribution.
        without_part: z without the part of the input.
        ddof: 0 divides the variance by the number of heads, 1 by one less. Which one the paper means is not known.

    He et al., 2025.

    Example:
        >>> import torch
        >>> both = torch.tensor([[9.0], [1.0], [1.0], [1.0]])
        >>> outlier_heads(torch.tensor([5.0, 1.0, 1.0, 1.0]), both).tolist()
        [True, False, False, False]
    """

    def large(values: Tensor) -> Tensor:
        wide = values.double()
        return wide > wide.mean(-1, keepdim=True) + wide.std(-1, correction=ddof, keepdim=True)

    return large(divergence) & large(without_part.double().square().sum(-1))


def aware_divergence(
    with_part: Float[Tensor, "*batch head d_head"],
    without_part: Float[Tensor, "*batch head d_head"],
    *,
    relative: bool = False,
    outliers: bool = True,
    ddof: int = 0,
) -> Float[Tensor, "*batch head"]:
    """The divergence of every head, 0 at outliers; see :func:`head_divergence` and :func:`outlier_heads`.

    The rule for outliers looks at the divergence itself, also where the relative one is given.

    Example:
        >>> import torch
        >>> aware_divergence(torch.ones(2, 3), torch.ones(2, 3)).tolist()
        [0.0, 0.0]
    """
    made = head_divergence(with_part, without_part, relative=relative)
    if not outliers:
        return made
    absolute = head_divergence(with_part, without_part)
    return made.masked_fill(outlier_heads(absolute, without_part, ddof=ddof), 0.0)


def top_sum(divergence: Float[Tensor, "*batch head"], k: int) -> Float[Tensor, "*batch"]:
    """The sum of the ``k`` largest of a layer (of all, where there are fewer): T-VHD is its sum over layers.

    Example:
        >>> import torch
        >>> top_sum(torch.tensor([1.0, 3.0, 2.0]), 2)
        tensor(5.)
    """
    return divergence.topk(min(k, divergence.shape[-1]), dim=-1).values.sum(-1)


def vision_divergence(
    ask: Ask,
    *,
    relative: bool = False,
    outliers: bool = True,
    ddof: int = 0,
    image: Group = None,
    at: Group = "answer",
) -> Changed:
    """``||z(with image) - z(without)||_2`` of each head at the token where the answer is read (He et al., 2025).

    The second prompt is the first without its image tokens, encoded again, so that its positions close up; heads are
    compared at the same last token. Raised values mean that what the head puts out depends on the image.

    Args:
        ask: what is scored.
        relative: divide by the sum of both norms.
        outliers: set heads to 0 that are above mean + std of their layer in divergence and in ``||z(without)||^2``.
        ddof: of that standard deviation.
        image: the tokens to take out; by default those that the config names, with those that open and close them.
        at: the tokens at which heads are compared, ``"answer"`` by default; several are averaged.

    Raises:
        Unsupported: a model without image tokens, or a stack that does not make the logits.
        BadInput: a prompt without an image.
    """
    check_rule(ask, outliers=outliers, relative=relative, ddof=ddof)
    removed = image_columns(ask.model, ask.batch, edges=True)
    token_stack(ask)
    if image is not None:
        removed = named_tokens(ask, image, "image")
    return divergence_without(ask, removed, at, relative=relative, outliers=outliers, ddof=ddof)


def context_divergence(
    ask: Ask,
    *,
    span: Group = "context",
    relative: bool = False,
    outliers: bool = False,
    ddof: int = 0,
    at: Group = "answer",
) -> Changed:
    """``||z(with the span) - z(without)||_2`` of each head where the answer is read: VHD for a part of a text.

    Args:
        ask: what is scored.
        span: the tokens to take out of the second prompt, a span called ``"context"`` by default; of the encoder in an
            encoder-decoder.
        relative, outliers, ddof, at: as in :func:`vision_divergence`.

    Raises:
        BadInput: the span is missing or empty, or holds the position that is read.
    """
    check_rule(ask, outliers=outliers, relative=relative, ddof=ddof)
    token_stack(ask)
    removed = named_tokens(ask, span, "span")
    return divergence_without(ask, removed, at, relative=relative, outliers=outliers, ddof=ddof)


def divergence_without(ask: Ask, removed: Bool[Tensor, "batch pos"], at: Group, **rule: Any) -> Changed:
    """The divergence of every head between the prompts and the prompts without the tokens at ``removed``.

    Args:
        ask: what is scored.
        removed: True at the tokens to take out.
        at: where heads are compared.
        rule: options of :func:`aware_divergence`.
    """
    columns, counted = tokens_at(ask, at)
    parts = shortened(ask.model, ask.batch, removed)
    now = moved_columns(ask, parts, columns, counted)
    number = removed.sum(-1)
    about: Mapping[str, object] = {
        "tokens taken out": f"{int(number.min())} to {int(number.max())} of each prompt",
        "outliers": "set to 0 (both conditions)" if rule["outliers"] else "kept",
    }
    compare = partial(aware_divergence, **rule)
    return Changed(ask, columns, counted, lambda: [outputs_without(ask, parts, now)], compare, about)


def check_rule(ask: Ask, *, outliers: bool, relative: bool, ddof: int) -> None:
    """Refuse options of another kind.

    Raises:
        BadInput: with what is expected.
    """
    for name, value in (("outliers", outliers), ("relative", relative)):
        if not isinstance(value, bool):
            raise BadInput(f"{ask.name}: {name}={value!r}; expected True or False.")
    if isinstance(ddof, bool) or ddof not in (0, 1):
        raise BadInput(f"{ask.name}: ddof={ddof!r}; expected 0 (divide by the number of heads) or 1 (by one less).")
    if outliers and ddof and min(map(ask.stack.n_heads, ask.layers)) < 2:  # noqa: PLR2004 - one head has no spread
        raise BadInput(f"{ask.name}: ddof=1 divides by 0 in a layer of one head; use ddof=0, or outliers=False.")
