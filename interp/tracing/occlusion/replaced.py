"""Tokens in whose place another token stands, and patches in whose place the image is even, empty or blurred."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import BadInput, HeadscopeError
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.image_tokens import image_token_ids
from interp.model.inputs import input_embeddings
from interp.names import unknown
from interp.scores.grids.grid import Given, PatchGrid, patch_grid
from interp.tracing.ask import TraceAsk
from interp.tracing.occlusion.frames import SoundFrames, sound_frames
from interp.tracing.occlusion.pixels import Fill, PatchPixels, check_fill, patch_pixels

_NAMED = ("mask", "unk", "pad")
Replacement = int | str | None


@dataclass(frozen=True, eq=False)
class Replaced:
    """How sources are replaced.

    Attributes:
        keyword: the input that holds the stack's token ids, None where it has none.
        own: whether those are the ids of the default stack.
        token: the id that is put in.
        patches: how patches (or frames of a sound) are covered, None without images.
        cells: ``[batch, source]`` the patch (or frame) that each source is, -1 where it is none.
        possible: ``[batch, source]`` what can be replaced at all.
        about: what a reader should know.
    """

    keyword: str | None
    own: bool
    token: int | None
    patches: PatchPixels | SoundFrames | None
    cells: Int[Tensor, "batch source"] | None
    possible: Bool[Tensor, "batch source"]
    about: dict[str, Any]

    def change(self, batch: Batch, members: Tensor) -> Generator[tuple[Tensor, Batch], None, None]:
        """``batch`` with the sources at ``members`` replaced."""
        inputs, ids = dict(batch.inputs), batch.ids
        cells = self.cells
        if self.keyword is not None and self.token is not None:
            old = inputs[self.keyword]
            words = members.to(old.device)
            if cells is not None:
                images = torch.isin(old, torch.tensor(self.about["image_token_ids"], device=old.device))
                words = words & ~images
            inputs[self.keyword] = old.masked_fill(words, self.token)
            ids = inputs[self.keyword] if self.own else ids
        if self.patches is not None and cells is not None:
            own = cells if len(cells) == 1 else _cells_of(batch, self, cells)
            name = self.patches.keyword
            inputs[name] = self.patches.covered(inputs[name], _covered(own, members, self.patches.size))
        yield torch.arange(len(batch)), replace(batch, inputs=inputs, ids=ids)


def _cells_of(batch: Batch, how: Replaced, cells: Tensor) -> Tensor:
    """The cells of some of the prompts, found again by their image tokens."""
    ids = batch.inputs[how.keyword or "input_ids"]
    images = torch.isin(ids, torch.tensor(how.about["image_token_ids"], device=ids.device)) & batch.mask
    return torch.where(images, images.cumsum(-1) - 1, -1)


def _covered(cells: Tensor, members: Tensor, size: int) -> Bool[Tensor, "batch cell"]:
    """``[batch, cell]`` True at the patches of the sources at ``members``."""
    made = torch.zeros(len(members), size, dtype=torch.bool, device=members.device)
    row, source = (members & (cells.to(members.device) >= 0)).nonzero(as_tuple=True)
    own = cells.to(members.device).expand(len(members), -1)
    made[row, own[row, source]] = True
    return made


def replaced(ask: TraceAsk, replacement: Replacement, fill: Fill, grid: Given | None) -> Replaced:
    """How the sources of ``ask`` are replaced.

    Args:
        ask: what is traced.
        replacement: the token put in: an id, its text, ``"mask"``, ``"unk"`` or ``"pad"``; for None the mask token,
            else the unknown token.
        fill: what stands in the place of a patch; see :mod:`interp.tracing.occlusion.pixels`.
        grid: ``(rows, columns, skip)`` where the grid of patches is not known.

    Raises:
        BadInput: no ids and no images, or no such token.
        Unsupported: images whose patches are not known.
    """
    check_fill(ask.method, fill)
    mask = ask.key_mask
    if mask is None and not ask.stack.name.startswith("vision"):
        frames = sound_frames(ask.model, ask.batch, fill, name=ask.method)
        cells = torch.arange(frames.size, device=ask.model.device)[None]
        about = {"fill": str(fill), "image_token_ids": []}
        return Replaced(None, False, None, frames, cells, (cells >= 0).expand(len(ask.batch), -1), about)
    if mask is None:
        found = patch_grid(ask.model, ask.batch, ask.stack.name, grid=grid, name=ask.method)
        cells = found.cells.to(ask.model.device)[None]
        pixels = patch_pixels(ask.model, ask.batch, found, fill, name=ask.method)
        about = {"fill": fill if isinstance(fill, str) else str(fill), "image_token_ids": []}
        return Replaced(None, False, None, pixels, cells, (cells >= 0).expand(len(ask.batch), -1), about)
    keyword = _keyword(ask)
    ids = ask.batch.inputs.get(keyword)
    if not isinstance(ids, Tensor) or ids.shape != mask.shape:
        raise BadInput(
            f"{ask.method}: tokens can be replaced in prompts of token ids alone; these have other inputs "
            f"({', '.join(sorted(ask.batch.inputs))}). Use 'occlusion', which hides positions."
        )
    own = ask.model.default_stack != "decoder" or keyword == "decoder_input_ids"
    token = replacement_id(ask.model, replacement, ask.method)
    images = _image_tokens(ask.model, ids) & mask
    about: dict[str, Any] = {
        "replacement": token,
        "replacement_token": _text(ask.model, token),
        "already_the_replacement": int(((ids == token) & mask).sum()),
    }
    if not bool(images.any()):
        return Replaced(keyword, own, token, None, None, mask, about)
    about |= {"image_token_ids": list(image_token_ids(ask.model)), "fill": fill if isinstance(fill, str) else str(fill)}
    try:
        found = _grid_of_tokens(ask, images, grid)
        pixels = patch_pixels(ask.model, ask.batch, found, fill, name=ask.method)
    except HeadscopeError as reason:
        if grid is not None:
            raise
        about["images"] = f"image tokens were left out: {reason}"
        return Replaced(keyword, own, token, None, None, mask & ~images, about)
    cells = torch.where(images, images.cumsum(-1) - 1, -1)
    return Replaced(keyword, own, token, pixels, cells, mask, about)


def _image_tokens(model: Model, ids: Tensor) -> Tensor:
    return torch.isin(ids, torch.tensor(image_token_ids(model), dtype=ids.dtype, device=ids.device))


def _grid_of_tokens(ask: TraceAsk, images: Tensor, grid: Given | None) -> PatchGrid:
    """The grid whose patches are the image tokens one to one.

    Raises:
        BadInput: another number of tokens than of patches.
    """
    found = patch_grid(ask.model, ask.batch, "vision", grid=grid, name=ask.method)
    counts = sorted(set(images.sum(-1).tolist()))
    if counts != [found.size]:
        raise BadInput(
            f"{ask.method}: the prompts have {counts} image tokens and the image {found.size} patches, so that which "
            "pixels a token is made of is not known; use 'occlusion', or stack='vision'."
        )
    return found


def _keyword(ask: TraceAsk) -> str:
    own_decoder = ask.model.default_stack == "decoder" and not ask.stack.cross and ask.stack.name != "encoder"
    return "decoder_input_ids" if own_decoder else "input_ids"


def replacement_id(model: Model, replacement: Replacement, name: str = "replacement") -> int:
    """The id of the token that is put in: the mask token, else the unknown token, or what is asked for.

    Args:
        model: the handle.
        replacement: an id, a token's text, ``"mask"``, ``"unk"``, ``"pad"``, or None.
        name: who asks, for messages.

    Raises:
        BadInput: the tokenizer has no such token, or the id lies outside the vocabulary.

    Example:
        >>> import interp
        >>> replacement_id(interp.load("handmade"), 7)
        7
    """
    if isinstance(replacement, int) and not isinstance(replacement, bool):
        size = getattr(input_embeddings(model), "num_embeddings", None)
        if replacement < 0 or (size is not None and replacement >= size):
            raise BadInput(
                f"{name}: replacement={replacement}; the vocabulary has ids 0 to {(size or 0) - 1}."
                if size is not None
                else f"{name}: replacement={replacement}; ids are not negative."
            )
        return replacement
    if replacement is not None and not isinstance(replacement, str):
        raise BadInput(f"{name}: replacement={replacement!r}; expected an id, a token, 'mask', 'unk' or 'pad'.")
    tokenizer = model.tokenizer
    for kind in ("mask", "unk") if replacement is None else (replacement,):
        found = getattr(tokenizer, f"{kind}_token_id", None) if kind in _NAMED else None
        if isinstance(found, int):
            return found
    if replacement is None or replacement in _NAMED:
        what = "neither a mask token nor an unknown token" if replacement is None else f"no {replacement} token"
        raise BadInput(
            f"{name}: the tokenizer of {model.name!r} has {what} to put in the place of a token; give replacement= an "
            "id or a token (one that says little), or use 'occlusion', which hides tokens."
        )
    known = {} if tokenizer is None else tokenizer.get_vocab()
    if replacement not in known:
        raise BadInput(f"{name}: {unknown(replacement, (*_NAMED, *known), 'token (replacement=)')}"[:600])
    return known[replacement]


def _text(model: Model, token: int) -> str:
    return str(token) if model.tokenizer is None else str(model.tokenizer.decode([token]))
