"""The divergence of a run from a clean one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.metrics.answers import answer_logits
from interp.metrics.declare import declared
from interp.metrics.precision import wide
from interp.model.batch import Batch
from interp.model.run import Run

MOST_TO_NAME = 5


def kl_divergence(
    clean: Run | Tensor, batch: Batch | None = None, *, at: Literal["answer", "tokens"] = "answer"
) -> Callable[[Tensor, Batch], Float[Tensor, " batch"]]:
    """A metric: ``[batch]`` KL(clean || run) of the next-token distributions in nats; 0 where nothing changed.

    ``sum over tokens of p_clean (log p_clean - log p)`` (Kullback and Leibler, 1951), lower is nearer (``sense`` -1).
    Prompts are found again by their content, so that the metric also takes a part of the clean batch, or its prompts in
    another order.

    Args:
        clean: the clean run, or its logits.
        batch: the prompts of the clean run, where ``clean`` is logits.
        at: ``"answer"``: at the position that predicts the answer; ``"tokens"``: the mean over all real positions.

    Raises:
        BadInput: logits without their batch, without the positions that ``at`` needs, or later a prompt that was not in
            the clean run.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> plain = interp.run(model, batch)
        >>> kl_divergence(plain)(plain.logits, batch).tolist()
        [0.0]
    """
    if at not in ("answer", "tokens"):
        raise BadInput(f"kl_divergence: at={at!r}; expected 'answer' or 'tokens'.")
    logits = clean.logits if isinstance(clean, Run) else clean
    batch = clean.batch if isinstance(clean, Run) else batch
    if logits is None or batch is None:
        raise BadInput("kl_divergence: expected a Run with logits, or logits and the batch they belong to.")
    reference = torch.log_softmax(_read(logits, batch, at), dim=-1).detach()
    rows = _rows(reference, batch)
    measured_on = batch

    def kl(logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """``[batch]`` divergence from the clean run, in nats."""
        found = reference if batch is measured_on else _found(reference, rows, batch)
        if at == "tokens" and found.shape[1] != batch.width:
            raise BadInput(f"kl: the clean run had {found.shape[1]} columns, this batch has {batch.width}; pad alike.")
        ours = torch.log_softmax(_read(logits, batch, at), dim=-1)
        theirs = found.to(ours.device)
        # where the clean run gives no probability at all, 0 log 0 = 0
        parts = torch.where(theirs == -torch.inf, 0.0, theirs.exp() * (theirs - ours)).sum(-1)
        if at == "answer":
            return parts
        mask = batch.mask.to(parts.device)
        return parts.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)

    return declared(positions="answers" if at == "answer" else None, sense=-1)(kl)


def _read(logits: Tensor, batch: Batch, at: str) -> Tensor:
    if at == "answer":
        return answer_logits(logits, batch)
    if logits.ndim != 3 or logits.shape[1] != batch.width:  # noqa: PLR2004 - [batch, pos, vocab]
        raise BadInput("kl_divergence(at='tokens') needs every position: run with logits='all'.")
    return wide(logits)


def _identities(batch: Batch) -> list[tuple[int, int]]:
    """What tells prompts apart: their content, and the real token at which the answer is read."""
    places = (batch.mask.cumsum(1) * batch.mask).gather(1, batch.read_at[:, None].to(batch.mask.device))[:, 0]
    return list(zip(batch.content_keys.tolist(), places.tolist(), strict=True))


def _rows(reference: Tensor, batch: Batch) -> dict[tuple[int, int], int]:
    """Prompt -> its row. Prompts whose content cannot be told apart, but whose logits differ, have none."""
    rows: dict[tuple[int, int], int] = {}
    unlike: set[tuple[int, int]] = set()
    for row, key in enumerate(_identities(batch)):
        first = rows.setdefault(key, row)
        if not torch.allclose(reference[first], reference[row], atol=1e-4, equal_nan=True):
            unlike.add(key)
    return {key: row for key, row in rows.items() if key not in unlike}


def _found(reference: Tensor, rows: dict[tuple[int, int], int], batch: Batch) -> Tensor:
    keys = _identities(batch)
    strangers = [index for index, key in enumerate(keys) if key not in rows]
    if strangers:
        raise BadInput(
            f"kl: the prompts {strangers[:MOST_TO_NAME]} were not in the clean run; make kl_divergence from a run of "
            "this batch."
        )
    return reference[torch.tensor([rows[key] for key in keys], device=reference.device)]
