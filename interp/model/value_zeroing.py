"""How far each token's state after a block moves when one token's value is 0 there, the map kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from interp.address import Site
from interp.errors import RunFailed, Unsupported
from interp.model.attention import AttentionCall, attached
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.recording import first_of
from interp.model.run import run
from interp.model.scopes import evaluating, removing, switched
from interp.model.stacks import Stack
from interp.model.sweep import tokens_at_once


@dataclass(eq=False)
class BlockCalls:
    """What each block of a stack was given and gave in one forward, to be run again.

    Attributes:
        model: the handle.
        batch: the prompts.
        stack: whose blocks.
        calls: block index -> positional arguments, keywords, output.
    """

    model: Model
    batch: Batch
    stack: Stack
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = field(default_factory=dict)

    def distances(self, layer: int) -> Float[Tensor, "batch query key"]:
        """``1 - cos(x_i, x_i without value j)`` of the states after a block, for every query i and key j, in float64.

        The value of key j is 0 in all heads, the map is that of the run. One block forward per key, several at once.

        Args:
            layer: block index.
        """
        args, kwargs, output = self.calls[layer]
        size, length = output.shape[:2]
        at_once = max(1, tokens_at_once(self.model) // (size * length))
        parts = []
        with ExitStack() as guard:
            guard.enter_context(evaluating(self.model.hf))
            guard.enter_context(torch.no_grad())
            guard.enter_context(switched(self.stack))
            for keys in torch.arange(length).split(at_once):
                zeroing = _ZeroedValues(keys, size)
                with attached(self.stack.layer(layer).attention, zeroing):
                    made = first_of(
                        self.stack.blocks[layer](
                            *(_copies(value, len(keys), size) for value in args),
                            **{name: _copies(value, len(keys), size) for name, value in kwargs.items()},
                        )
                    )
                if made is None or not zeroing.fired:
                    raise RunFailed(f"Block {layer} of stack {self.stack.name!r} never reached its values.")
                changed = made.double().view(len(keys), *output.shape)
                cosine = torch.nn.functional.cosine_similarity(changed, output.double()[None], dim=-1)
                parts.append((1 - cosine).clamp(min=0).permute(1, 2, 0))
        return torch.cat(parts, dim=-1)


def record_blocks(model: Model, batch: Batch, stack: Stack) -> BlockCalls:
    """What each block of ``stack`` was given and gave in one forward of ``batch``.

    Args:
        model: the handle.
        batch: the prompts.
        stack: whose blocks; its values can be edited.

    Raises:
        Unsupported: values that cannot be edited, rows without a batch axis, or blocks with cross-attention.
    """
    stack.require(Site.V, edit=True)
    if stack.family.packed:
        raise Unsupported(
            f"Stack {stack.name!r} packs the rows of all images, so that its blocks hold no prompt apart."
        )
    if stack.family.cross is not None and stack.name.replace("decoder", "cross", 1) in model.stacks:
        raise Unsupported(
            f"The blocks of stack {stack.name!r} read the encoder as well, whose values are other tokens'; value "
            "zeroing is made for blocks with self-attention alone. Trace stack='encoder', or use 'alti'."
        )
    made = BlockCalls(model, batch, stack)
    with ExitStack() as guard:
        guard.enter_context(switched(stack))
        for layer in range(stack.n_layers):
            if stack.n_heads(layer):
                guard.enter_context(_kept_calls(made, layer))
        run(model, batch, logits=fewest_logits(model))
    return made


def _kept_calls(made: BlockCalls, layer: int) -> ExitStack:
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((tuple(_held(value) for value in args), {name: _held(value) for name, value in kwargs.items()}))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        first = first_of(output)
        assert first is not None
        args, kwargs = given.pop()
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        made.calls[layer] = (args, kwargs, first.detach().clone())

    guard = ExitStack()
    block = made.stack.blocks[layer]
    guard.enter_context(removing(block.register_forward_pre_hook(enter, with_kwargs=True)))
    guard.enter_context(removing(block.register_forward_hook(leave)))
    return guard


def _held(value: Any) -> Any:
    if isinstance(value, transformers.Cache):  # it holds the recorded forward's keys, which come anew
        return None
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copies(value: Any, copies: int, batch: int) -> Any:
    """``value`` for some copies of the batch; what has no batch axis stays as it is."""
    if isinstance(value, tuple | list):
        return type(value)(_copies(part, copies, batch) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != batch:  # noqa: PLR2004 - [batch, ...]
        return value
    return value.repeat(copies, *[1] * (value.ndim - 1))


class _ZeroedValues:
    """Sets the value of another key to 0 in each copy of the batch; an attention tap."""

    eager = False
    on_path = False

    def __init__(self, keys: Tensor, size: int) -> None:
        self.keys, self.size = keys, size
        self.fired = False

    def vectors(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k as they are, v with one key blank per copy."""
        made = v.clone().view(len(self.keys), self.size, *v.shape[1:])
        for copy, key in enumerate(self.keys.tolist()):
            made[copy, :, :, key] = 0
        self.fired = True
        return q, k, made.view_as(v)

    def rows(self) -> Iterator[Tensor | None]:
        """No map is read."""
        yield from ()

    def look(self, call: AttentionCall) -> None:
        """Nothing is read."""

    def scores(self, scores: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """As they are."""
        return scores

    def pattern(self, pattern: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """As it is."""
        return pattern
