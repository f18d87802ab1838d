"""What a trained zoo model is measured by: losses of the two halves, and three scores of every head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from interp.zoo.repeats import evaluation_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 60


def evaluate(network: PreTrainedModel, *, n_rows: int = 64) -> dict[str, Any]:
    """Losses, accuracy and head scores on ``<bos>``, 60 distinct words and the same 60 words again.

    Returns:
        ``first_half_loss`` and ``second_half_loss`` (nats per token; the second half from its second token on,
        because its first cannot be foreseen), ``second_half_loss_with_its_first_token``, ``second_half_accuracy``,
        and per layer and head ``previous_token`` (mean attention to the token before), ``induction`` (mean
        attention, from the second copy, to the token after the first copy of the current one) and ``shifted``
        (to the token after that one: a head that scores high here copies from one step further on).
    """
    ids = evaluation_rows(n_rows, length=LENGTH)
    was_training, kernels = network.training, network.config._attn_implementation or "sdpa"
    network.eval()
    network.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = network(ids, output_attentions=True)
    finally:
        network.set_attn_implementation(kernels)
        network.train(was_training)
    losses = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    right = output.logits[:, :-1].argmax(-1) == ids[:, 1:]
    patterns = torch.stack(output.attentions)  # [layer, batch, head, query, key]

    def offset(distance: int, first_query: int) -> list[list[float]]:
        # entry 0 of the diagonal belongs to query `distance`
        diagonal = patterns.diagonal(-distance, -2, -1)[..., first_query - distance :]
        return _rounded(diagonal.mean(dim=(1, 3)))

    return {
        "first_half_loss": round(losses[:, :LENGTH].mean().item(), 4),
        "second_half_loss": round(losses[:, LENGTH + 1 :].mean().item(), 4),
        "second_half_loss_with_its_first_token": round(losses[:, LENGTH:].mean().item(), 4),
        "second_half_accuracy": round(right[:, LENGTH + 1 :].float().mean().item(), 4),
        "previous_token": offset(1, 1),
        "induction": offset(LENGTH - 1, LENGTH + 1),
        "shifted": offset(LENGTH - 2, LENGTH + 1),
    }


def loss_without_each_head(network: PreTrainedModel, *, n_rows: int = 64) -> list[list[float]]:
    """``[layer][head]`` the second half's loss, from its second token on, with that head's output set to zero."""
    ids = evaluation_rows(n_rows, length=LENGTH)
    blocks: Any = network.get_submodule("transformer.h")
    n_heads = network.config.n_head
    width = network.config.n_embd // n_heads

    def without(block: Any, head: int) -> float:
        def silence(_module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            kept = inputs[0].clone()
            kept[..., head * width : (head + 1) * width] = 0
            return (kept,)

        handle = block.attn.c_proj.register_forward_pre_hook(silence)
        try:
            with torch.no_grad():
                logits = network(ids).logits[:, LENGTH + 1 : -1]
        finally:
            handle.remove()
        return F.cross_entropy(logits.transpose(1, 2), ids[:, LENGTH + 2 :]).item()

    return [[round(without(block, head), 4) for head in range(n_heads)] for block in blocks]


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]
