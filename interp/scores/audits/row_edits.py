"""Other rows of attention put in the place of a head's own, where the answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import At, Head, Site
from interp.edits.attention import set_pattern
from interp.edits.base import Edit
from interp.scores.ask import Ask

Targets = Mapping[int, tuple[int, ...]]  # layer -> heads whose rows are replaced together


def targets_at(ask: Ask, level: str) -> list[Targets]:
    """Which heads are edited together: each alone, those of a layer, or all."""
    whole = {layer: tuple(range(ask.stack.n_heads(layer))) for layer in ask.layers}
    if level == "all":
        return [whole]
    if level == "layer":
        return [{layer: heads} for layer, heads in whole.items()]
    return [{layer: (head,)} for layer, heads in whole.items() for head in heads]


def named(targets: Targets, ask: Ask) -> list[Head]:
    """The heads of one edit."""
    stack = None if ask.stack.name == ask.model.default_stack else ask.stack.name
    return [Head(layer, head, stack) for layer, heads in targets.items() for head in heads]


def row_edits(
    ask: Ask,
    targets: Targets,
    columns: Int[Tensor, "batch 1"],
    rows: Mapping[int, Float[Tensor, "batch _ key"]],
) -> list[Edit]:
    """The edits that put ``rows`` (all heads of each layer) at ``columns`` of the heads ``targets``."""
    made = []
    for layer, heads in targets.items():
        at = At(Site.PATTERN, layer, heads=heads, pos=columns, stack=ask.stack.name)
        made.append(set_pattern(at, rows[layer][:, list(heads)].float()[:, :, None]))
    return made


def permuted(
    rows: Float[Tensor, "batch head key"], valid: Bool[Tensor, "batch head key"], keys: Sequence[int], draw: int
) -> Float[Tensor, "batch head key"]:
    """Each row with its visible weights in another order, the same for all heads that see the same keys.

    Args:
        rows: rows of attention.
        valid: the keys among which weights change places; the others keep theirs.
        keys: a number per prompt from which its order is drawn.
        draw: which draw.
    """
    made = rows.clone()
    for prompt, key in enumerate(keys):
        for head in range(rows.shape[1]):
            here = valid[prompt, head]
            generator = torch.Generator().manual_seed((key ^ (1_000_003 * (draw + 1))) % 2**63)
            order = torch.randperm(int(here.sum()), generator=generator).to(rows.device)
            made[prompt, head, here] = rows[prompt, head, here][order]
    return made


def even(
    rows: Float[Tensor, "batch head key"], valid: Bool[Tensor, "batch head key"]
) -> Float[Tensor, "batch head key"]:
    """Each row with its mass shared evenly among its visible keys."""
    mass = (rows * valid).sum(-1, keepdim=True)
    return torch.where(valid, mass / valid.sum(-1, keepdim=True).clamp(min=1), rows)
