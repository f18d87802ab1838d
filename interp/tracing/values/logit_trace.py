"""ALTI-Logit: what each token adds to the answer through the attention of every layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.attention_sums import HeldSums
from interp.model.direct_paths import DirectPaths, direct_paths, direct_slopes
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.held_stages import stacks_read
from interp.tracing.relevance.answer_logit import metric_or_logit, named
from interp.tracing.values.held_steps import HeldSteps, held_steps
from interp.tracing.values.steps import Injected, descend


def logit_trace(ask: TraceAsk, norm: int = 1, embeddings: bool = False, rolled: bool = True) -> Traced:
    """What each token adds to the answer's metric through the attention of all layers (Ferrando et al., 2023).

    At layer l, token j's state adds ``a^l_j = sum_h sum_i A_ij^h <v_j^h, g_i^h>`` with ``g`` the slope of the metric
    along z by the direct path (every norm between held at the scale of this run, nothing through later attention or
    MLPs). States are led back to the inputs by ALTI's product of the layers below,

        value_s = sum_l sum_j a^l_j M^{l-1}[j, s],   M^0 = I

    Rows of M sum to 1, so the values sum to what all attention adds directly. With what embeddings, MLPs and biases
    add (in the metadata, per prompt) they sum to the metric. A trace at the top of layer l counts attention up to
    there.

    Args:
        ask: what is traced; its metric is linear in the logits, the logit of the answer for None.
        norm: of ALTI, 1 or 2.
        embeddings: whether what the read token's own embedding adds directly counts for that token.
        rolled: lead states back to the inputs; False leaves ``a^l_j`` at the columns of the states.

    Raises:
        BadInput: a metric that is not linear in the logits, or options that are not there.
        Unsupported: a stack that does not write to the logits, or sums that do not hold.
    """
    for name, value in (("embeddings", embeddings), ("rolled", rolled)):
        if not isinstance(value, bool):
            raise BadInput(f"{ask.method}: {name}={value!r}; expected True or False.")
    if ask.stack.blocks[0] is not ask.model.stack().blocks[0]:
        raise Unsupported(
            f"{ask.method}: the heads of stack {ask.stack.name!r} do not write to the stream that makes the logits; "
            f"trace {ask.model.default_stack!r}."
        )
    stacks_read(ask)
    metric = metric_or_logit(ask.metric)
    paths = direct_paths(ask.model, ask.batch, metric)
    slopes = direct_slopes(ask.model, ask.batch, metric)
    ask.did(5)
    made = held_steps(ask, kind="alti", norm=norm)
    own = [name for name in made.sums.held.stacks if name in slopes]
    added = {
        (name, layer): token_shares(made.sums, name, layer, slopes[name][layer])
        for name in own
        for layer in made.sums.held.layers(name)
    }
    attention = torch.stack([each.sum((1, 2)).double() for each in added.values()]).sum(0)
    if ask.dropped is not None:
        added = {key: _without(ask, key[0], each) for key, each in added.items()}
    tower, like = made.tower, made.like.double()
    wanted = list(tower.layers) if ask.each_layer else [tower.layers[-1]]
    found = descend(tower, wanted, None, injected=added, like=like) if rolled else _in_place(made, wanted, added, like)
    if embeddings:
        where = ask.targets.to(found.device) + tower.n_encoder
        found = found.scatter_add(
            -1,
            where[None, :, :, None].expand(len(found), -1, -1, 1),
            paths.embeddings.to(found)[None, :, None, None].expand(len(found), -1, 1, 1),
        )
    said = {**made.said(), **_parts(paths, attention), "metric": named(metric)}
    return Traced(found[-1], found if ask.each_layer else None, made.source_stacks, said)


def token_shares(
    sums: HeldSums, stack: str, layer: int, slopes: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch 1 key"]:
    """``sum_h sum_i A_ij^h <v_j^h, g_i^h>``: what each key's state adds to the metric through one layer's attention.

    Args:
        sums: the forward.
        stack: whose layer.
        layer: block index.
        slopes: ``g``; rows without a slope are not looked at.
    """
    held = sums.held
    values = sums.values[stack, layer]
    group = slopes.shape[2] // values.shape[2]
    batch, _, _, n_keys = held.shape(layer, stack)
    made = slopes.new_zeros(batch, n_keys, dtype=torch.float64)
    used = (slopes != 0).flatten(2).any(-1)
    columns = used.any(0).nonzero()[:, 0]
    for block in held.blocks(layer, rows=columns.expand(batch, -1), stack=stack) if len(columns) else ():
        index = block.rows[:, :, None, None].expand(-1, -1, *slopes.shape[2:])
        mine = slopes.gather(1, index).float().unflatten(2, (-1, group))  # [batch, row, kv, group, d_head]
        maps = block.whole.unflatten(1, (-1, group))  # [batch, kv, group, row, key]
        weighted = torch.einsum("bkgrj,brkgd->bjkd", maps, mine)
        made[:, : block.n_keys] += (weighted * values[:, : block.n_keys].float()).sum((2, 3)).double()
    return made[:, None]


def _without(ask: TraceAsk, stack: str, added: Tensor) -> Tensor:
    if ask.dropped is None or stack != ask.stack.name:
        return added
    return added * ~ask.dropped[:, None].to(added.device)


def _in_place(made: HeldSteps, wanted: list[int], added: Injected, like: Tensor) -> Tensor:
    tower = made.tower
    tops = []
    for top in wanted:
        total = like.new_zeros(*next(iter(added.values())).shape[:2], tower.n_encoder + tower.n_tokens)
        for (stack, layer), each in added.items():
            if layer <= top:
                start = 0 if stack.startswith("cross") else tower.n_encoder
                total[..., start : start + each.shape[-1]] += each.to(like)
        tops.append(total)
    return torch.stack(tops)


def _parts(paths: DirectPaths, attention: Tensor) -> Mapping[str, list[float]]:
    """What the metric is made of, per prompt; they sum to it, ``nonlinear`` counted in."""
    mlps = paths.mlps.sum(1)
    rest = paths.metric.cpu() - (attention.cpu() + mlps.cpu() + paths.embeddings.cpu() + paths.biases.cpu())
    named_parts = {
        "attention": attention,
        "mlps": mlps,
        "embeddings": paths.embeddings,
        "biases": paths.biases,
        "rest": rest,
        "metric value": paths.metric,
    }
    return {name: [float(value) for value in part.cpu()] for name, part in named_parts.items()}
