"""What a family's forward takes: padding ids, position ids, and how long its context is."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from torch import Tensor

from interp.model.handle import Model

_LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length")


def pad_id(model: Model) -> int:
    """A token id for padding: the tokenizer's, else the config's, else any (padding is masked)."""
    owners: list[Any] = [model.tokenizer, model.stack().config]
    for name in ("pad_token_id", "eos_token_id"):
        for owner in owners:
            found = getattr(owner, name, None)
            if isinstance(found, int) and found >= 0:
                return found
    return 0


def input_embeddings(model: Model) -> Any:
    """The module that embeds tokens, ``None`` where the model names none."""
    try:
        return model.hf.get_input_embeddings()
    except NotImplementedError:
        return None


def output_embeddings(model: Model) -> Any:
    """The unembedding, ``None`` where the model has none."""
    try:
        return model.hf.get_output_embeddings()
    except NotImplementedError:
        return None


def fewest_logits(model: Model) -> Literal["last", "all"]:
    """The least that a run can unembed: each prompt's last token, or all where the model has no unembedding."""
    return "all" if output_embeddings(model) is None else "last"


def takes(model: Model, keyword: str) -> bool:
    """Whether the model's forward has a parameter of that name."""
    return keyword in inspect.signature(type(model.hf).forward).parameters


def position_ids(model: Model, real: Tensor) -> Tensor | None:
    """``[batch, pos]`` positions counted over real tokens, where a left-padded causal model needs them.

    Right-padded prompts need none. Families that work positions out themselves (vision-language models with several
    axes) are left alone.
    """
    stack = model.stack()
    padded_left = not bool(real[:, 0].all())
    if not padded_left or stack.name != "text" or len(model.stacks) > 1 or not takes(model, "position_ids"):
        return None
    if not stack.causal:
        return None
    return (real.long().cumsum(-1) - 1).clamp(min=0)


def context_limit(model: Model) -> int | None:
    """The number of tokens that the default stack's context holds, ``None`` where the config sets no limit."""
    config = model.stack().config
    if hasattr(config, "relative_attention_num_buckets"):
        return None  # positions are relative (T5); what its config calls n_positions is the length trained on
    if model.default_stack.startswith(("vision", "audio")) or getattr(config, "alibi", False):
        return None
    for name in _LIMITS:
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
                return found - 1 - int(config.pad_token_id)  # its positions start after the padding index
            return found
    return None
