"""Identities that the sites of one stack must meet, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from interp.address import Site
from interp.model.families import module_at
from interp.model.stacks import Stack

Seen = Mapping[tuple[Site, int], Tensor]
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def stack_checks(stack: Stack, seen: Seen) -> tuple[dict[str, str], dict[Site, str]]:
    """``(outcome by check, reason by site that failed)`` for the tensors read in one forward.

    Args:
        stack: whose sites they are.
        seen: ``(site, layer) -> tensor`` in the site's axes.
    """
    outcome: dict[str, str] = {}
    broken: dict[Site, str] = {}
    tolerance = _TOLERANCE.get(next(iter(seen.values())).dtype, 6e-2)
    for what, gap, sites in _gaps(stack, seen):
        if gap is None:
            outcome[what] = "not checked"
        elif gap <= tolerance:
            outcome[what] = f"holds to {gap:.0e}"
        else:
            outcome[what] = f"FAILS by {gap:.2g}"
            broken |= {
                site: f"{what} does not hold on this checkpoint (off by {gap:.2g}, found at load)" for site in sites
            }
    return outcome, broken


def _gaps(stack: Stack, seen: Seen) -> list[tuple[str, float | None, tuple[Site, ...]]]:
    layers = sorted({layer for site, layer in seen if site is Site.Z})
    found: list[tuple[str, float | None, tuple[Site, ...]]] = [
        ("shapes", _worst(_shapes(stack, seen, layer) for layer in layers), (Site.Z,)),
        ("results sum to the attention output", _worst(_results(stack, seen, layer) for layer in layers), (Site.Z,)),
        ("attention writes what its projection gives", _worst(_written(stack, seen, i) for i in layers), (Site.Z,)),
        ("pattern rows sum to 1, or 1 minus the sink", _worst(_rows(seen, i) for i in layers), (Site.PATTERN,)),
        ("pattern = softmax of scores", _worst(_softmax(stack, seen, i) for i in layers), (Site.SCORES,)),
        ("scores = q k scale + mask", _worst(_scores(stack, seen, i) for i in layers), ()),
        ("z = pattern v", _worst(_mixed(stack, seen, i) for i in layers), ()),
    ]
    if not stack.cross:
        sites = (Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_MID)
        worst = _worst(_residual(stack, seen, i) for i in range(stack.n_layers))
        found.append((f"residual identity ({stack.family.norm}-norm)", worst, sites))
    return found


def _worst(gaps) -> float | None:  # type: ignore[no-untyped-def]
    known = [gap for gap in gaps if gap is not None]
    return max(known) if known else None


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the size of ``b``; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))


def _shapes(stack: Stack, seen: Seen, layer: int) -> float | None:
    z = seen[(Site.Z, layer)]
    good = z.shape[2:] == (stack.n_heads(layer), stack.d_head(layer))
    pattern = seen.get((Site.PATTERN, layer))
    if pattern is not None:
        good &= pattern.shape[1] == stack.n_heads(layer) and pattern.shape[2] == z.shape[1]
    return 0.0 if good else float("inf")


def _results(stack: Stack, seen: Seen, layer: int) -> float | None:
    result, raw = seen.get((Site.RESULT, layer)), seen.get((Site.ATTN_RAW, layer))
    if result is None or raw is None:
        return None
    bias = getattr(stack.layer(layer).out, "bias", None)
    total = result.double().sum(2)
    return _gap(total if bias is None else total + bias.double(), raw)


def _written(stack: Stack, seen: Seen, layer: int) -> float | None:
    """How far the writer's tensor is from the projection's output, or from what a norm or gain makes of that.

    Z, RESULT and ATTN_RAW come from the projection alone, so that nothing else would tell a wrong one.
    """
    raw, written = seen.get((Site.ATTN_RAW, layer)), seen.get((Site.ATTN_OUT, layer))
    residual = None if stack.cross else _residual(stack, seen, layer)
    if raw is None or written is None or (residual or 0.0) > _TOLERANCE.get(raw.dtype, 6e-2):
        return None  # a wrong writer is found by the residual identity
    row = stack.family
    writer = row.cross.writer if stack.cross and row.cross else row.attention_writer
    attention = row.cross.attention if stack.cross and row.cross else row.attention
    made = raw
    if raw.shape != written.shape:
        return float("inf")
    beside = not f"{writer}.".startswith(f"{attention}.") and not attention.startswith(f"{writer}.")
    if beside:
        module = module_at(stack.blocks[layer], writer)
        made = raw if module is None or isinstance(module, nn.Linear) else module(raw)
    return _gap(made * stack.multiplier(Site.ATTN_OUT), written)


def _rows(seen: Seen, layer: int) -> float | None:
    pattern = seen.get((Site.PATTERN, layer))
    if pattern is None:
        return None
    sums = pattern.double().sum(-1)
    return float((sums - 1).clamp(min=0).max() + (-pattern.double()).clamp(min=0).max())


def _softmax(stack: Stack, seen: Seen, layer: int) -> float | None:
    scores, pattern = seen.get((Site.SCORES, layer)), seen.get((Site.PATTERN, layer))
    if scores is None or pattern is None or stack.family.packed:
        return None
    made = torch.softmax(scores.double(), dim=-1)
    kept = pattern.double().sum(-1, keepdim=True)  # 1, or 1 minus the sink
    return _gap(made * kept, pattern.double())


def _scores(stack: Stack, seen: Seen, layer: int) -> float | None:
    q, k, scores = (seen.get((site, layer)) for site in (Site.Q, Site.K, Site.SCORES))
    module = stack.layer(layer).attention
    if q is None or k is None or scores is None or stack.family.packed or q.shape[-1] != k.shape[-1]:
        return None
    scaling = getattr(module, "scaling", None)
    scaling = float(scaling) if isinstance(scaling, int | float) else q.shape[-1] ** -0.5
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    products = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double())
    cap = getattr(module, "attn_logit_softcapping", None)
    visible = ~torch.isneginf(scores)
    gap = float("inf")
    for factor in (scaling, 1.0):  # some families scale the query before
        made = products * factor
        made = made if not cap else torch.tanh(made / cap) * cap
        gap = min(gap, _gap(made[visible], scores[visible].double()))
    return gap if gap <= _TOLERANCE.get(q.dtype, 6e-2) else None  # a position bias or another scale is added


def _mixed(stack: Stack, seen: Seen, layer: int) -> float | None:
    pattern, v, z = (seen.get((site, layer)) for site in (Site.PATTERN, Site.V, Site.Z))
    if pattern is None or v is None or z is None or stack.family.packed:
        return None
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
    made = torch.einsum("bhqk,bkhd->bqhd", pattern.double(), v.double())
    gap = _gap(made, z.double())
    return gap if gap <= _TOLERANCE.get(z.dtype, 6e-2) else None  # a gate or a subtraction stands between


def _residual(stack: Stack, seen: Seen, layer: int) -> float | None:
    names = (Site.RESID_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_POST, Site.RESID_MID, Site.RESID_CROSS)
    pre, attn, mlp, post, mid, cross = (seen.get((site, layer)) for site in names)
    if pre is None or attn is None or mlp is None or post is None:
        return None
    row, block = stack.family, stack.blocks[layer]
    if row.norm == "parallel":
        return _gap(pre + attn + mlp, post)
    if row.norm == "post" and row.post_norms:
        first, last = (module_at(block, path) for path in row.post_norms)
        if mid is None or first is None or last is None:
            return None
        into = cross if cross is not None else mid
        return max(_gap(first(pre + attn), mid), _gap(last(into + mlp), post))
    if mid is None:
        return None
    into = cross if cross is not None else mid
    return max(_gap(pre + attn, mid), _gap(into + mlp, post))
