"""Class explanation maps of a ViT: where attention raises the class that one block's attention speaks for."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.address import At, Site
from interp.edits.activations import custom
from interp.edits.base import Context
from interp.errors import BadInput, Unsupported
from interp.model.class_head import ClassHead, class_head
from interp.model.held_maps import HeldMaps
from interp.model.run import run
from interp.names import unknown
from interp.scores.grids.grid import Given, patch_grid
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.relevance.input_gradients import refuse_dropped
from interp.tracing.relevance.slopes import is_weighted_sum, products, values_of, wanted_reads

ClassOf = Literal["answers", "predicted"]


def class_explanation(
    ask: TraceAsk, layer: int | None = None, of: str | None = None, grid: Given | None = None
) -> Traced:
    """``mean_h d log p_b(class) / dA_b[h, i, j]``, signed: a block's class loss along its own map, negated.

    ``p_b`` is what the final norm and the classifier (without its bias) make of what block b's attention writes at
    target i, so that the row says at which tokens more attention would make that writing more like the class. The maps
    themselves are not multiplied in, and a metric given is not used.

    Args:
        ask: what is traced, of an image classifier; targets by default the first token (CLS). In a model that averages
            its tokens none stands for the class: give ``targets=``.
        layer: block index, the last for None.
        of: the class: ``answers`` the right answers of the batch (class ids), ``predicted`` what the model says; None
            for answers where there are any.
        grid: the patches, where the model's own are not understood; see :func:`interp.patch_grid`.

    Raises:
        UnknownName: another class.
        BadInput: a layer without attention, no answers, or ``exclude_sinks``.
        Unsupported: no image classifier, or values out of reach.

    Source: Vilas, Schaumlöffel and Roig, 2023 (Analyzing Vision Transformers for Image Classification in Class
    Embedding Space); the sign, the mean over heads and the bias left out are ours.
    """
    refuse_dropped(ask)
    chosen = ask.layers[-1] if layer is None else layer
    if chosen not in ask.layers:
        raise BadInput(f"{ask.method}: layer={layer!r}; the layers with attention are {list(ask.layers)}.")
    head, cls = _found(ask, grid)
    classes = _classes(ask, of)
    layers = ask.layers if ask.each_layer else (chosen,)
    held = ask.hold(read=wanted_reads(ask.model, ask.stack.name))
    slopes = _slopes(ask, held, head, cls, classes, layers)
    rows = [_rows(ask, held, index, slopes[index]) for index in layers]
    each = torch.stack(rows) if ask.each_layer else None
    values = rows[list(layers).index(chosen)]
    return Traced(values, each, metadata={"layer": chosen, "classes": classes.tolist(), "pooling": head.pooling})


def _found(ask: TraceAsk, grid: Given | None) -> tuple[ClassHead, int | None]:
    """``(the class head, the column of CLS)``."""
    if ask.stack.name != ask.model.default_stack or not ask.stack.name.startswith("vision"):
        raise Unsupported(
            f"{ask.method}: stack {ask.stack.name!r} of {ask.model.name!r} has no class head; the map is one of image "
            "classifiers, such as a ViT with its classifier."
        )
    patches = patch_grid(ask.model, ask.batch, ask.stack.name, grid=grid, name=ask.method)
    special = dict(zip(patches.skipped, patches.special, strict=False))
    cls = [place for place in patches.skipped if special.get(place, "class") == "class"]
    found = class_head(ask.model, ask.batch, cls=torch.tensor(cls[:1], dtype=torch.long), patches=patches.order)
    ask.did(1)
    return found, cls[0] if cls else None


def _classes(ask: TraceAsk, of: str | None) -> Int[Tensor, " batch"]:
    if of is not None and of not in get_args(ClassOf):
        raise BadInput(unknown(of, get_args(ClassOf), "class (of=)"))
    answers = ask.batch.answers
    if of == "predicted" or (of is None and answers is None):
        logits = run(ask.model, ask.batch).logits
        ask.did(1)
        assert logits is not None
        return logits.argmax(-1)
    if answers is None:
        raise BadInput(f"{ask.method}: no class is known; give encode(..., answers=class ids), or of='predicted'.")
    return answers[:, 0]


def _slopes(
    ask: TraceAsk, held: HeldMaps, head: ClassHead, cls: int | None, classes: Tensor, layers: tuple[int, ...]
) -> dict[int, Float[Tensor, "batch pos head d_head"]]:
    """Layer -> the gradient of the class's log-probability along z, at the targets."""
    name = ask.stack.name
    broken = [layer for layer in layers if not is_weighted_sum(held, name, layer)]
    if broken:
        raise Unsupported(
            f"{ask.method}: the values of layers {broken} are out of reach, or something stands between maps and "
            "output projection; no gradient along the maps can be had."
        )
    leaves: dict[int, Tensor] = {}

    def cut(x: Tensor, ctx: Context) -> Tensor:
        leaves[ctx.layer] = x.detach().requires_grad_()
        return leaves[ctx.layer]

    written = [At(Site.ATTN_OUT, layer, stack=name) for layer in layers]
    cuts = [custom(At(Site.Z, layer, stack=name), cut, name="cut") for layer in layers]
    seen = run(ask.model, ask.batch, written, edits=cuts, graph=True)
    ask.did(1)
    with torch.enable_grad():
        total = sum((_log_share(ask, head, cls, seen[at], classes) for at in written), start=torch.zeros(()))
        made = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, made, strict=True))


def _log_share(ask: TraceAsk, head: ClassHead, cls: int | None, x: Tensor, classes: Tensor) -> Tensor:
    """The sum over prompts and (distinct) targets of the class's log-probability in what is written there."""
    wanted = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    wanted = wanted.scatter(1, ask.targets.to(x.device), True)
    kinds: tuple[Any, ...] = head.kinds if head.pooling == "cls and mean" else head.kinds[:1]
    total = torch.zeros((), device=x.device)
    for kind in kinds:
        here = wanted.clone()
        if len(kinds) > 1 and cls is not None:
            own = torch.zeros_like(here)
            own[:, cls] = True
            here &= own if kind == "cls" else ~own
        logs = torch.log_softmax(head.logits(x, kind), dim=-1)
        picked = logs.gather(-1, classes.to(x.device)[:, None, None].expand(-1, x.shape[1], 1))[..., 0]
        total = total + (picked * here).sum()
    return total


def _rows(ask: TraceAsk, held: HeldMaps, layer: int, slopes: Tensor) -> Float[Tensor, "batch k key"]:
    values = values_of(held, ask.stack.name, layer)
    assert values is not None
    return products(slopes, values, ask.targets, values.shape[2]).mean(1)
