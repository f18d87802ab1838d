"""``head_pairs``: what two heads do together beyond what each does alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.address import Head
from interp.attribution.attribute import requested
from interp.attribution.effects import about, check_place, swept_effects, variant_edits
from interp.attribution.freezing import check_freeze
from interp.attribution.heads_grid import heads_at, unit_of
from interp.attribution.interventions import intervention_for
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.numerals import numeral
from interp.stats import bootstrap_means


@dataclass(frozen=True, eq=False, repr=False)
class HeadPairs:
    """Effects of heads edited alone and two by two.

    Attributes:
        heads: the heads.
        pairs: two places in ``heads`` for each pair.
        alone: ``[prompt, head]`` effect of each head.
        together: ``[prompt, pair]`` effect of both heads of each pair.
        default_stack: the stack whose heads print without a prefix.
        cluster: one label per prompt, where prompts are resampled together.
        metadata: how the numbers were made.
    """

    heads: tuple[Head, ...]
    pairs: tuple[tuple[int, int], ...]
    alone: Float[np.ndarray, "prompt head"]
    together: Float[np.ndarray, "prompt pair"]
    default_stack: str
    cluster: tuple[object, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def interaction(self) -> Float[np.ndarray, "prompt pair"]:
        """``[prompt, pair]`` ``effect(ab) - effect(a) - effect(b)``; 0 where the two act one beside the other."""
        first, second = np.array(self.pairs, dtype=int).reshape(-1, 2).T
        return self.together - self.alone[:, first] - self.alone[:, second]

    def matrix(self) -> Float[np.ndarray, "head head"]:
        """``[head, head]`` mean interaction over prompts, symmetric; NaN on the diagonal."""
        made = np.full((len(self.heads), len(self.heads)), np.nan)
        for (first, second), value in zip(self.pairs, self.interaction.mean(0), strict=True):
            made[first, second] = made[second, first] = value
        return made

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per pair, the largest interaction in size first.

        ``value`` is the mean interaction, ``low`` and ``high`` the ends of its bootstrap interval over prompts (NaN for
        one prompt); then come the mean effects of the first head, the second, and both.
        """
        interaction = self.interaction
        low, high = bootstrap_means(interaction, confidence=confidence, cluster=self.cluster)
        first, second = np.array(self.pairs, dtype=int).reshape(-1, 2).T
        rows = pd.DataFrame(
            {
                "first": [self._label(place) for place in first],
                "second": [self._label(place) for place in second],
                "value": interaction.mean(0),
                "low": low,
                "high": high,
                "effect of first": self.alone.mean(0)[first],
                "effect of second": self.alone.mean(0)[second],
                "effect of both": self.together.mean(0),
            }
        )
        order = np.argsort(-np.abs(interaction.mean(0)), kind="stable")
        return rows.iloc[order].reset_index(drop=True)

    def _label(self, place: int) -> str:
        head = self.heads[place]
        return str(Head(head.layer, head.index, None if head.stack == self.default_stack else head.stack))

    def __repr__(self) -> str:
        largest = np.abs(self.interaction.mean(0)).max()
        return (
            f"HeadPairs({self.metadata['method']!r}, {len(self.heads)} heads, {len(self.pairs)} pairs, "
            f"{len(self.alone)} prompts, largest interaction {numeral(float(largest))})"
        )


def head_pairs(
    model: Model,
    batch: Batch,
    heads: Iterable[Head | str | Sequence[int]],
    method: str = "zero",
    **asked: Any,
) -> HeadPairs:
    """The second-order interaction of every pair of the given heads, per prompt.

    Args:
        model: the handle.
        batch: the prompts.
        heads: at least two heads of one stack.
        method: an exact intervention on single heads: ``zero``, ``mean``, ``resample``, ``uniform``, ``noise``,
            ``mean_of_others`` or ``patch``.
        asked: further arguments of :func:`interp.attribute` (``metric``, ``source``, ``site``, ``freeze`` ...), other
            than ``by="position"`` and ``normalise``.

    ``effect(ab) - effect(a) - effect(b)``, with all three from one sweep. Where ablations lower the metric, a negative
    interaction means that each head stands in for the other (neither alone matters as much as both), a positive one
    that they lie on one path (the second ablation takes away what is gone already).

    Raises:
        BadInput: fewer than two heads, or a method that edits no single head.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> interp.head_pairs(model, batch, ["L0.H0", "L1.H0"]).interaction.round().tolist()  # one path through both
        [[10.0]]
    """
    request = requested(model, batch, method, heads=heads, **asked)
    chosen = request.heads or ()
    if len(chosen) < 2:  # noqa: PLR2004 - a pair
        raise BadInput(f"head_pairs: {len(chosen)} head was given; expected at least two different ones.")
    if request.by == "position" or request.normalise:
        raise BadInput("head_pairs: by='position' and normalise=True are not offered; leave them out.")
    stack, unit = model.stack(request.stack), unit_of(request.site, request.by)
    check_place(stack, request)
    check_freeze(model, request)
    intervention = intervention_for(model, batch, request)
    if intervention.others:
        raise BadInput(f"head_pairs: {method!r} edits every head but one; use an intervention on single heads.")
    places = [(head.layer, heads_at(stack, head.layer, head.index, site=request.site, unit=unit)) for head in chosen]
    pairs = tuple(itertools.combinations(range(len(chosen)), 2))
    sets = [[place] for place in places] + [[places[first], places[second]] for first, second in pairs]
    merged = [_merged(each) for each in sets]
    variants = [variant_edits(model, batch, request, intervention, each, request.pos) for each in merged]
    effects, notes = swept_effects(model, batch, request, intervention, variants, [min(each) for each in merged])
    return HeadPairs(
        heads=chosen,
        pairs=pairs,
        alone=effects[: len(chosen)].T,
        together=effects[len(chosen) :].T,
        default_stack=model.default_stack,
        cluster=None if request.cluster is None else tuple(request.cluster),
        metadata={**about(model, batch, request), **intervention.about, "notes": notes},
    )


def _merged(places: Sequence[tuple[int, tuple[int, ...]]]) -> dict[int, tuple[int, ...]]:
    """Layer -> heads: two heads of one layer are edited at once."""
    made: dict[int, tuple[int, ...]] = {}
    for layer, heads in places:
        made[layer] = made.get(layer, ()) + heads
    return made
