"""Where the stacks of transformer blocks are in a model, what each is called, and which family row describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

from interp.model.families import rows_for
from interp.model.family import Family

_VISION = frozenset({"image", "video"})


@dataclass(frozen=True, eq=False)
class Blocks:
    """One list of transformer blocks in a model."""

    name: str  # the stack: "text", "vision", "audio", "encoder", "decoder", with "_2" for a second of one name
    path: str  # where the list is, from the top of the model
    modules: nn.ModuleList
    model_type: str  # of the nearest enclosing pretrained model
    config: Any  # of the nearest enclosing pretrained model
    family: Family
    others: tuple[Family, ...] = ()  # further rows that fit by structure, for when ``family`` fails its check


def find_blocks(hf: transformers.PreTrainedModel) -> list[Blocks]:
    """Every list of transformer blocks in ``hf``, in the order of its modules.

    A list counts when a family row fits at least one of its elements (hybrids hold blocks without attention); the row
    is one of the nearest enclosing pretrained model's ``config.model_type``, or, for a type that the table does not
    have, the first of LAYOUTS that fits.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> small = GPT2Config(n_layer=1, n_embd=4, n_head=2, vocab_size=8, bos_token_id=0, eos_token_id=0)
        >>> [(found.name, found.path) for found in find_blocks(GPT2LMHeadModel(small))]
        [('text', 'transformer.h')]
    """
    owners: dict[str, transformers.PreTrainedModel] = {}
    found: list[Blocks] = []
    taken: dict[str, int] = {}
    for path, module in hf.named_modules():
        parent = path.rpartition(".")[0]
        owner = module if isinstance(module, transformers.PreTrainedModel) else owners[parent]
        owners[path] = owner
        if not isinstance(module, nn.ModuleList):
            continue
        rows = next((rows for block in module if (rows := rows_for(block, owner.config))), ())
        if not rows:
            continue
        owner_path = next(name for name, known in owners.items() if known is owner)
        name = _stack_name(hf, owner, owner_path, rows[0])
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        model_type = getattr(owner.config, "model_type", "")
        found.append(Blocks(name, path, module, model_type, owner.config, rows[0], rows[1:]))
    return found


def _stack_name(
    hf: transformers.PreTrainedModel, owner: transformers.PreTrainedModel, owner_path: str, row: Family
) -> str:
    """What to call a list of blocks: its part in an encoder-decoder, else what its owner reads."""
    if getattr(hf.config, "is_encoder_decoder", False):
        parts = owner_path.split(".")
        if row.cross or "decoder" in parts:
            return "decoder"
        if "encoder" in parts:
            return "encoder"
    read = owner.input_modalities
    modalities = {read} if isinstance(read, str) else set(read)
    if "text" in modalities or not modalities:
        return "text"
    return "vision" if modalities & _VISION else "audio" if "audio" in modalities else "text"
