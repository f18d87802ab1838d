"""A plan: declared reads and edits resolved on one model, and refused where they cannot be, before any forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from interp.address import At, Site
from interp.edits.base import Edit
from interp.edits.groups import columns_of
from interp.errors import BadInput, Unsupported
from interp.model.reading import Reading
from interp.model.stacks import Stack, named_stack

Key = tuple[str, Site, int]  # stack, site, layer
ORDER = {  # of the sites within one block
    site: number
    for number, site in enumerate(
        [
            Site.RESID_PRE,
            Site.Q,
            Site.K,
            Site.V,
            Site.SCORES,
            Site.PATTERN,
            Site.Z,
            Site.RESULT,
            Site.ATTN_RAW,
            Site.ATTN_OUT,
            Site.RESID_MID,
            Site.RESID_CROSS,
            Site.MLP_OUT,
            Site.RESID_POST,
        ]
    )
}
_BETWEEN_PROMPTS = frozenset({"mean", "mean-self", "resample"})


@dataclass
class Wish:
    """What is wanted at one site of one layer."""

    edits: list[tuple[int, Edit, At]] = field(default_factory=list)
    reads: list[At] = field(default_factory=list)
    watches: list[At] = field(default_factory=list)


class Plan:
    """What is wanted where.

    Args:
        model: the handle.
        batch: the encoded prompts, or ``None`` for foreign code.
        edits: as declared or prepared.
        reads: addresses to record.
        gradients: whether what is read is differentiated.
        eager: ``(stack, layer)`` that must run the architecture's eager attention in any case.

    Attributes:
        wishes: what is wanted at each (stack, site, layer).
        readings: where what is read goes, one for each address.
        edit_layers: (number of the edit, address) -> its layers.
        eager: every ``(stack, layer)`` that must run the architecture's eager attention.

    Raises:
        BadInput: an address, value or position that cannot be.
    """

    def __init__(
        self,
        model: Any,
        batch: Any,
        edits: Sequence[Edit],
        reads: Sequence[At] = (),
        *,
        gradients: bool = False,
        eager: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.model, self.batch, self.gradients = model, batch, gradients
        self.edits = list(edits)
        self.wishes: dict[Key, Wish] = {}
        self.readings: list[Reading] = []
        self.edit_layers: dict[tuple[int, At], tuple[int, ...]] = {}
        self._plan(reads)
        self.eager = self._eager_layers(eager)

    def readings_of(self, key: Key) -> Iterator[Reading]:
        """The readings that what passes at ``key`` goes to."""
        name, site, layer = key
        wish = self.wishes.get(key)
        for reading in self.readings if wish and wish.reads else ():
            if reading.stack == name and reading.at.site is site and layer in reading.layers:
                yield reading

    def _plan(self, reads: Sequence[At]) -> None:
        for number, edit in enumerate(self.edits):
            for at in edit.at:
                stack, layers = self._resolve(at, edit=True)
                self.edit_layers[(number, at)] = layers
                if stack.family.packed and edit.name in _BETWEEN_PROMPTS:
                    raise Unsupported(
                        f"{edit} cannot be made on stack {stack.name!r}: it packs the rows of all images without a "
                        "batch axis, so prompts cannot be told apart there. Use patch or noise, or edit stack 'text'."
                    )
                for layer in layers:
                    self._wish(stack, at.site, layer).edits.append((number, edit, at))
                self._check_values(edit, at, stack, layers)
                for read in edit.reads:
                    self._watch(edit, at, layers, read)
        for at in reads:
            stack, layers = self._resolve(at, edit=False)
            if self.gradients:
                _refuse_gradient(at, stack)
            columns = None if at.pos is None else self._columns(at, stack)
            self.readings.append(Reading(at, stack.name, layers, columns))
            for layer in layers:
                self._wish(stack, at.site, layer).reads.append(at)

    def _resolve(self, at: At, *, edit: bool) -> tuple[Stack, tuple[int, ...]]:
        stack = named_stack(self.model.stacks, self.model.default_stack, at.stack)
        stack.require(at.site, edit=edit)
        if edit and stack.family.packed and at.site.inside_attention:
            raise Unsupported(
                f"{at.site!r} cannot be edited on stack {stack.name!r}: its attention runs once per image, rows packed "
                "without a batch axis. Edit Site.Z instead."
            )
        layers = stack.layers_of(at)
        if stack.cross and at.site in (Site.K, Site.V) and at.pos is not None:
            raise Unsupported(f"{at}: keys and values of cross-attention are the encoder's; leave pos= out there.")
        if not edit and at.heads is None and at.site.per_head and not isinstance(at.layer, int):
            widths = sorted({stack.width(at.site, layer) for layer in layers})
            if len(widths) > 1:
                raise BadInput(f"{at}: the layers have {widths} heads; read them one layer at a time (layer=int).")
        if isinstance(at.pos, str) and self.batch is None:
            raise BadInput(f"{at} names a span, but there is no batch to look it up in; pass batch=.")
        return stack, layers

    def _columns(self, at: At, stack: Stack) -> Tensor | None:
        return self.batch.columns(at.pos, stack=stack.name)

    def _wish(self, stack: Stack, site: Site, layer: int) -> Wish:
        return self.wishes.setdefault((stack.name, site, layer), Wish())

    def _check_values(self, edit: Edit, at: At, stack: Stack, layers: tuple[int, ...]) -> None:
        for layer in layers:
            width = stack.width(at.site, layer) if at.site.per_head else None
            sizes: dict[str, tuple[int, ...]] = {"layer": (len(layers),)}
            if width is not None:
                sizes["head"] = (len(at.heads) if at.heads is not None else width,)
            sizes |= stack.channels(at.site, layer)
            if self.batch is not None and not stack.family.packed:
                sizes |= self._lengths(at, stack)
            for value in edit.values:
                value.check(at, sizes)
        if self.batch is not None:
            rows, keys = self.batch.row_mask(stack.name), self.batch.key_mask(stack.name)
            for group, mask in ((at.pos, rows), *((g, rows) for g in edit.rows), *((g, keys) for g in edit.groups)):
                if mask is not None or isinstance(group, str):
                    width = 0 if mask is None else mask.shape[1]
                    columns_of(group, self.batch, width, self.batch.mask.device, mask=mask)

    def _lengths(self, at: At, stack: Stack) -> dict[str, tuple[int, ...]]:
        """Axis -> lengths that a value may have along it, for the axes that the batch knows."""
        found: dict[str, tuple[int, ...]] = {"batch": tuple(dict.fromkeys((len(self.batch), 1)))}
        rows, keys = self.batch.row_mask(stack.name), self.batch.key_mask(stack.name)
        if rows is not None and not (stack.cross and at.site in (Site.K, Site.V)):
            chosen: list[int] = []
            if isinstance(at.pos, Tensor):
                chosen = [at.pos.shape[1]]
            elif at.pos is not None:
                chosen = columns_of(at.pos, self.batch, rows.shape[1], rows.device, mask=rows).sum(-1).tolist()
                chosen = (
                    chosen[:1] if len(set(chosen)) == 1 else []
                )  # another number in each prompt: no one length fits
            found["pos"] = found["query"] = tuple(dict.fromkeys((rows.shape[1], *chosen, 1)))
        if keys is not None:
            found["key"] = (keys.shape[1],)
        return found

    def _watch(self, edit: Edit, at: At, layers: tuple[int, ...], read: At) -> None:
        stack, watched = self._resolve(read, edit=False)
        if stack.name == self._resolve(at, edit=True)[0].name:
            late = (watched[0], ORDER[read.site]) >= (min(layers), ORDER[at.site])
            if late:
                raise BadInput(f"{edit}: reads={read} comes later in the forward than {at}; read an earlier site.")
        wish = self._wish(stack, read.site, watched[0])
        if read not in wish.watches:
            wish.watches.append(read)

    def _eager_layers(self, forced: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        eager = {(name, layer) for name, layer in forced}
        for (name, site, layer), wish in self.wishes.items():
            if not site.inside_attention or not self.model.stacks[name].family.interface:
                continue
            maps = site in (Site.SCORES, Site.PATTERN)
            if wish.edits or (maps and (wish.watches or (self.gradients and wish.reads))):
                eager.add((name, layer))
        return eager


def _refuse_gradient(at: At, stack: Stack) -> None:
    fused = stack.config._attn_implementation != "eager"
    if at.site in (Site.SCORES, Site.PATTERN) and not stack.family.interface and fused:
        raise Unsupported(
            f"The gradient at {at.site!r} of stack {stack.name!r} cannot be had: its attention does not go through the "
            f"attention interface, and {stack.config._attn_implementation!r} computes no map that the output comes "
            "from. Load the model with attn_implementation='eager', or take the gradient at Site.Z."
        )
