"""Shapley values of heads: the mean change of the metric as a head joins those before it, over orders of all heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from interp.address import At, Head, Site
from interp.attribution.estimates import count_of, head_table, options_of, refuse_freeze
from interp.attribution.heads_grid import Cell, cells_of, grid_of, query_heads, unit_of
from interp.attribution.request import Request
from interp.edits.activations import mean, patch, zero
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import prepared_edits
from interp.model.sweep import sweep
from interp.results import HeadScores

ALL = "all"  # permutations: every order there is
_AT_ONCE = 1024  # variants in one sweep
_MOST_PLAYERS = 12  # of which every set is measured

Coalition = frozenset[int]  # numbers of the players that are present
Remove = Callable[[int, tuple[int, ...]], Edit]  # (layer, query heads) -> the edit that takes them away


def shapley(model: Model, batch: Batch, request: Request) -> HeadScores:
    """Shapley values of heads: over sampled orders ``[permutation, layer, head]``, or exact ``[prompt, layer, head]``.

    ``phi_h = mean over orders of v(those before h, and h) - v(those before h)``, where ``v(S)`` is the metric with
    every head that is not in S absent: its z set to 0, or to its mean over ``reference``. The changes of one order
    telescope, so every sample sums to ``v(all) - v(none)`` (efficiency).

    Sampled, each sample is one order, averaged over prompts, and intervals are over orders: they say how well the
    Shapley value of *these prompts* is known. The metadata hold the standard error per head and the largest. With
    ``permutations="all"`` nothing is sampled, and the samples are prompts.

    Args:
        model: the handle.
        batch: the prompts.
        request: ``metric``, ``by="head"`` or ``"kv"`` (the query heads of a key/value head join together), ``heads``
            (the players; all others stay), ``pos``, ``reference``, ``seed``, ``batch_size`` (prompts in one forward,
            copies counted); options ``permutations`` (24; ``"all"`` for at most 12 players) and ``antithetic`` (True:
            every second order is the one before it, reversed, and the two are one draw).

    Raises:
        BadInput: a site other than z, by position, a ``cluster`` where samples are not prompts, or an option that is
            not one of these.

    Cost: a forward for each set of heads that the orders pass through, at most ``permutations * (players - 1) + 2``;
    ``2 ** players`` with ``"all"``. The number is in the metadata.

    Source: Shapley, 1953; Castro, Gomez and Tejada, 2009 (sampling); Mitchell et al., 2022 (antithetic orders).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> shapley(model, batch, Request(options={"permutations": "all"})).values.round(3).tolist()
        [[5.0, 0.0], [5.0, 0.0]]
    """
    stack, unit = model.stack(request.stack), unit_of(request.site, request.by)
    players = cells_of(stack, unit, request.heads, None)
    options = _checked(request, len(players))
    exact = options["permutations"] == ALL
    game = _Game(model, batch, request, players)
    if exact:
        worth = game.worth(sets_of(range(len(players))))
        samples = exact_values(worth, len(players)).T  # [player, prompt]
        error = np.zeros(len(players))
    else:
        orders = drawn_orders(
            len(players), options["permutations"], antithetic=options["antithetic"], seed=request.seed
        )
        worth = game.worth(coalitions_of(orders))
        samples = marginal_changes(worth, orders).mean(2).T  # [player, order]
        error = standard_error(samples.T, pairs=options["antithetic"])
    whole, nothing = (float(worth[who].mean()) for who in (frozenset(range(len(players))), frozenset[int]()))
    pairs = [order // 2 for order in range(samples.shape[1])] if options["antithetic"] else None
    return head_table(
        model,
        batch,
        request,
        grid_of(samples, players, stack, unit, None),
        name="shapley",
        quantity="contribution",
        sense=1,
        sample_axis="prompt" if exact else "permutation",
        cluster=request.cluster if exact else pairs,
        **options,
        seed=request.seed,
        absent="zero" if request.reference is None else "mean",
        cost=f"{len(worth)} forwards",
        efficiency={"sum": float(samples.mean(1).sum()), "all": whole, "none": nothing},
        standard_error=float(error.max()),
        standard_errors={
            str(Head(layer, index)): float(e) for (layer, index, _), e in zip(players, error, strict=True)
        },
    )


def _checked(request: Request, n_players: int) -> dict[str, Any]:
    """The options, refused where they or the rest of the request do not fit."""
    refuse_freeze(request)
    options = options_of(request, permutations=24, antithetic=True)
    if request.site is not Site.Z or request.by == "position":
        raise BadInput(f"shapley: site={request.site!r}, by={request.by!r}; heads are taken away at Site.Z, whole.")
    if not isinstance(options["antithetic"], bool):
        raise BadInput(f"antithetic={options['antithetic']!r}: expected True or False.")
    if options["permutations"] == ALL:
        if n_players > _MOST_PLAYERS:
            raise BadInput(
                f"shapley: permutations='all' measures every set of at most {_MOST_PLAYERS} heads, and there are "
                f"{n_players}; give a number of permutations, or choose heads=."
            )
        return {**options, "antithetic": False}
    if count_of(options["permutations"], "permutations") % 2 and options["antithetic"]:
        raise BadInput(
            f"permutations={options['permutations']}: with antithetic=True orders come in pairs; give an even number."
        )
    if request.cluster is not None:
        raise BadInput("shapley: cluster= labels prompts, and the samples here are orders; leave it out.")
    return options


def drawn_orders(n_players: int, permutations: int, *, antithetic: bool, seed: int) -> Int[np.ndarray, "order player"]:
    """``[order, player]`` random orders; with ``antithetic`` every second one is the one before it, reversed.

    Example:
        >>> orders = drawn_orders(3, 2, antithetic=True, seed=0)
        >>> bool((orders[0] == orders[1][::-1]).all())
        True
    """
    random = np.random.default_rng(seed)
    draws = permutations // 2 if antithetic else permutations
    orders = np.stack([random.permutation(n_players) for _ in range(draws)])
    return np.stack([orders, orders[:, ::-1]], axis=1).reshape(-1, n_players) if antithetic else orders


def coalitions_of(orders: Int[np.ndarray, "order player"]) -> list[Coalition]:
    """Every set that the orders pass through, from nobody to everybody, each once and the smallest first."""
    found = {frozenset(order[:size].tolist()) for order in orders for size in range(orders.shape[1] + 1)}
    return sorted(found, key=lambda who: (len(who), sorted(who)))


def marginal_changes(
    worth: dict[Coalition, Float[np.ndarray, " prompt"]], orders: Int[np.ndarray, "order player"]
) -> Float[np.ndarray, "order player prompt"]:
    """``[order, player, prompt]`` how much each player changes the worth of those before it.

    Example:
        >>> worth = {frozenset(): np.zeros(1), frozenset({0}): np.ones(1), frozenset({0, 1}): np.full(1, 3.0)}
        >>> marginal_changes(worth, np.array([[0, 1]])).tolist()
        [[[1.0], [2.0]]]
    """
    n_prompts = len(worth[frozenset()])
    changes = np.empty((*orders.shape, n_prompts))
    for row, order in enumerate(orders):
        for place, player in enumerate(order):
            before = frozenset(order[:place].tolist())
            changes[row, player] = worth[before | {int(player)}] - worth[before]
    return changes


def exact_values(
    worth: dict[Coalition, Float[np.ndarray, " prompt"]], n_players: int
) -> Float[np.ndarray, "prompt player"]:
    """``[prompt, player]`` Shapley values from the worth of every set.

    ``phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S and i) - v(S))``: the mean over all n! orders.
    """
    values = np.zeros((len(worth[frozenset()]), n_players))
    for who, before in worth.items():
        share = math.factorial(len(who)) * math.factorial(n_players - len(who) - 1) if len(who) < n_players else 0
        for player in range(n_players):
            if player not in who:
                values[:, player] += share / math.factorial(n_players) * (worth[who | {player}] - before)
    return values


def standard_error(samples: Float[np.ndarray, "order player"], *, pairs: bool) -> Float[np.ndarray, " player"]:
    """``[player]`` standard error of the mean over orders; with ``pairs`` two orders in a row are one draw.

    NaN for a single draw.

    Example:
        >>> standard_error(np.array([[1.0], [3.0]]), pairs=False).tolist()
        [1.0]
    """
    draws = samples.reshape(-1, 2, samples.shape[1]).mean(1) if pairs else samples
    if len(draws) == 1:
        return np.full(samples.shape[1], np.nan)
    return draws.std(axis=0, ddof=1) / math.sqrt(len(draws))


class _Game:
    """The metric as a function of which heads are present."""

    def __init__(self, model: Model, batch: Batch, request: Request, players: Sequence[Cell]) -> None:
        self.model, self.batch, self.request, self.players = model, batch, request, players
        self.stack = model.stack(request.stack)
        self.unit = unit_of(request.site, request.by)
        self.remove = self._removal()

    def worth(self, coalitions: Sequence[Coalition]) -> dict[Coalition, Float[np.ndarray, " prompt"]]:
        """The metric per prompt with each set of players present, the others absent."""
        everybody = frozenset(range(len(self.players)))
        found: dict[Coalition, np.ndarray] = {}
        partial = [who for who in coalitions if who != everybody]
        for start in range(0, len(partial), _AT_ONCE):
            some = partial[start : start + _AT_ONCE]
            variants = [self._absent(everybody - who) for who in some]
            swept = sweep(
                self.model,
                self.batch,
                variants,
                self.request.metric,
                logits=self.request.logits(self.model),
                batch_size=self.request.batch_size,
                progress=self.request.progress,
            )
            if swept.values.ndim != 2:  # noqa: PLR2004 - [variant, prompt]
                raise BadInput("shapley: the metric gives several numbers per prompt; it needs one.")
            found |= dict(zip(some, swept.values.double().cpu().numpy(), strict=True))
            found[everybody] = swept.unedited[0].double().cpu().numpy()
        return found

    def _absent(self, players: Coalition) -> list[Edit]:
        layers: dict[int, tuple[int, ...]] = {}
        for layer, index, _ in (self.players[player] for player in sorted(players)):
            layers[layer] = layers.get(layer, ()) + query_heads(self.stack, layer, index, self.unit)
        return [self.remove(layer, heads) for layer, heads in layers.items()]

    def _removal(self) -> Remove:
        def place(layer: int, heads: tuple[int, ...] | None) -> At:
            return At(Site.Z, layer, heads=heads, pos=self.request.pos, stack=self.stack.name)

        if self.request.reference is None:
            return lambda layer, heads: zero(place(layer, heads))
        layers = sorted({layer for layer, _, _ in self.players})
        means = [mean(place(layer, None), reference=self.request.reference) for layer in layers]
        prepared, _ = prepared_edits(self.model, self.batch, means)
        values = {layer: edit.values[0].data for layer, edit in zip(layers, prepared, strict=True)}
        return lambda layer, heads: patch(place(layer, heads), values[layer][:, :, list(heads)])


def sets_of(players: Sequence[int]) -> list[Coalition]:
    """Every set of the players, the smallest first.

    Example:
        >>> [sorted(who) for who in sets_of(range(2))]
        [[], [0], [1], [0, 1]]
    """
    every = [frozenset(n for n in players if mask >> n & 1) for mask in range(1 << len(players))]
    return sorted(every, key=lambda who: (len(who), sorted(who)))
