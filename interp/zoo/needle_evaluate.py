"""What a needle model is measured by: answers foreseen at several lengths, and where its heads look meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.zoo.needle_text import VALUES_PER_KEY, NeedleRows, copy_rows, needle_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 20261
TOKENS_PER_FORWARD = 4096


def answer_accuracy(network: PreTrainedModel, rows: NeedleRows) -> dict[str, float]:
    """Shares of answer tokens, and of whole answers, that are the most likely next token.

    ``whole`` counts runs of four determined tokens, which for questions are the four values of a key.
    """
    right, unembedding = [], network.get_output_embeddings()
    assert unembedding is not None
    per_forward = max(1, TOKENS_PER_FORWARD // rows.ids.shape[1])
    with torch.no_grad():
        for start in range(0, len(rows.ids), per_forward):
            ids, source = (part[start : start + per_forward] for part in (rows.ids, rows.source))
            row, at = torch.nonzero(source >= 0, as_tuple=True)
            hidden = network.base_model(ids).last_hidden_state[row, at - 1]
            right.append(unembedding(hidden).argmax(-1) == ids[row, at])
    all_right = torch.cat(right)
    whole = all_right[: len(all_right) // VALUES_PER_KEY * VALUES_PER_KEY].view(-1, VALUES_PER_KEY).all(1)
    return {"token": round(all_right.float().mean().item(), 4), "whole": round(whole.float().mean().item(), 4)}


def retrieval_accuracy(network: PreTrainedModel, length: int, *, n_rows: int, seed: int = SEED) -> dict[str, float]:
    """:func:`answer_accuracy` on fresh rows of facts and questions."""
    return answer_accuracy(network, needle_rows(n_rows, length, torch.Generator().manual_seed(seed + length)))


def copying_accuracy(network: PreTrainedModel, length: int, *, n_rows: int, seed: int = SEED) -> float:
    """Share of tokens of a repeated stretch, from the second of its second copy on, that are foreseen."""
    return answer_accuracy(network, copy_rows(n_rows, length, torch.Generator().manual_seed(seed + length)))["token"]


def looks_at_source(network: PreTrainedModel, length: int, *, n_rows: int, seed: int = SEED) -> list[list[float]]:
    """``[layer][head]`` the share of answer steps at which the head's largest attention is on the token copied.

    The step is the position that predicts the answer's token, the token copied the same value in the needle told.
    """
    rows = needle_rows(n_rows, length, torch.Generator().manual_seed(seed + length))
    kernels = network.config._attn_implementation or "sdpa"
    network.set_attn_implementation("eager")
    hits = []
    try:
        for ids, source in zip(rows.ids, rows.source, strict=True):
            with torch.no_grad():
                patterns = network(ids[None], output_attentions=True).attentions
            at = torch.nonzero(source >= 0).flatten()
            looked = torch.stack([pattern[0][:, at - 1].argmax(-1) for pattern in patterns])
            hits.append(looked == source[at])
    finally:
        network.set_attn_implementation(kernels)
    shares = torch.cat(hits, dim=-1).float().mean(-1)
    return [[round(value, 4) for value in row] for row in shares.tolist()]
