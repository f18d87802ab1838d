"""Batches: texts, ids, chats, images and ready inputs, as the keywords of one forward, with answers and positions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.edits.groups import Group, columns_of
from interp.errors import BadAddress, BadInput

_SHAPES_ONLY = frozenset({"attention_mask", "decoder_attention_mask", "position_ids", "cache_position"})


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts as a model takes them. ``hf(**batch.inputs)`` is the plain model that every exactness claim is about.

    Attributes:
        inputs: keywords of the model's forward.
        mask: ``[batch, pos]`` True at real tokens of the default stack.
        ids: ``[batch, pos]`` token ids of the default stack, ``None`` where it has none.
        read_at: ``[batch]`` column whose logits predict the answer.
        answers: ``[batch, k]`` token (or class) ids, the right one first; -1 where a prompt has fewer; ``None``
            without.
        spans: name -> ``[batch, pos]`` True at the span's tokens.
        tokens: per prompt, its real tokens as text.
        texts: the prompts as given, where they were texts.
        encoder_mask: ``[batch, pos]`` of the encoder's tokens in an encoder-decoder.
        bos: the BOS id, where the tokenizer has one.
        padding_side: ``"left"`` or ``"right"``.
    """

    inputs: dict[str, Any]
    mask: Bool[Tensor, "batch pos"]
    ids: Int[Tensor, "batch pos"] | None
    read_at: Int[Tensor, " batch"]
    answers: Int[Tensor, "batch k"] | None = None
    spans: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: tuple[tuple[str, ...], ...] = ()
    texts: tuple[str, ...] = ()
    encoder_mask: Tensor | None = None
    bos: int | None = None
    padding_side: str = "right"
    default_stack: str = "text"

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        """Columns of the padded batch."""
        return self.mask.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each prompt."""
        return self.mask.sum(-1).tolist()

    def row_mask(self, stack: str | None) -> Tensor | None:
        """``[batch, pos]`` real tokens of a stack's rows, ``None`` where nothing is padded or known."""
        if self.default_stack.startswith(("vision", "audio")):
            return None
        if stack is None or stack == self.default_stack or stack.startswith("cross"):
            return self.mask
        return self.encoder_mask if stack == "encoder" else None

    def key_mask(self, stack: str | None) -> Tensor | None:
        """``[batch, pos]`` real tokens among a stack's keys: the encoder's for cross-attention, else its rows'."""
        return self.encoder_mask if stack is not None and stack.startswith("cross") else self.row_mask(stack)

    @cached_property
    def content_keys(self) -> Int[Tensor, " batch"]:
        """``[batch]`` a 64-bit number per prompt that depends on its content, and not on padding or order."""
        return torch.tensor([self._content_key(row) for row in range(len(self))])

    def _content_key(self, row: int) -> int:
        digest = hashlib.blake2b(digest_size=8)
        for name in sorted(self.inputs):
            value = self.inputs[name]
            if name in _SHAPES_ONLY or not isinstance(value, Tensor) or value.shape[:1] != (len(self),):
                continue
            own = value[row].detach().cpu()
            for mask in (self.mask, self.encoder_mask):
                if mask is not None and not own.is_floating_point() and own.shape == mask.shape[1:]:
                    own = own[mask[row].cpu()]
                    break
            digest.update(f"{name}{list(own.shape)}".encode() + own.double().numpy().tobytes())
        return int.from_bytes(digest.digest(), "little", signed=True)

    def columns(self, pos: Group, stack: str | None = None) -> Int[Tensor, "batch k"]:
        """``[batch, k]`` columns that ``pos`` means, in order.

        Raises:
            BadAddress: outside a prompt, or another number of positions in different prompts.
        """
        mask = self.row_mask(stack)
        if isinstance(pos, Tensor) and pos.dtype != torch.bool:
            width = int(pos.max()) + 1 if mask is None and pos.numel() else self._width(stack)
            columns_of(pos, self, width, pos.device, mask=mask)  # refuses what lies outside
            if pos.shape[0] not in (1, len(self)):
                raise BadAddress(f"Columns of shape {list(pos.shape)} were given, expected [batch={len(self)}, k].")
            return pos.expand(len(self), -1)
        if mask is None and isinstance(pos, int | slice):
            raise BadAddress(
                f"pos={pos!r} needs the number of positions of stack {stack!r}; give a LongTensor [batch, k]."
            )
        member = columns_of(pos, self, self._width(stack), self.mask.device, mask=mask)
        counts = member.sum(-1)
        if int(counts.min()) != int(counts.max()):
            raise BadAddress(
                f"pos={pos!r} means {sorted(set(counts.tolist()))} positions in different prompts; a read needs the "
                "same number in each. Use prompts of one length, a span of one length, or columns [batch, k]."
            )
        if int(counts[0]) == 0:
            raise BadAddress(f"pos={pos!r} means no position at all.")
        return member.nonzero()[:, 1].view(len(self), -1)

    def _width(self, stack: str | None) -> int:
        mask = self.row_mask(stack)
        return self.width if mask is None else mask.shape[1]

    def select(self, indices: Sequence[int] | Tensor | slice) -> Batch:
        """The prompts at ``indices``, in that order (repeats allowed); padding stays as it is."""
        index = torch.arange(len(self))[indices] if isinstance(indices, slice) else torch.as_tensor(indices)
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point() or not index.numel():
            raise BadInput(
                f"select: {indices!r}; expected a slice or a list of prompt indices that names at least one."
            )
        if int(index.min()) < -len(self) or int(index.max()) >= len(self):
            raise BadInput(
                f"select: prompts {int(index.min())} to {int(index.max())} of {len(self)}; "
                f"they are 0 to {len(self) - 1}."
            )
        index = (index.long() % len(self)).to(self.mask.device)

        def pick(value: Any, axis: int = 0) -> Any:
            if isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == len(self):
                return value.index_select(axis, index.to(value.device))
            return value

        def axis_of(name: str, value: Any) -> int:
            return 1 if name == "position_ids" and isinstance(value, Tensor) and value.ndim == 3 else 0  # noqa: PLR2004

        loose = [
            name
            for name, value in self.inputs.items()
            if isinstance(value, Tensor)
            and value.ndim
            and value.shape[axis_of(name, value)] != len(self)
            and name != "cache_position"
        ]
        if loose and index.tolist() != list(range(len(self))):
            raise BadInput(
                f"select: the inputs {loose} have no prompt axis (images packed one after the other), so prompts "
                "cannot be taken apart; encode the chosen prompts again."
            )
        listed = index.tolist()
        return Batch(
            inputs={name: pick(value, axis_of(name, value)) for name, value in self.inputs.items()},
            mask=pick(self.mask),
            ids=pick(self.ids),
            read_at=pick(self.read_at),
            answers=pick(self.answers),
            spans={name: pick(value) for name, value in self.spans.items()},
            tokens=tuple(self.tokens[i] for i in listed) if self.tokens else (),
            texts=tuple(self.texts[i] for i in listed) if self.texts else (),
            encoder_mask=pick(self.encoder_mask),
            bos=self.bos,
            padding_side=self.padding_side,
            default_stack=self.default_stack,
        )

    def __repr__(self) -> str:
        what = ", ".join(sorted(self.inputs))
        answers = "" if self.answers is None else f", answers [{len(self)}, {self.answers.shape[1]}]"
        spans = f", spans {sorted(self.spans)}" if self.spans else ""
        return f"Batch({len(self)} prompts of {min(self.lengths)}-{max(self.lengths)} tokens; {what}{answers}{spans})"
