"""``token_divergence``: how much each token of a text rests on the image (T-VHD)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.image_tokens import image_columns
from interp.model.shortening import shortened
from interp.scores.ask import Ask
from interp.scores.divergence.divergence import aware_divergence, check_rule, top_sum
from interp.scores.divergence.head_outputs import (
    OutputsAt,
    moved_columns,
    named_tokens,
    outputs_without,
    token_stack,
    tokens_at,
)


def token_divergence(
    model: Model,
    batch: Batch,
    *,
    k: int,
    at: Group = "answer",
    image: Group = None,
    outliers: bool = True,
    ddof: int = 0,
) -> Float[Tensor, "batch token"]:
    """``[batch, token]`` ``T-VHD = sum over layers of the sum of the k largest VHD``; NaN fills up shorter lists.

    The entry of a position says how much what is predicted *after* it rests on the image: low where a model speaks
    from habit (He et al., 2025, who find it lower at hallucinated words). A sum and not a mean, so that values of
    models of other sizes are not alike.

    Args:
        model: a vision-language model.
        batch: prompts with images, with the text in question after them.
        k: heads of each layer that are summed. The paper's number is not known, so that it must be named.
        at: the positions in question: the answer's by default; a span of the words said, or ``slice(-8, None)``.
        image: the tokens to take out, by default those of the images.
        outliers, ddof: as in :func:`interp.scores.divergence.divergence.vision_divergence`.

    Raises:
        Unsupported: a model without image tokens.
        BadInput: ``k`` below 1, an option of another kind, or a position among the image's tokens.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> token_divergence(model, interp.encode(model, torch.tensor([[0, 3, 4, 3]])), k=1, image=slice(1, 2))
        tensor([[1.0000]], dtype=torch.float64)
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise BadInput(f"token_divergence: k={k!r}; expected how many heads of each layer are summed, at least 1.")
    ask = Ask("token_divergence", model, batch, model.stack())
    check_rule(ask, outliers=outliers, relative=False, ddof=ddof)
    token_stack(ask)
    removed = image_columns(model, batch, edges=True) if image is None else named_tokens(ask, image, "image")
    columns, counted = tokens_at(ask, at)
    parts = shortened(model, batch, removed)
    now = moved_columns(ask, parts, columns, counted)
    own = OutputsAt(ask, columns)
    ask.stream([own])
    other = outputs_without(ask, parts, now)
    total = sum(
        top_sum(aware_divergence(z, other[layer], outliers=outliers, ddof=ddof), k) for layer, z in own.found.items()
    )
    assert isinstance(total, Tensor)
    return total.masked_fill(~counted.to(total.device), torch.nan)
