"""NaN and infinity: found at the end of a forward, then traced to the first layer and site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.address import At, Site
from interp.edits.base import Edit
from interp.errors import NotFinite
from interp.model.batch import Batch
from interp.model.session import Session

if TYPE_CHECKING:
    from interp.model.handle import Model

_TRACED = (Site.RESID_PRE, Site.Z, Site.ATTN_RAW, Site.ATTN_OUT, Site.RESID_MID, Site.MLP_OUT, Site.RESID_POST)


def check_finite(
    model: Model, batch: Batch, edits: Sequence[Edit], final: Sequence[Tensor], logits: Tensor | None
) -> None:
    """Pass where the last hidden state of every real token is finite.

    Args:
        model: the handle.
        batch: the prompts that ran.
        edits: the edits in force, applied again while tracing.
        final: the input of the unembedding, where the model has one.
        logits: the model's logits, or its last hidden state where it has none; beside ``final``, one row of each prompt
            is looked at (all of them would cost as much as a layer).

    Raises:
        NotFinite: naming the first layer and site; found by a second forward that looks at every site.
    """
    looked_at = final[-1] if final else logits
    if looked_at is None or _finite(looked_at, batch.mask):
        if logits is None or not final or not _broken_logits(logits, batch):
            return
        where = "the unembedding (its input is finite)"
    else:
        where = _first(model, batch, edits)
    raise NotFinite(
        f"NaN or infinity appeared during the run, first at {where}. "
        + (f"Edits in force: {list(edits)}. " if edits else "")
        + f"The model runs in {model.dtype}; a wider dtype, other inputs or another edit may avoid it."
    )


def _broken_logits(logits: Tensor, batch: Batch) -> bool:
    row = logits
    if logits.ndim > 2:  # noqa: PLR2004 - [batch, pos, vocab], or the chosen positions
        at = batch.read_at.to(logits.device) if logits.shape[1] == batch.width else 0
        row = logits[torch.arange(len(logits), device=logits.device), at]
    return bool((torch.isnan(row) | torch.isposinf(row)).any())  # some families bar tokens by -inf


def _finite(tensor: Tensor, mask: Tensor | None) -> bool:
    if bool(torch.isfinite(tensor).all()):
        return True
    if mask is None or mask.shape != tensor.shape[:2]:
        return False
    return bool(torch.isfinite(tensor[mask.to(tensor.device)]).all())


def _first(model: Model, batch: Batch, edits: Sequence[Edit]) -> str:
    embeddings: list[str] = []
    for name, stack in model.stacks.items():
        reads = [At(site, stack=name) for site in _TRACED if stack.refusal(site, False) is None]
        session = Session(model, batch, edits, reads)
        with torch.no_grad(), session:
            model.hf(**batch.inputs)
        if any(not reading.values for reading in session.readings):
            continue  # this stack took no part
        for layer in range(stack.n_layers):
            for site in _TRACED:
                for reading in session.readings:
                    value = reading.values.get(layer) if reading.at.site is site else None
                    mask = batch.row_mask(name)
                    if value is None or _finite(value, mask):
                        continue
                    if layer == 0 and site is Site.RESID_PRE:
                        embeddings.append(f"the embeddings (Site.RESID_PRE of layer 0, stack {name!r})")
                        continue
                    if not embeddings:
                        return f"layer {layer}, {site!r}, stack {name!r}"
    return embeddings[0] if embeddings else "the unembedding (every block is finite)"
