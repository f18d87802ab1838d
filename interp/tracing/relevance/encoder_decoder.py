"""Relevance across an encoder-decoder: rows of R_qs and R_qq for chosen decoder tokens, without products of maps.

With ``S_l`` the decoder's weighted self-attention, ``C_l`` its weighted cross-attention and ``E_l`` the
encoder's, the rules between sequences (see :class:`interp.SequenceRelevance`) unrolled are

    R_ee = (I + E_L) ... (I + E_1),   R_l = (I + S_l) ... (I + S_1),   R_qq = R_L
    R_qs = sum_l (I + S_L) ... (I + S_{l+1}) N(R_l)^T C_l N(R_ee),   N(R) = I + (R - I) / rowsum(R - I)

since the encoder never attends back. A row of it is a row vector through the first product (from the top down), a
column vector through ``N(R_l)`` (from the bottom up), and a row vector through ``C_l`` and the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import Unsupported
from interp.model.run import Metric
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.relevance.answer_logit import named
from interp.tracing.relevance.slopes import MapSlopes, map_slopes
from interp.tracing.relevance.steps import RULES, Step, changed, lifted, taken, unit_rows

Steps = Callable[[int], Iterable[Step]]


def crossed(ask: TraceAsk, metric: Metric, start: int) -> Traced:
    """What decoder tokens owe to the encoder's tokens and to the decoder's, in this order of columns.

    Args:
        ask: what is traced, of a decoder or of its cross-attention.
        metric: what is explained.
        start: the first layer that counts, of encoder and decoder.

    Raises:
        Unsupported: a decoder whose self-attention or encoder is not among the stacks.
    """
    own, cross = _stacks(ask)
    encoder = "encoder" if "encoder" in ask.model.stacks else None
    others = [name for name in (own, cross, encoder) if name and name != ask.stack.name]
    slopes = map_slopes(ask, metric, [ask.stack.name, *others])

    def steps(name: str) -> Steps:
        rule = RULES["chefer2021b"]

        def of(layer: int) -> Iterator[Step]:
            for block in slopes.blocks(layer, stack=name):
                yield rule.step(rule.fuse(block.weighted), block.rows)

        return of

    decoding = list(range(start, len(ask.model.stack(own).blocks)))
    targets = ask.targets.to(slopes.metric.device)
    height, width = slopes.held.shape(slopes.held.layers(cross)[0], cross)[2:]
    found: list[Tensor] = []
    wanted = range(1, len(decoding) + 1) if ask.each_layer else [len(decoding)]
    encode = _encoded(slopes, steps(encoder), slopes.held.layers(encoder)[start:], width) if encoder else None
    for count in wanted:
        rows, at_keys = _decoder_rows(
            slopes, (own, cross), (steps(own), steps(cross)), decoding[:count], unit_rows(targets, height), width
        )
        found.append(torch.cat([at_keys if encode is None else encode(at_keys), rows], dim=-1))
    layers = torch.stack(_padded_front(found, start, targets, width, height)) if ask.each_layer else None
    about = {**slopes.metadata, "metric": named(metric), "start": start}
    return Traced(found[-1], layers, source_stacks=(("encoder", width), (own, height)), metadata=about)


def has_cross(ask: TraceAsk) -> bool:
    """Whether the tokens traced are a decoder's, with cross-attention in its blocks."""
    return any(stack.cross and stack.blocks[0] is ask.stack.blocks[0] for stack in ask.model.stacks.values())


def _stacks(ask: TraceAsk) -> tuple[str, str]:
    """The stacks of the self-attentions and the cross-attentions in the decoder's blocks."""
    same = [(name, stack) for name, stack in ask.model.stacks.items() if stack.blocks[0] is ask.stack.blocks[0]]
    own, cross = ([name for name, stack in same if stack.cross == wanted] for wanted in (False, True))
    if not own or not cross:
        raise Unsupported(f"{ask.method}: the self-attention beside stack {ask.stack.name!r} was not found.")
    return own[0], cross[0]


def _decoder_rows(
    slopes: MapSlopes,
    names: tuple[str, str],
    steps: tuple[Steps, Steps],
    layers: list[int],
    vectors: Float[Tensor, "batch k query"],
    width: int,
) -> tuple[Float[Tensor, "batch k query"], Float[Tensor, "batch k key"]]:
    """``(rows of R_qq, rows of sum_l ... N(R_l)^T C_l)`` of unit vectors, by the decoder's own and cross steps."""
    own, cross = steps
    with_self, with_cross = (set(slopes.held.layers(name)) for name in names)
    count = vectors.shape[1]
    kept: dict[int, Tensor] = {}
    for layer in reversed(layers):
        if layer in with_cross:
            kept[layer] = vectors
        if layer in with_self:
            vectors = taken(vectors, own(layer))
    at_keys = vectors.new_zeros(len(vectors), count, width)
    # (R_l - I) v for the vectors v kept at l, all layers' at once, and (R_l - I) 1: differences lose no digits
    order = [layer for layer in layers if layer in kept]
    begun = torch.cat([*(kept[layer] for layer in order), torch.ones_like(vectors[:, :1])], dim=1)
    climbed = torch.zeros_like(begun)
    for layer in layers:
        if layer in with_self:
            climbed = climbed + lifted(begun + climbed, own(layer))
        if layer not in kept:
            continue
        place = order.index(layer) * count
        normed = kept[layer] + climbed[:, place : place + count] / _divisor(climbed[:, -1:])
        for step in cross(layer):
            here = normed.gather(2, step.rows.unsqueeze(1).expand(-1, count, -1))
            at_keys[..., : step.fused.shape[-1]] += here @ step.fused
    return vectors, at_keys


def _encoded(slopes: MapSlopes, steps: Steps, layers: tuple[int, ...], width: int) -> Callable[[Tensor], Tensor]:
    """``u -> u N(R_ee)`` for row vectors over the encoder's tokens."""
    ones = torch.ones(len(slopes.held.batch), 1, width, device=slopes.metric.device)
    sums = torch.zeros_like(ones)
    for layer in layers:
        sums = sums + lifted(ones + sums, steps(layer))

    def through(vectors: Tensor) -> Tensor:
        scaled = vectors / _divisor(sums)
        gone = torch.zeros_like(scaled)
        for layer in reversed(layers):
            gone = gone + changed(scaled + gone, steps(layer))
        return vectors + gone

    return through


def _divisor(sums: Tensor) -> Tensor:
    """Sums to divide by: a row without relevance stays without."""
    return torch.where(sums == 0, torch.ones_like(sums), sums)


def _padded_front(found: list[Tensor], start: int, targets: Tensor, width: int, height: int) -> list[Tensor]:
    own = unit_rows(targets, height)
    blank = torch.cat([own.new_zeros(*own.shape[:2], width), own], dim=-1)
    return [blank.to(found[0])] * start + found
