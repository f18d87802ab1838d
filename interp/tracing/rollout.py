"""Attention rollout of given maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.results import HeadScores
from interp.tracing.descent import Tower, ascend, descend
from interp.tracing.fusion import Heads, fusion_of
from interp.tracing.given_maps import GivenMaps, given_layers, target_columns
from interp.tracing.stages import Mixing, Stage
from interp.tracing.transitions import Missing, check_options

PARTS = ("decoder", "cross", "encoder")
Residual = Any  # a number | [layer] | [layer, query]


def rollout(
    patterns: Any,
    *,
    targets: Sequence[int] | Tensor | None = None,
    heads: Heads = "mean",
    residual: Residual = 0.5,
    discard: float = 0.0,
    keep_first: bool = True,
    start: int = 0,
    normalise: bool = True,
    missing: Missing | None = None,
    each_layer: bool = False,
    cross: Any = None,
    encoder: Any = None,
) -> Tensor:
    """Attention rollout: what each token at the top layer owes to each input token, ``[query, key]``.

    ``S_l = ((1 - r) A_l + r I) / rowsum``, ``R_l = S_l R_(l-1)``, ``R_0 = I``, with ``A_l`` the heads' fused map (Abnar
    and Zuidema, 2020, where ``r = 1/2``); rows sum to 1. It assumes one share of the residual stream everywhere, and
    knows nothing of values, of MLPs and of what heads do: attention is not importance. For chosen ``targets`` a vector
    goes down from the top layer, ``O(L T^2)`` for each; no product of maps is made.

    With ``cross`` a decoder is traced to its own and its encoder's tokens: after each self-attention the state is
    ``(1 - r) C_l R_encoder + r R`` with ``C_l`` the fused cross-attention.

    Args:
        patterns: attention maps of one prompt, the first layer first: ``[layer, query, key]``, ``[layer, head, query,
            key]``, or one ``[query, key]`` or ``[head, query, key]`` per layer.
        targets: columns of the rows wanted, negative from the end; all for None.
        heads: how heads are fused: ``"mean"``, ``"max"``, ``"min"``, or what weighs them: ``[layer, head]``, a
            :class:`interp.HeadScores` or a :class:`interp.Gates` (its facilitation); weights are divided by their sum
            in each layer. ``"max"`` and ``"min"`` are options of later vision code, not the paper's.
        residual: the residual stream's share ``r``: a number, ``[layer]`` or ``[layer, query]``.
        discard: share of the entries of each fused map that is set to 0, the lowest first, by exact count over the
            whole square (blocked entries count); see :func:`interp.tracing.transitions.discarded`.
        keep_first: whether discarding spares the entry (0, 0), of CLS with itself.
        start: index of the first layer that counts; those below are left out.
        normalise: divide rows by their sum; False leaves ``(1 - r) A + r I`` as it is.
        missing: what becomes of the mass of rows that sum to less than 1: ``"sink"`` it leaves the graph, ``"self"`` it
            stays on the token, ``"renormalise"`` the row is divided by its sum. Without it such rows are refused; rows
            that are 0 in every head are padding, and their rollout is 0.
        each_layer: the rollout at the top of every layer, ``[layer, query, key]``.
        cross: cross-attention maps of a decoder, one per layer.
        encoder: self-attention maps of its encoder; without them the sources are the encoder's outputs.

    ``heads`` and ``residual`` may be mappings from ``"decoder"``, ``"cross"`` and ``"encoder"`` to what stands there.

    Returns:
        ``[query, key]`` (``[target, key]``), the encoder's columns before the decoder's with ``cross``; float64 where
        the maps are, float32 otherwise.

    Raises:
        BadInput: maps that are no distributions (negative, NaN, rows that sum to something else), other shapes, or
            options outside their range.

    Example:
        >>> first = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]
        >>> second = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.6, 0.1, 0.3]]
        >>> rollout([first, second], targets=[-1])
        tensor([[0.3775, 0.1350, 0.4875]], dtype=torch.float64)
    """
    check_options(discard=discard, missing=missing, start=start)
    given = {"decoder": given_layers(patterns, "patterns")}
    if cross is not None:
        given["cross"] = given_layers(cross, "cross")
    if encoder is not None:
        given["encoder"] = given_layers(encoder, "encoder")
    _check_shapes(given, start)
    maps, tower = given_tower(
        given, heads=heads, residual=residual, discard=discard, keep_first=keep_first, start=start, missing=missing,
        normalise=normalise,
    )  # fmt: skip
    columns = target_columns(targets, tower.n_tokens)
    like = torch.zeros((), dtype=_dtype(given), device=given["decoder"][0].device)
    wanted = list(tower.layers) if each_layer else [tower.layers[-1]]
    # from below one product of maps per layer, from above a vector per target and top through all layers below it
    if len(wanted) > 1 and 2 * tower.n_tokens < len(columns) * len(wanted):
        whole = ascend(tower, layers=wanted, like=like)
        found = torch.stack([whole[layer][0, columns] for layer in wanted])
    else:
        found = descend(tower, columns[None], layers=wanted, like=like)[:, 0]
    for one in maps:
        one.check_rest()
    return found if each_layer else found[0]


def given_tower(
    given: Mapping[str, Sequence[Float[Tensor, "head query key"]]],
    *,
    heads: Heads,
    residual: Residual,
    discard: float = 0.0,
    keep_first: bool = True,
    start: int = 0,
    missing: Missing | None = None,
    normalise: bool = True,
) -> tuple[list[GivenMaps], Tower]:
    """The steps of given maps, and the maps themselves (whose rows are checked as they are read).

    Args:
        given: ``decoder`` (the only part, for a single stack), ``cross``, ``encoder`` -> maps of each layer.
        heads, residual, discard, keep_first, start, missing, normalise: see :func:`rollout`.

    Raises:
        BadInput: weights or shares of another shape, or outside their range.
    """
    dtype = _dtype(given)
    maps: list[GivenMaps] = []
    stages: dict[str, list[Stage]] = {}
    for part, layers in given.items():
        alone = len(given) == 1
        fusion = fusion_of(part_of(heads, part, alone, "heads"), [len(layer) for layer in layers])
        mixing = Mixing(fusion, discard, keep_first, missing, normalise)
        shares = shares_of(part_of(residual, part, alone, "residual"), len(layers), layers[0].shape[1])
        stages[part] = []
        for index, layer in enumerate(layers):
            where = f"{'patterns' if part == 'decoder' else part}[{index}]"
            one = GivenMaps(layer, where, missing=missing, dtype=dtype)
            maps.append(one)
            fast = None if part == "cross" else one.fast(mixing, index, shares[index])
            stage = Stage(index, index, one.shape, one.read, mixing, shares[index], cross=part == "cross", fast=fast)
            stages[part].append(stage)
    decoder, crossed = stages["decoder"], stages.get("cross", [])
    both = [[mine, *crossed[index : index + 1]] for index, mine in enumerate(decoder)]
    return maps, Tower([stage for pair in both[start:] for stage in pair], stages.get("encoder", []))


def shares_of(residual: Residual, n_layers: int, n_queries: int) -> list[float | Tensor]:
    """The residual stream's share at each layer: a number, or ``[1, query]``.

    Raises:
        BadInput: another shape, or shares outside [0, 1].
    """
    try:
        shares = torch.as_tensor(residual, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"residual={residual!r}: expected a share, or shares [layer] or [layer, query]. The share measured from "
            'the norms of a run is residual="measured" of interp.trace.'
        ) from error
    if tuple(shares.shape) not in ((), (n_layers,), (n_layers, n_queries)):
        raise BadInput(
            f"residual: shares of shape {list(shares.shape)}; expected a number, [layer] = [{n_layers}] or [layer, "
            f"query] = [{n_layers}, {n_queries}]."
        )
    if not bool(((shares >= 0) & (shares <= 1)).all()):
        raise BadInput(f"residual: shares from {float(shares.min())} to {float(shares.max())}; expected 0 to 1.")
    if not shares.ndim:
        return [float(shares)] * n_layers
    return [row[None] if row.ndim else float(row) for row in shares]


def part_of(value: Any, part: str, alone: bool, name: str) -> Any:
    """What an option says of one part of an encoder-decoder.

    Args:
        value: for all, a mapping from part to what stands there, or a table with a stack for each.
        part: ``decoder``, ``cross`` or ``encoder``.
        alone: whether there is no other.
        name: of the option, for messages.

    Raises:
        BadInput: something per layer that does not say of which part.
    """
    if isinstance(value, Mapping):
        if part not in value:
            raise BadInput(f"{name}: nothing for {part!r}; give one for each of {', '.join(PARTS)} that has maps.")
        return value[part]
    if isinstance(value, HeadScores) and len(value.stacks) > 1:
        return value.of(part)
    plain = isinstance(value, str | int | float) or (isinstance(value, Tensor) and value.ndim == 0)
    if alone or plain:
        return value
    raise BadInput(
        f"{name}: the maps are of several stacks; give a mapping such as {{'decoder': ..., 'cross': ..., "
        "'encoder': ...}."
    )


def _check_shapes(given: Mapping[str, Sequence[Tensor]], start: int) -> None:
    n_layers = len(given["decoder"])
    if start >= n_layers:
        raise BadInput(f"start={start}: there are {n_layers} layers (0 to {n_layers - 1}).")
    for part in ("decoder", "encoder"):
        if part not in given:
            continue
        _, queries, keys = given[part][0].shape
        if queries != keys:
            name = "patterns" if part == "decoder" else part
            raise BadInput(
                f"{name}: maps of {queries} queries and {keys} keys; a rollout needs as many of both (self-attention). "
                "Cross-attention goes in as cross=, beside the decoder's own maps."
            )
    if "cross" not in given:
        if "encoder" in given:
            raise BadInput("encoder: maps of an encoder without cross=; give the cross-attention that reads it.")
        return
    queries, keys = given["cross"][0].shape[1:]
    if len(given["cross"]) != n_layers or queries != given["decoder"][0].shape[1]:
        raise BadInput(
            f"cross: {len(given['cross'])} layers of {queries} queries; the decoder has {n_layers} layers of "
            f"{given['decoder'][0].shape[1]}."
        )
    if "encoder" in given and given["encoder"][0].shape[1] != keys:
        raise BadInput(f"encoder: {given['encoder'][0].shape[1]} tokens; the cross-attention sees {keys}.")


def _dtype(given: Mapping[str, Sequence[Tensor]]) -> torch.dtype:
    double = any(layer.dtype == torch.float64 for layers in given.values() for layer in layers)
    return torch.float64 if double else torch.float32
