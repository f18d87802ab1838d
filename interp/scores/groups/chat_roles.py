"""Which tokens of a chat belong to which role, found by rendering the chat template with marks in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.handle import Model

_MARK = "\u2063\u2064mark\u2064\u2063"  # in no prompt, and no template strips it


def role_spans(
    model: Model, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], messages: Sequence[Any]
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Role -> ``[batch, pos]`` the tokens of its texts; ``template`` -> those that the chat template added.

    A text is found where a mark put in its place shows in the rendered chat, so that templates which merge or move
    messages are read right.

    Args:
        model: with a tokenizer that has a chat template and character offsets.
        ids: the prompts' token ids.
        mask: real tokens.
        messages: one chat, or one per prompt: ``{"role", "content"}`` with text content.

    Raises:
        BadInput: the chats are not those of the prompts, a content that is no text or that the template changes, or a
            tokenizer without template or offsets.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "chat_template", None) or not getattr(tokenizer, "is_fast", False):
        raise BadInput(
            "token_groups: messages= needs a fast tokenizer with a chat template; name spans by ranges instead."
        )
    chats = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
    if len(chats) != len(ids):
        raise BadInput(f"token_groups: {len(chats)} chats for {len(ids)} prompts; give one each, in order.")
    roles = list(dict.fromkeys(str(message["role"]) for chat in chats for message in chat))
    made = {role: torch.zeros_like(mask) for role in [*roles, "template"]}
    for row, chat in enumerate(chats):
        text = _rendered(tokenizer, chat)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        columns = mask[row].nonzero()[:, 0]
        if encoded["input_ids"] != ids[row, columns].tolist():
            raise BadInput(
                f"token_groups: chat {row} renders to other tokens than prompt {row} has; give the messages that the "
                "batch was encoded from."
            )
        owner = ["template"] * len(columns)
        for index, message in enumerate(chat):
            start, end = _place(tokenizer, chat, index, text, row)
            for token, (left, right) in enumerate(encoded["offset_mapping"]):
                if left < end and right > start and right > left:
                    owner[token] = str(message["role"])
        for token, role in enumerate(owner):
            made[role][row, columns[token]] = True
    return made


def _place(tokenizer: Any, chat: Sequence[Mapping[str, Any]], index: int, text: str, row: int) -> tuple[int, int]:
    content = chat[index].get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadInput(
            f"token_groups: message {index} of chat {row} has the content {content!r}; expected a text. For other "
            "content name spans by ranges of positions."
        )
    marked = [dict(message) for message in chat]
    marked[index]["content"] = _MARK
    start = _rendered(tokenizer, marked).find(_MARK)
    for shown in (content, content.strip()):
        if start >= 0 and text.startswith(shown, start):
            return start, start + len(shown)
    raise BadInput(
        f"token_groups: the chat template changes or leaves out message {index} of chat {row} ({content[:40]!r}); name "
        "spans by ranges of positions."
    )


def _rendered(tokenizer: Any, chat: Sequence[Mapping[str, Any]]) -> str:
    return tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=False)
