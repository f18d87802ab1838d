"""A recording: what one unedited forward left at every block, so that blocks below an edit need not run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import takes
from interp.model.scopes import evaluating, removing
from interp.model.stacks import Layer
from interp.model.unembedding import logits_of, unembedding


class BlockId(NamedTuple):
    """One block: the stack whose self-attention it holds, and its index there."""

    stack: str
    number: int


@dataclass(eq=False)
class Recording:
    """What one unedited forward of a batch left at every block.

    Attributes:
        batch: the prompts.
        order: the blocks in the order in which they were called.
        outputs: what each block gave, as it gave it.
        attention: what each block's attention module gave, as it gave it.
        z: the input of each attention's output projection.
        logits: at the positions asked for.
        cache: the keys and values that the model kept, where it was asked to.
    """

    batch: Batch
    order: tuple[BlockId, ...] = ()
    outputs: dict[BlockId, Any] = field(default_factory=dict)
    attention: dict[BlockId, Any] = field(default_factory=dict)
    z: dict[BlockId, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    cache: Any = None

    @property
    def complete(self) -> bool:
        """Whether every block ran exactly once and gave what can be given again."""
        once = len(set(self.order)) == len(self.order)
        return bool(self.order) and once and all(first_of(output) is not None for output in self.outputs.values())


def blocks_of(model: Model) -> dict[BlockId, nn.Module]:
    """Every block once, by the stack of its self-attention."""
    found: dict[BlockId, nn.Module] = {}
    for name, stack in model.stacks.items():
        if not stack.cross:
            found |= {BlockId(name, index): block for index, block in enumerate(stack.blocks)}
    return found


def attention_at(model: Model, place: BlockId) -> Layer | None:
    """The self-attention of a block, ``None`` where it has none."""
    return model.stacks[place.stack].layers[place.number]


def record(model: Model, batch: Batch, positions: Tensor | None, *, cache: bool = False) -> Recording:
    """A recording of one unedited forward of ``batch``.

    Args:
        model: the handle.
        batch: the prompts.
        positions: ``[batch, k]`` columns to unembed, ``None`` for all.
        cache: keep keys and values.
    """
    made = Recording(batch)
    order: list[BlockId] = []
    with ExitStack() as guard:
        for place, block in blocks_of(model).items():
            guard.enter_context(_watching(made, order, model, place, block))
        guard.enter_context(evaluating(model.hf))
        guard.enter_context(torch.no_grad())
        guard.enter_context(unembedding(model, positions, []))
        output = model.hf(**{**batch.inputs, **caching(model, cache)})
    made.order = tuple(order)
    made.logits = logits_of(output)
    made.cache = getattr(output, "past_key_values", None) if cache else None
    return made


def caching(model: Model, wanted: bool) -> Mapping[str, bool]:
    """The keyword that asks the model's forward for its keys and values, or not; empty where it takes none."""
    return {"use_cache": wanted} if takes(model, "use_cache") else {}


@contextmanager
def _watching(made: Recording, order: list[BlockId], model: Model, place: BlockId, block: nn.Module) -> Iterator[None]:
    def ran(module: nn.Module, args: Any, output: Any) -> None:
        order.append(place)
        made.outputs[place] = kept(output)

    def attended(module: nn.Module, args: Any, output: Any) -> None:
        made.attention[place] = output

    def projected(module: nn.Module, args: tuple[Any, ...]) -> None:
        made.z[place] = args[0]

    with ExitStack() as guard:
        guard.enter_context(removing(block.register_forward_hook(ran)))
        layer = attention_at(model, place)
        if layer is not None:
            guard.enter_context(removing(layer.attention.register_forward_hook(attended)))
            guard.enter_context(removing(layer.out.register_forward_pre_hook(projected)))
        yield


def first_of(output: Any) -> Tensor | None:
    """The hidden states among what a block or attention gave, ``None`` where they are not understood."""
    found = output[0] if isinstance(output, tuple | list) and output else output
    return found if isinstance(found, Tensor) else None


def with_first(output: Any, first: Tensor) -> Any:
    """``output`` with other hidden states."""
    if isinstance(output, Tensor):
        return first
    return type(output)([first, *output[1:]]) if isinstance(output, list) else (first, *output[1:])


def kept(output: Any) -> Any:
    """``output`` with hidden states of its own: later arithmetic in place does not reach them."""
    first = first_of(output)
    return output if first is None else with_first(output, first.clone())


def tiled(value: Any, copies: int, batch: int) -> Any:
    """``value`` for ``copies`` copies of the batch, one after the other; what has no batch axis stays as it is."""
    if isinstance(value, tuple | list):
        return type(value)(tiled(part, copies, batch) for part in value)
    if copies == 1 or not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] % batch or not len(value):
        return value
    return value.repeat(copies, *[1] * (value.ndim - 1))
