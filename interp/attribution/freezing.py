"""What is held at the unedited run's while heads are edited: later heads, later patterns, the scale of every norm."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from interp.address import At, Site
from interp.attribution.request import Request
from interp.edits.activations import patch
from interp.edits.attention import freeze_pattern
from interp.edits.base import Edit
from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.licence import licence_key, licence_of
from interp.model.norms import holding_norms, record_norms
from interp.model.run import logits_columns
from interp.model.stacks import Stack

Targets = Mapping[int, tuple[int, ...]]  # layer -> query heads that are edited there


def check_freeze(model: Model, request: Request) -> None:
    """Refuse a freeze that the model cannot offer, before any forward.

    Raises:
        Unsupported: with the reason.
    """
    if request.freeze == "patterns":
        for name in {name for name, _ in _later(model, model.stack(request.stack), 0, everywhere=True)}:
            stack = model.stack(name)
            stack.require(Site.PATTERN, edit=True)
            if stack.family.packed:
                raise Unsupported(
                    f"freeze='patterns': the attention of stack {name!r} runs once per image, rows packed without a "
                    "batch axis; its patterns cannot be held. Use freeze='other_heads' or 'none'."
                )
    if request.freeze == "other_heads":
        model.stack(request.stack).require(Site.Z, edit=True)


def freezing_edits(model: Model, batch: Batch, request: Request, targets: Targets) -> list[Edit]:
    """The edits that hold what ``request.freeze`` names while the ``targets`` are edited.

    ``other_heads`` holds z of every head, other than the targets, of the attentions that come after the first edited
    one in the same blocks (in a decoder with cross-attention: of both kinds); ``patterns`` holds the attention maps of
    all that come after, in other stacks as well. What comes before the first edit is as in the unedited run anyhow.
    """
    if request.freeze not in ("other_heads", "patterns"):
        return []
    own = model.stack(request.stack)
    edits: list[Edit] = []
    for name, layer in _later(model, own, min(targets), everywhere=request.freeze == "patterns"):
        stack = model.stack(name)
        edited = targets.get(layer, ()) if name == own.name else ()
        heads = _except(stack.n_heads(layer), edited)
        if heads == ():
            continue
        if request.freeze == "patterns":
            edits.append(freeze_pattern(At(Site.PATTERN, layer=layer, heads=heads, stack=name), batch))
        else:
            edits.append(patch(At(Site.Z, layer=layer, heads=heads, stack=name), batch))
    return edits


def _except(count: int, edited: Collection[int]) -> tuple[int, ...] | None:
    """The heads of a layer of ``count`` that are not edited, ``None`` for all of them."""
    return tuple(head for head in range(count) if head not in edited) if edited else None


def _later(model: Model, own: Stack, first: int, *, everywhere: bool) -> list[tuple[str, int]]:
    """``(stack, layer)`` of the attentions that run after layer ``first`` of ``own``."""
    found = []
    for name, stack in model.stacks.items():
        same = stack.path == own.path
        if not same and not (everywhere and _feeds(model, own, stack)):
            continue
        for layer, attention in enumerate(stack.layers):
            after = layer > first or (layer == first and stack.cross and not own.cross)
            if attention is not None and (after or not same):
                found.append((name, layer))
    return found


def _feeds(model: Model, own: Stack, other: Stack) -> bool:
    """Whether what ``own`` writes can reach ``other``: into the blocks that make the logits, from any others."""
    logits = model.stack()
    return own.path != logits.path and other.path == logits.path


@contextmanager
def norms_held(model: Model, batch: Batch, request: Request, eager: Collection[tuple[str, int]]) -> Iterator[Model]:
    """The handle to sweep with: inside, every norm divides by the unedited run's scale where the request says so.

    Args:
        model: the handle.
        batch: the prompts.
        request: with ``freeze="norms"``, otherwise nothing is held.
        eager: attention that the edits move to the eager function.
    """
    if request.freeze != "norms":
        yield model
        return
    positions = logits_columns(model, batch, request.logits(model))
    # tried while nothing is held; scales are kept for whole rows of columns, so that no forward may go on with some
    whole = replace(licence_of(model, batch, positions), narrow=False, prefix=False)
    scales = record_norms(model, batch, kernels=dict.fromkeys(eager, "eager"))
    with holding_norms(model, scales):
        yield replace(model, licences={licence_key(model, batch, positions): whole})
