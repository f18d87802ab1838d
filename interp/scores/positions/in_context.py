"""The in-context learning score: how much better later tokens are predicted than earlier ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput


def in_context_score(
    losses: Float[Tensor, "batch pos"], *, early: int = 50, late: int = 500
) -> Float[Tensor, " batch"]:
    """``[batch]`` loss(token ``late``) - loss(token ``early``) in nats; negative means that context helps.

    Olsson et al., 2022 (arXiv 2209.11895): tokens 500 and 50 of contexts of 512.

    Args:
        losses: per-token cross-entropy in nats; entry i is the loss of predicting token i + 1
            (:func:`interp.metrics.token_losses`).
        early: number of the early token, the first of a prompt being 0.
        late: number of the late token.

    Raises:
        BadInput: a token outside the prompt, or never predicted (the first one is not).

    Example:
        >>> in_context_score(torch.tensor([[3.0, 2.0, 0.5, float("nan")]]), early=1, late=3)
        tensor([-2.5000])
    """
    width = losses.shape[1]
    for name, token in (("early", early), ("late", late)):
        if not 1 <= token < width:
            raise BadInput(
                f"in_context_score: {name}={token}, but tokens 1 to {width - 1} of these prompts are predicted; choose "
                "positions inside them."
            )
    difference = losses[:, late - 1] - losses[:, early - 1]
    if bool(torch.isnan(difference).all()):
        raise BadInput(f"in_context_score: tokens {early} and {late} are padding in every prompt.")
    return difference
