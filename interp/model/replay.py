"""Replay: a forward of several copies of a recorded batch that runs only what an edit can change.

The model's own forward is called, with some of its modules' ``forward`` replaced for the moment: a block below the
first edited one gives what it gave in the recording; an attention of which only z is edited gives its projection of
the recorded z; the last block goes on, after its attention, with the positions that are read. Masks, position
embeddings, the final norm and the unembedding stay the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import RunFailed
from interp.model.handle import Model
from interp.model.recording import (
    BlockId,
    Recording,
    attention_at,
    blocks_of,
    caching,
    first_of,
    tiled,
    with_first,
)
from interp.model.scopes import Reached, evaluating, hidden_among, removing, replaced_forward
from interp.model.stacks import Layer
from interp.model.unembedding import logits_of, unembedding


@dataclass(frozen=True)
class Suffix:
    """What of a forward is run again.

    Attributes:
        start: how many blocks, in the order of the recording, are not run.
        copies: copies of the batch, one after the other.
        from_z: the first block that runs takes its z from the recording.
        changed: ``(first, last)`` columns at which z of that block may have been edited, ``None`` for any.
        column: the first column that runs; what is to the left comes from the recorded keys and values.
        read: ``[batch, k]`` the columns that are unembedded, ``None`` for all.
        narrow: the last block goes on with the read columns alone.
    """

    start: int = 0
    copies: int = 1
    from_z: bool = False
    changed: tuple[int, int] | None = None
    column: int = 0
    read: Tensor | None = None
    narrow: bool = False


def replay(model: Model, recording: Recording, suffix: Suffix) -> Tensor | None:
    """The logits of ``suffix.copies`` copies of the recorded batch, ``[copies * batch, k, vocab]``.

    Hooks in force on the modules that run see and edit what they would in a whole forward.
    """
    size = len(recording.batch)
    positions = None if suffix.read is None else (suffix.read - suffix.column).repeat(suffix.copies, 1)
    inputs = _inputs(model, recording, suffix)
    with ExitStack() as guard:
        guard.enter_context(evaluating(model.hf))
        guard.enter_context(torch.no_grad())
        guard.enter_context(unembedding(model, positions, []))
        blocks = blocks_of(model)
        for number, place in enumerate(recording.order):
            block = blocks[place]
            last = number == len(recording.order) - 1
            if number < suffix.start:
                needed = (
                    number + 1 == suffix.start or place.stack != model.default_stack or _ends_stack(recording, number)
                )
                guard.enter_context(replaced_forward(block, _given(recording, place, suffix, size, needed)))
            elif (last and suffix.narrow) or (number == suffix.start and suffix.from_z and suffix.changed is not None):
                held = number == suffix.start and suffix.from_z
                run = _Narrowed(model, recording, place, suffix, held, reading=last and suffix.narrow)
                guard.enter_context(replaced_forward(block, run))
            elif number == suffix.start and suffix.from_z:
                layer = attention_at(model, place)
                assert layer is not None, place
                guard.enter_context(replaced_forward(layer.attention, _projecting(recording, place, layer, suffix)))
        output = model.hf(**inputs)
    return logits_of(output)


def _ends_stack(recording: Recording, number: int) -> bool:
    order = recording.order
    return number + 1 == len(order) or order[number + 1].stack != order[number].stack


def _inputs(model: Model, recording: Recording, suffix: Suffix) -> dict[str, Any]:
    size = len(recording.batch)
    if suffix.copies == 1:
        inputs = dict(recording.batch.inputs)
    else:
        inputs = recording.batch.select(list(range(size)) * suffix.copies).inputs
    if not suffix.column:
        return {**inputs, **caching(model, False)}
    for name in ("input_ids", "position_ids"):
        if name in inputs:
            inputs[name] = inputs[name][:, suffix.column :]
    return {**inputs, "past_key_values": _prefix(recording, suffix), **caching(model, True)}


def _prefix(recording: Recording, suffix: Suffix) -> Any:
    """The recorded keys and values left of ``suffix.column``; tiled for the blocks that run."""
    from transformers import DynamicCache

    made = DynamicCache()
    for index, layer in enumerate(recording.cache.layers):
        keys, values = (part[:, :, : suffix.column] for part in (layer.keys, layer.values))
        if index >= suffix.start:
            keys, values = (tiled(part, suffix.copies, len(recording.batch)) for part in (keys, values))
        made.update(keys, values, index)
    return made


def _given(recording: Recording, place: BlockId, suffix: Suffix, size: int, needed: bool) -> Callable[..., Any]:
    """The forward of a block that is not run: what it gave (or, where nobody looks, what it is given)."""
    output = recording.outputs[place]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if needed:
            first = first_of(output)
            assert first is not None
            fresh = (
                tiled(_right(first, suffix), suffix.copies, size)
                if suffix.copies > 1
                else _right(first, suffix).clone()
            )
            return with_first(tiled(output, suffix.copies, size), fresh)  # written to by later arithmetic in place
        return with_first(output, hidden_among(args, kwargs)[0])

    return forward


def _right(tensor: Tensor, suffix: Suffix) -> Tensor:
    """The columns that run."""
    return tensor[:, suffix.column :] if suffix.column else tensor


def _inside(layer: Layer) -> bool:
    """Whether the output projection is a part of the attention module."""
    return any(module is layer.out for module in layer.attention.modules())


def _projecting(recording: Recording, place: BlockId, layer: Layer, suffix: Suffix) -> Callable[..., Any]:
    """The forward of an attention whose z is known: its projection of the recorded z, edited on the way in."""
    output, size = recording.attention[place], len(recording.batch)

    def forward(*args: Any, **kwargs: Any) -> Any:
        z = tiled(_right(recording.z[place], suffix), suffix.copies, size)
        first = layer.out(z) if _inside(layer) else z
        return with_first(tiled(output, suffix.copies, size), first)

    return forward


class _Narrowed:
    """The forward of a block that goes on, after its attention, with some columns alone.

    Where it is the last block, these are the columns that are read. Where its z is the recorded one, edited at some
    columns, they are those columns, and the others give what they gave.
    """

    def __init__(
        self, model: Model, recording: Recording, place: BlockId, suffix: Suffix, held: bool, *, reading: bool
    ) -> None:
        layer = attention_at(model, place)
        assert layer is not None, place
        self.block = blocks_of(model)[place]
        self.layer, self.recording, self.place, self.suffix = layer, recording, place, suffix
        self.held, self.reading = held, reading
        self.own = self.block.forward

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        suffix, size = self.suffix, len(self.recording.batch)
        z = self._z(hidden, args, kwargs)
        columns = self._columns(hidden)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        if z.ndim == 2:  # noqa: PLR2004 - rows of all prompts, one after the other
            z = z.unflatten(0, hidden.shape[:2])
        chosen = z[rows, columns]
        rest = tiled(self.recording.attention[self.place], suffix.copies, size)

        def attend(*_: Any, **__: Any) -> Any:
            return with_first(rest, self.layer.out.forward(chosen))  # not the call: z has been edited already

        with replaced_forward(self.layer.attention, attend):
            output = self.own(hidden[rows, columns], *args, **kwargs)
        first = first_of(output)
        # where only read columns go on, nobody looks at the others; elsewhere they give what they gave
        base = hidden.clone() if self.reading else first_of(_given(self.recording, self.place, suffix, size, True)())
        assert first is not None and base is not None
        base[rows, columns] = first
        return with_first(output, base)

    def _z(self, hidden: Tensor, args: Any, kwargs: Any) -> Tensor:
        """z after the edits: what reaches the output projection."""

        def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise Reached(inputs[0])

        with ExitStack() as guard:
            guard.enter_context(removing(self.layer.out.register_forward_pre_hook(stop)))
            if self.held:
                z = tiled(
                    _right(self.recording.z[self.place], self.suffix), self.suffix.copies, len(self.recording.batch)
                )
                run: Callable[[], Any] = lambda: self.layer.out(z)  # noqa: E731
            else:
                run = lambda: self.own(hidden, *args, **kwargs)  # noqa: E731
            try:
                run()
            except Reached as reached:
                return reached.z
        raise RunFailed(f"Block {self.place.number} of stack {self.place.stack!r} never reached its output projection.")

    def _columns(self, hidden: Tensor) -> Tensor:
        suffix = self.suffix
        if self.reading:
            assert suffix.read is not None
            return (suffix.read - suffix.column).repeat(suffix.copies, 1).to(hidden.device)
        assert suffix.changed is not None
        first, last = suffix.changed
        return torch.arange(first - suffix.column, last + 1 - suffix.column, device=hidden.device)[None]
