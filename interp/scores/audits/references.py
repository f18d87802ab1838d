"""Attributions of a prompt's tokens that attention is compared with: gradients, leave-one-out, LIME."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.image_tokens import image_token_ids
from interp.model.run import Metric, run
from interp.model.shortening import shortened, source_mask
from interp.model.sweep import logits_for, sweep
from interp.names import lookup
from interp.scores.ask import Ask
from interp.scores.audits.answer_change import (
    answer_changes,
    distribution_of,
    metric_or_own,
    total_variation,
)
from interp.scores.audits.lime import check_samples, lime_fit, presence_draws
from interp.scores.divergence.sensitivity import hiding_edits

REFERENCES: Mapping[str, str] = MappingProxyType(
    {
        "gradient": "|<x_t, dm/dx_t>|, the size of gradient times input",
        "gradient_x_input": "<x_t, dm/dx_t>, signed",
        "leave_one_out": "total variation of the answer when the token is taken out and the prompt encoded again",
        "leave_one_out_masked": "total variation of the answer when no other token may look at it",
        "lime": "weights of a linear fit of the metric on which tokens may be looked at",
        "value_aware": "A_ij <v_j, dm/dz_i> of each head by its direct path",
    }
)


def token_attribution(
    ask: Ask, kind: str, *, metric: Metric | None = None, samples: int = 256
) -> Float[Tensor, "batch key"]:
    """``[batch, key]`` what each key token of the stack is worth for the answer.

    Args:
        ask: what is scored.
        kind: one of ``REFERENCES`` but ``value_aware``.
        metric: what is differentiated or fitted: by default the log-probability of the right answer, or of what the
            model says where the prompts have no answers.
        samples: of LIME.

    Gradients are with respect to what enters the first block (position embeddings counted in). Leaving out one
    token costs one forward per position (image tokens have no number: they stay or go together); LIME as many as
    ``samples``.

    Raises:
        UnknownName: another kind.
        BadInput: leave-one-out of a stack without tokens.
    """
    lookup(kind, REFERENCES, "reference")
    chosen = metric_or_own(metric, ask.batch)
    if kind in ("gradient", "gradient_x_input"):
        made = _gradient(ask, chosen)
        return made.abs() if kind == "gradient" else made
    if kind == "leave_one_out":
        return _left_out(ask)
    return _hidden(ask) if kind == "leave_one_out_masked" else _lime(ask, chosen, samples)


def _gradient(ask: Ask, metric: Metric) -> Float[Tensor, "batch key"]:
    name = "encoder" if ask.stack.cross else ask.stack.name
    at = At(Site.RESID_PRE, 0, stack=name)
    seen = run(ask.model, ask.batch, [at], logits=logits_for(metric, ask.model), grad=metric)
    assert seen.grad is not None
    if ask.progress is not None:
        ask.progress(1)
    return (seen[at].double() * seen.grad[at].double()).sum(-1)


def _tokens(ask: Ask, kind: str) -> Bool[Tensor, "batch key"]:
    """The tokens that can be left out: those of the stack's keys.

    Raises:
        Unsupported: keys that are no tokens, or the decoder's own in an encoder-decoder.
    """
    mask = ask.key_mask
    if mask is None or mask is not source_mask(ask.batch):
        raise Unsupported(
            f"{ask.name}: {kind} leaves out tokens of the prompt, and the keys of stack {ask.stack.name!r} are not "
            "those (images, or the decoder of an encoder-decoder); use reference='gradient'."
        )
    return mask


def one_by_one(mask: Bool[Tensor, "batch key"], read_at: Tensor | None) -> list[Bool[Tensor, "batch key"]]:
    """For each number t ``[batch, key]`` True at every prompt's t-th token, the one that is read left out."""
    number = mask.cumsum(-1) - 1
    made = []
    for t in range(int(mask.sum(-1).max())):
        member = mask & (number == t)
        if read_at is not None:
            member = member.scatter(1, read_at[:, None], False)
        made.append(member)
    return made


def _left_out(ask: Ask) -> Float[Tensor, "batch key"]:
    mask = _tokens(ask, "leave_one_out")
    own = distribution_of(ask.model, ask.batch)
    worth = torch.full(mask.shape, torch.nan, dtype=torch.float64, device=own.device)
    images = torch.tensor(image_token_ids(ask.model), dtype=torch.long, device=mask.device)
    words = mask & ~torch.isin(ask.batch.inputs["input_ids"], images)
    for member in one_by_one(words, None if ask.stack.cross else ask.batch.read_at):
        concerned = member.any(-1).nonzero().flatten()
        if not len(concerned):
            continue
        some = ask.batch if len(concerned) == len(ask.batch) else ask.batch.select(concerned)
        for part in shortened(ask.model, some, member[concerned]):
            rows = concerned[part.rows]
            change = total_variation(distribution_of(ask.model, part.batch), own[rows])
            changes = torch.full_like(worth[:, 0], torch.nan)
            changes[rows] = change.double()
            worth = torch.where(member & changes.isfinite()[:, None], changes[:, None], worth)
            if ask.progress is not None:
                ask.progress(1)
    return worth


def _hidden(ask: Ask) -> Float[Tensor, "batch key"]:
    mask = _tokens(ask, "leave_one_out_masked")
    members = one_by_one(mask, None if ask.stack.cross else ask.batch.read_at)
    variants = [hiding_edits(ask, member) for member in members]
    changes = answer_changes(ask.model, ask.batch, variants, progress=ask.progress)
    worth = torch.full(mask.shape, torch.nan, dtype=torch.float64, device=changes.device)
    for member, change in zip(members, changes, strict=True):
        worth = torch.where(member, change.double()[:, None], worth)
    return worth


def _lime(ask: Ask, metric: Metric, samples: int) -> Float[Tensor, "batch key"]:
    mask = _tokens(ask, "lime")
    check_samples(ask.name, samples)
    free = mask if ask.stack.cross else mask.scatter(1, ask.batch.read_at[:, None], False)
    kept = presence_draws(free, ask.batch.content_keys.tolist(), samples, ask.seed)
    variants = [hiding_edits(ask, free & ~one) for one in kept]
    values = sweep(ask.model, ask.batch, variants, metric, progress=ask.progress).values.double()  # [sample, batch]
    worth = torch.full(mask.shape, torch.nan, dtype=torch.float64, device=values.device)
    for row, here in enumerate(free):
        worth[row, here] = lime_fit(kept[:, row, here], values[:, row]).weights
    return worth
