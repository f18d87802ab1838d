"""``absence``: sources taken away in one of three ways, many sets of them at once, and what the metric is then."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.edits.attention import knockout
from interp.edits.base import Edit
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.gathered import check_gatherable, gathered
from interp.model.handle import Model
from interp.model.image_tokens import image_token_ids
from interp.model.run import run
from interp.model.shortening import shortened, source_mask
from interp.model.sweep import sweep
from interp.names import lookup
from interp.scores.ask import Ask
from interp.scores.divergence.sensitivity import hiding_edits
from interp.scores.grids.grid import Given, patch_grid
from interp.tracing.ask import TraceAsk
from interp.tracing.occlusion.changed_prompts import Change, ChangedPrompts, check_batch_size
from interp.tracing.occlusion.explained import Explained
from interp.tracing.occlusion.pixels import Fill
from interp.tracing.occlusion.replaced import Replacement, replaced

WAYS: Mapping[str, str] = {
    "hide": "no other position may look at it, in any layer; places stay as they are",
    "replace": "another token stands in its place, or its patch of the image is covered",
    "remove": "it is taken out of the prompt and the rest closes up (patches of an image keep their places)",
}
Values = Float[Tensor, "variant batch *k"]


@dataclass(frozen=True, eq=False)
class Absence:
    """Sources of a stack that can be taken away.

    Attributes:
        way: how; a name of ``WAYS``.
        free: ``[batch, source]`` True at sources that may be taken away.
        values: (what is explained, ``members [variant, batch, source]``) -> the metric without them and the metric with
            all, each ``[variant, batch]``.
        about: what a reader should know.
    """

    way: str
    free: Bool[Tensor, "batch source"]
    values: Callable[[Explained, Bool[Tensor, "variant batch source"]], tuple[Values, Values]]
    about: dict[str, Any] = field(default_factory=dict)


def absence(
    ask: TraceAsk,
    way: str,
    *,
    replacement: Replacement = None,
    fill: Fill = "mean",
    grid: Given | None = None,
    keep_read: bool = True,
    batch_size: int | None = None,
) -> Absence:
    """Sources of ``ask``'s stack, taken away in one of ``WAYS``.

    Args:
        ask: what is traced; columns left out by ``exclude_sinks`` always stay.
        way: ``"hide"``, ``"replace"`` or ``"remove"``.
        replacement, fill: what is put in the place of tokens and patches.
        grid: ``(rows, columns, skip)`` where the grid of patches is not known.
        keep_read: whether the token at which the answer is read always stays. It must where tokens are removed.
        batch_size: prompts in one forward.

    Raises:
        UnknownName: another way.
        BadInput, Unsupported: sources that cannot be taken away so.
    """
    lookup(way, WAYS, "way of taking away")
    check_batch_size(ask.method, batch_size)
    if _two_towers(ask.model):
        batch_size = _check_pair(ask)
    if way == "hide":
        return _hidden(ask, grid, keep_read, batch_size)
    if way == "remove":
        return _removed(ask, grid, batch_size)
    how = replaced(ask, replacement, fill, grid)
    width = how.possible.shape[1]
    values = _prompts(ask, how.change, max(width, ask.batch.width), batch_size)
    free = _free(ask, how.possible, keep_read=keep_read)
    return Absence(way, free, values, {name: x for name, x in how.about.items() if name != "image_token_ids"})


def _prompts(ask: TraceAsk, change: Change, width: int, batch_size: int | None) -> Callable[..., tuple[Values, Values]]:
    """The metric of changed prompts, once it is known what is explained."""

    def values(explained: Explained, members: Tensor) -> tuple[Tensor, Tensor]:
        prompts = ChangedPrompts(ask.model, explained.batch, explained.metric, change, width, batch_size, ask.did)
        return prompts.values(members)

    return values


def _two_towers(model: Model) -> bool:
    """Whether logits compare every image of a batch with every text: two stacks that never meet."""
    return (
        {"text", "vision"} <= set(model.stacks)
        and not image_token_ids(model)
        and not any(stack.cross for stack in model.stacks.values())
    )


def _check_pair(ask: TraceAsk) -> int:
    """Prompts in one forward where each forward compares all with all: one.

    Raises:
        BadInput: several prompts, or no metric of the one similarity.
    """
    if len(ask.batch) > 1 or ask.metric is None:
        raise BadInput(
            f"{ask.method}: {ask.model.name!r} compares every image of a batch with every text, so that prompts have "
            "no answers of their own; give one image and one text at a time, with a metric of their similarity such as "
            "metric=lambda logits, batch: logits[:, 0]."
        )
    return 1


def _free(ask: TraceAsk, possible: Tensor, *, keep_read: bool) -> Tensor:
    """What may be taken away: not what is left out, nor the token that is read."""
    free = possible.clone()
    if keep_read and ask.key_mask is not None and not ask.stack.cross:
        free = free.scatter(1, ask.batch.read_at[:, None].to(free.device), False)
    return free if ask.dropped is None else free & ~ask.dropped.to(free.device)


def _hidden(ask: TraceAsk, grid: Given | None, keep_read: bool, batch_size: int | None) -> Absence:
    ask.stack.require(Site.SCORES, edit=True)
    mask = ask.key_mask
    if mask is not None:
        possible = mask
    elif ask.stack.name.startswith("vision"):
        found = patch_grid(ask.model, ask.batch, ask.stack.name, grid=grid, name=ask.method)
        possible = (found.cells >= 0).to(ask.model.device).expand(len(ask.batch), -1)
    else:
        possible = torch.ones(len(ask.batch), _width(ask), dtype=torch.bool, device=ask.model.device)

    def values(explained: Explained, members: Tensor) -> tuple[Tensor, Tensor]:
        variants = [_hiding(ask, explained.batch, member) for member in members]
        swept = sweep(
            ask.model, explained.batch, variants, explained.metric, batch_size=batch_size, progress=ask.progress
        )
        return swept.values.double().cpu(), swept.unedited.double().cpu()

    return Absence("hide", _free(ask, possible, keep_read=keep_read), values)


def _hiding(ask: TraceAsk, batch: Batch, member: Tensor) -> list[Edit]:
    mask = batch.key_mask(ask.stack.name)
    if mask is not None and mask is source_mask(batch):
        return hiding_edits(Ask(ask.method, ask.model, batch, ask.stack), member)
    if ask.stack.cross:
        return [knockout(None, member, stack=ask.stack.name)]
    return [knockout(~member if mask is None else mask & ~member, member, stack=ask.stack.name)]


def _width(ask: TraceAsk) -> int:
    """How many keys a stack of sounds has, from one forward."""
    keys = "encoder" if ask.stack.cross else ask.stack.name
    at = At(Site.RESID_PRE, 0, stack=keys)
    found = run(ask.model, ask.batch, [at])[at].shape[1]
    ask.did(1)
    return found


def _patches_removed(ask: TraceAsk, grid: Given | None, batch_size: int | None) -> Absence:
    """Patches taken out before the first block; the others keep the position embeddings that they have."""
    stack = ask.stack
    found = patch_grid(ask.model, ask.batch, stack.name, grid=grid, name=ask.method)
    check_gatherable(ask.model, ask.batch, stack, found.order, torch.tensor(found.skipped, dtype=torch.long))
    possible = (found.cells >= 0).to(ask.model.device).expand(len(ask.batch), -1)

    def change(batch: Batch, members: Tensor) -> Generator[tuple[Tensor, Batch], None, None]:
        kept = ~members.cpu()
        counts = kept.sum(-1)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero().flatten()
            columns = kept[rows].nonzero()[:, 1].view(len(rows), -1)
            part = batch if len(rows) == len(batch) else batch.select(rows)
            with gathered(stack, columns):
                yield rows, part

    values = _prompts(ask, change, found.positions, batch_size)
    about = {"positions": "patches that stay keep their own position embeddings"}
    return Absence("remove", _free(ask, possible, keep_read=True), values, about)


def _removed(ask: TraceAsk, grid: Given | None, batch_size: int | None) -> Absence:
    mask = ask.key_mask
    if ask.stack.name.startswith("vision") and ask.stack.name == ask.model.default_stack:
        return _patches_removed(ask, grid, batch_size)
    if mask is None or mask is not source_mask(ask.batch):
        raise Unsupported(
            f"{ask.method}: tokens can be taken out of what the prompt is read from, and the keys of stack "
            f"{ask.stack.name!r} are not those (images, or the decoder of an encoder-decoder); use 'occlusion' or "
            "'blank-out'" + (", or stack='cross'." if ask.batch.encoder_mask is not None else ".")
        )
    ids = ask.batch.inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape != mask.shape:
        raise BadInput(f"{ask.method}: tokens can be taken out of prompts of token ids alone; these have other inputs.")
    images = torch.isin(ids, torch.tensor(image_token_ids(ask.model), dtype=ids.dtype, device=ids.device))
    model = ask.model

    def change(batch: Batch, members: Tensor) -> Generator[tuple[Tensor, Batch], None, None]:
        for part in shortened(model, batch, members.to(ids.device)):
            yield part.rows.cpu(), part.batch

    values = _prompts(ask, change, max(mask.shape[1], ask.batch.width), batch_size)
    return Absence("remove", _free(ask, mask & ~images, keep_read=True), values)
