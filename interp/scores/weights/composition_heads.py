"""Composition as a score of single heads: the strongest pair that each one is in."""

from __future__ import annotations

import torch

from interp.model.head_weights import Fold
from interp.scores.ask import Ask, Measured
from interp.scores.weights.composition import Over, Side, composition, over_others


def q_composition(
    ask: Ask, statistic: Over | str = "max", side: Side | str = "in", fold: Fold | str = "gain"
) -> Measured:
    """The strongest Q-composition of every head with heads of earlier layers, in [0, 1] (Elhage et al., 2021).

    Args:
        ask: which model and stack; no prompt is read.
        statistic: ``"max"`` or ``"mean"`` over the other heads.
        side: ``"in"`` the head reads what earlier heads write, ``"out"`` it writes what later heads read.
        fold: as for :func:`interp.composition`.
    """
    return _of(ask, "q", statistic, side, fold)


def k_composition(
    ask: Ask, statistic: Over | str = "max", side: Side | str = "in", fold: Fold | str = "gain"
) -> Measured:
    """The strongest K-composition of every head; options as ``q_composition``."""
    return _of(ask, "k", statistic, side, fold)


def v_composition(
    ask: Ask, statistic: Over | str = "max", side: Side | str = "in", fold: Fold | str = "gain"
) -> Measured:
    """The strongest V-composition of every head; options as ``q_composition``."""
    return _of(ask, "v", statistic, side, fold)


def _of(ask: Ask, kind: str, statistic: str, side: str, fold: str) -> Measured:
    found = composition(ask.model, kind, stack=ask.stack.name, fold=fold)
    made = over_others(found.of(kind), side, statistic)
    by_layer = {
        layer: torch.from_numpy(made[layer, : ask.stack.n_heads(layer)].copy()).unsqueeze(0) for layer in ask.layers
    }
    about = {"statistic": statistic, "side": side, "fold": fold, "chance": found.chance}
    return Measured(by_layer, sample_axis=None, metadata=about)
