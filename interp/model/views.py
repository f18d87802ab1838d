"""How a run is asked for what it read: exact addresses, narrower ones as slices, wider ones refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadAddress, BadInput
from interp.model.lens import rotates
from interp.model.reading import Reading, select
from interp.model.stacks import Stack, named_stack


def at_door(item: At | Site | str, model: Any) -> At:
    """``item`` as an address of ``model``.

    Raises:
        BadAddress: not an address, or a hook name that means another tensor on this model.
    """
    at = At.parse(item)
    if isinstance(item, str) and item.endswith(("hook_q", "hook_k")):
        if rotates(named_stack(model.stacks, model.default_stack, at.stack).config):
            raise BadAddress(
                f"{item!r} names the tensor before the rotary embedding, which is not offered; Site.{at.site.name} is "
                f"after it, as {item.replace('hook_', 'hook_rot_')!r}."
            )
    return at


@dataclass(frozen=True, eq=False)
class Readings:
    """What the addresses of one run saw."""

    readings: Sequence[Reading]
    stacks: Mapping[str, Stack]
    detach: bool = True
    batch: Any = None

    def __getitem__(self, item: At | Site | str) -> Tensor:
        at = At.parse(item)
        refusals: list[str] = []
        for reading in self.readings:
            made = self._slice(reading, at, refusals)
            if made is not None:
                return made
        read = ", ".join(map(repr, (reading.at for reading in self.readings))) or "nothing"
        raise KeyError(f"{at} was not read. Read: {read}. Add it to read=[...].{' '.join(['', *refusals])}")

    def __contains__(self, item: At | Site | str) -> bool:
        try:
            self[item]
        except KeyError:
            return False
        return True

    def by_layer(self) -> Iterator[tuple[At, Tensor]]:
        """``(At with an int layer, tensor)`` for everything that was read."""
        for reading in self.readings:
            for layer in reading.layers:
                yield reading.at.with_(layer=layer), self._value(reading, layer)

    def _value(self, reading: Reading, layer: int) -> Tensor:
        value = reading.values[layer]
        return value.detach() if self.detach else value

    def _slice(self, reading: Reading, at: At, refusals: list[str]) -> Tensor | None:
        own = reading.at
        if own.site is not at.site or not self._same_stack(reading, at.stack):
            return None
        layers = at.layers if at.layers is not None else (reading.layers if own.layers is None else None)
        if layers is None or not set(layers) <= set(reading.layers):
            return None
        heads = self._heads(reading, at, layers)
        columns = self._columns(reading, at)
        if heads is None or columns is False:
            return None
        parts = [select(self._value(reading, layer), at.site, tuple(heads) or None, None) for layer in layers]
        if isinstance(columns, Tensor):
            parts = [select(part, at.site, None, columns) for part in parts]
        if isinstance(at.layer, int):
            return parts[0]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1:
            raise BadInput(
                f"{at}: the layers have unequal shapes {sorted(shapes)}; index one layer at a time (layer=int)."
            )
        return torch.stack(parts)

    def _same_stack(self, reading: Reading, stack: str | None) -> bool:
        return (stack or self.batch.default_stack) == reading.stack

    def _heads(self, reading: Reading, at: At, layers: Sequence[int]) -> Sequence[int] | None:
        """Where the asked heads are among those read; empty for all of them, ``None`` where some are missing."""
        own = reading.at
        if own.heads == at.heads:
            return ()
        if own.heads is None:
            if at.heads is None:
                return ()
            axis = own.site.axes.index("head")
            narrowest = min(reading.values[layer].shape[axis] for layer in layers)
            return at.heads if 0 <= min(at.heads) and max(at.heads) < narrowest else None
        if at.heads is None or not set(at.heads) <= set(own.heads):
            return None
        return [own.heads.index(head) for head in at.heads]

    def _columns(self, reading: Reading, at: At) -> Tensor | bool:
        """Where the asked columns are among those read; ``True`` for all of them, ``False`` where some are missing."""
        own = reading.at
        if own.with_(layer=None, heads=None, stack=None) == at.with_(layer=None, heads=None, stack=None):
            return True
        if at.pos is None:
            return False
        asked = self.batch.columns(at.pos, stack=reading.stack)
        if reading.columns is None:
            return asked
        match = asked[:, :, None] == reading.columns[:, None, :].to(asked.device)
        return match.float().argmax(-1) if bool(match.any(-1).all()) else False
