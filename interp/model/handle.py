"""The handle of a loaded model: the Hugging Face object as it is, with names for its stacks and heads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers

from interp.address import Head
from interp.model.stacks import Stack, heads_of, named_stack

if TYPE_CHECKING:
    from interp.model.card import Card
    from interp.model.licence import Licence
    from interp.model.shared_reads import SharedReads
    from interp.model.wiring import StackWiring


@dataclass(frozen=True, eq=False)
class Model:
    """A pretrained transformer, wrapped in place: no weight is copied, folded or re-implemented.

    Attributes:
        hf: the Hugging Face object.
        tokenizer: its tokenizer, or ``None``.
        processor: its processor (images, audio), or ``None``.
        card: what can be read and edited on this very checkpoint, as found by behaviour at load.
        stacks: name -> :class:`Stack`.
        default_stack: the stack that makes the logits.
        name: what it was loaded as.
        licences: what of a forward may be left out, as found by trying it; see :func:`interp.sweep`.
        wirings: stack -> which entries of its projections become q, k and v, as found by trying it.
        reads: what was read of the weights, while a scoring shares it; see :mod:`interp.model.shared_reads`.
    """

    hf: transformers.PreTrainedModel
    tokenizer: Any
    processor: Any
    stacks: Mapping[str, Stack]
    default_stack: str
    name: str
    card: Card
    licences: dict[Hashable, Licence] = field(default_factory=dict, repr=False)
    wirings: dict[str, StackWiring] = field(default_factory=dict, repr=False)
    reads: list[SharedReads] = field(default_factory=list, repr=False)

    def heads(self, stack: str | None = None) -> list[Head]:
        """Every head of ``stack`` (the default one for ``None``), layer by layer."""
        return heads_of(self.stacks, self.default_stack, stack)

    def stack(self, name: str | None = None) -> Stack:
        """The stack called ``name``, the default one for ``None``.

        Raises:
            BadAddress: no such stack.
        """
        return named_stack(self.stacks, self.default_stack, name)

    def owner(self, stack: Stack) -> transformers.PreTrainedModel:
        """The nearest pretrained model around the blocks of ``stack``."""
        parts = stack.path.split(".")
        for end in range(len(parts) - 1, -1, -1):
            found = self.hf.get_submodule(".".join(parts[:end]))
            if isinstance(found, transformers.PreTrainedModel):
                return found
        return self.hf

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters."""
        return self.hf.dtype

    def __repr__(self) -> str:
        parts = [
            f"{name}: {stack.n_layers} layers x {max(map(stack.n_heads, range(stack.n_layers)), default=0)} heads"
            for name, stack in self.stacks.items()
        ]
        return f"Model({self.name!r}, {type(self.hf).__name__}, {'; '.join(parts)}, {self.dtype}, {self.device})"
