"""The numbers of the experiment with their doubt, computed from what the stages kept; knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from circuits.experiments.induction.job import head_grid
from circuits.experiments.induction.natural import Natural
from circuits.experiments.induction.offsets import BESIDE, OFFSETS
from circuits.experiments.induction.reading import Losses
from circuits.experiments.wording import named
from circuits.units import Arrays
from interp.address import Head
from interp.results import HeadScores
from interp.stats import (
    Interval,
    MatchedSets,
    NullComparison,
    benjamini_hochberg,
    compare_with_null,
    largest_effect_p,
    mean_interval,
)
from interp.stats.nulls import FEWEST_SETS

SHORT = {"previous_token": "previous", "duplicate_token": "duplicate", "prefix_matching": "prefix"}


@dataclass(frozen=True, eq=False)
class SingleHeads:
    """What happens to the second copy when one head is replaced.

    Attributes:
        effect: rise of the loss in nats, per evaluation prompt.
        adjusted: ``[layer, head]`` p-value of the logit difference against the largest effect of any head under
            reassigned answers, after Benjamini-Hochberg; ``None`` with too few draws.
    """

    effect: HeadScores
    adjusted: np.ndarray | None

    def beyond_chance(self, level: float = 0.05) -> list[Head]:
        """Heads whose effect passes that null, largest effect first."""
        if self.adjusted is None:
            return []
        found = [Head(layer, index) for layer, index in np.argwhere(self.adjusted <= level).tolist()]
        values = self.effect.values
        return sorted(found, key=lambda head: -abs(values[head.layer, head.index]))


@dataclass(frozen=True, eq=False)
class Group:
    """A set of heads replaced at once, beside matched random sets.

    Attributes:
        name: what they have in common.
        heads: chosen on the selection prompts.
        effect: rise of the loss on the evaluation prompts, in nats.
        null: that rise beside those of the random sets.
        random: the rise for each random set.
        matched: how the random sets were drawn.
        held: the rise while every pattern is held still; ``None`` where that was not run.
        adjusted: the null's p-value after Benjamini-Hochberg over all groups; ``None`` where it has none.
    """

    name: str
    heads: tuple[Head, ...]
    effect: Interval
    null: NullComparison
    random: np.ndarray
    matched: MatchedSets
    held: Interval | None = None
    adjusted: float | None = None

    @property
    def label(self) -> str:
        """Name and heads, short enough for an axis."""
        return f"{self.name} ({named(self.heads, 3)})"

    def stands_out(self, level: float = 0.05) -> bool | None:
        """Whether its effect is above zero and passes the matched-random-head null; ``None`` where there are too few
        sets to say."""
        return None if self.adjusted is None else self.adjusted <= level and self.effect.low > 0


@dataclass(frozen=True, eq=False)
class Emergence:
    """Scores and losses over the checkpoints of training.

    Attributes:
        steps: training step of each checkpoint.
        first, second: loss on the first and second copy at each.
        scores: score -> ``[checkpoint, layer, head]``.
    """

    steps: list[int]
    first: list[float]
    second: list[float]
    scores: Mapping[str, np.ndarray]

    def steepest_fall(self) -> tuple[int, int] | None:
        """The two neighbouring checkpoints between which the loss of the second copy falls most; ``None`` if never."""
        falls = -np.diff(self.second)
        if not len(falls) or falls.max() <= 0:
            return None
        place = int(falls.argmax())
        return self.steps[place], self.steps[place + 1]

    def first_above(self, score: str, threshold: float) -> tuple[int, Head] | None:
        """The first checkpoint where a head reaches ``threshold``, and that head."""
        for step, values in zip(self.steps, self.scores.get(score, ()), strict=False):
            if found := heads_above(values, threshold):
                return step, found[0][0]
        return None


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of."""

    model: str
    confidence: float
    threshold: float
    ablation: str
    segment: int
    scores: Mapping[str, HeadScores]
    losses: Losses
    offsets: np.ndarray  # [prompt, layer, head, offset]
    single: SingleHeads
    groups: Sequence[Group]
    natural: Natural | None = None
    emergence: Emergence | None = None
    notes: Sequence[str] = ()

    def interval(self, values: np.ndarray) -> Interval:
        """The mean of one number per prompt, with its interval."""
        return mean_interval(values, confidence=self.confidence)

    def called(self, score: str, at_least: float | None = None) -> list[tuple[Head, float]]:
        """Heads whose score reaches the threshold, highest first, with the score."""
        if score not in self.scores:
            return []
        return heads_above(self.scores[score].values, self.threshold if at_least is None else at_least)

    def beside(self) -> list[tuple[Head, int, float]]:
        """Heads without a standard induction score that look further on after the earlier copy: head, offset, share."""
        mean = np.nanmean(self.offsets, axis=0)
        standard = {head for head, _ in self.called("induction")}
        found = []
        for place in BESIDE:
            for head, share in heads_above(mean[..., place], self.threshold):
                if head not in standard:
                    found.append((head, OFFSETS[place], share))
        return found

    def group(self, name: str) -> Group | None:
        """The group of that name."""
        return next((group for group in self.groups if group.name == name), None)

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and quantity, with its interval and, for effects, its p-value."""
        parts = []
        for quantity, scores in [*self.scores.items(), (f"effect_of_{self.ablation}_ablation", self.single.effect)]:
            rows = scores.table(confidence=self.confidence)
            rows.insert(0, "quantity", quantity)
            rows["p_adjusted"] = np.nan
            if scores is self.single.effect and self.single.adjusted is not None:
                rows["p_adjusted"] = self.single.adjusted[rows["layer"], rows["head"]]
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)

    def wide(self) -> pd.DataFrame:
        """One row per head: every score, and the effect with its interval; heads that matter most come first."""
        effect = self.single.effect.table(confidence=self.confidence)
        frame = pd.DataFrame(
            {"head": [str(Head(*place)) for place in zip(effect["layer"], effect["head"], strict=True)]}
        )
        for name, scores in self.scores.items():
            frame[SHORT.get(name, name)] = scores.values[effect["layer"], effect["head"]]
        frame["effect"] = effect["value"]
        frame["low"], frame["high"] = effect["low"], effect["high"]
        if self.single.adjusted is not None:
            frame["p"] = self.single.adjusted[effect["layer"], effect["head"]]
        return frame.sort_values("effect", ascending=False, kind="stable", ignore_index=True)


def heads_above(values: np.ndarray, threshold: float) -> list[tuple[Head, float]]:
    """Heads with at least ``threshold`` in ``values`` ``[layer, head]``, highest first."""
    places = np.argwhere(np.isfinite(values) & (values >= threshold)).tolist()
    found = [(Head(layer, index), float(values[layer, index])) for layer, index in places]
    return sorted(found, key=lambda pair: (-pair[1], pair[0].layer, pair[0].index))


def single_heads(
    unedited: Arrays, without: Mapping[Head, Arrays], widths: Sequence[int], *, ablation: str
) -> SingleHeads:
    """Effects of replacing each head, from the losses and leads with and without.

    Args:
        unedited: ``loss`` ``[prompt]``, ``lead`` ``[1 + draw]`` summed over prompts.
        without: the same for each head.
        widths: heads of each layer.
        ablation: what took the place of the head's output.
    """
    exact = {head: part["loss"].astype(float) - unedited["loss"] for head, part in without.items()}
    effect = HeadScores.from_array(
        head_grid(exact, widths),
        name="rise of the loss",
        quantity="effect",
        sense=1,  # the loss rises without a head that helps
        sample_axis="prompt",
        metadata={
            "method": ablation,
            "metric": "loss of the second copy, nats",
            "off_distribution": ablation == "zero",
        },
    )
    n = len(unedited["loss"])
    moved = {head: ((part["lead"] - unedited["lead"]) / n) for head, part in without.items()}
    observed, *permuted = head_grid(moved, widths)
    if len(permuted) < FEWEST_SETS:
        return SingleHeads(effect, None)
    p = largest_effect_p(observed, np.stack(permuted))
    return SingleHeads(effect, benjamini_hochberg(p).adjusted)


def group_of(
    name: str,
    heads: Sequence[Head],
    *,
    base: np.ndarray,
    without: np.ndarray,
    random: np.ndarray,
    matched: MatchedSets,
    confidence: float,
    held: np.ndarray | None = None,
) -> Group:
    """A group with its effect and its null.

    Args:
        name: what the heads have in common.
        heads: which.
        base: ``[prompt]`` loss with nothing changed.
        without: ``[prompt]`` loss without the group.
        random: ``[set, prompt]`` loss without each random set.
        matched: how those were drawn.
        confidence: of the intervals.
        held: ``[prompt]`` rise of the loss while every pattern is held still.
    """
    effect = mean_interval(without - base, confidence=confidence)
    draws = (random - base).mean(1) if len(random) else np.zeros(0)
    null = compare_with_null(effect.mean, draws, tail="greater", confidence=confidence, sets=matched)
    still = None if held is None else mean_interval(held, confidence=confidence)
    return Group(name, tuple(heads), effect, null, draws, matched, still)


def adjusted_for_each_other(groups: Sequence[Group]) -> list[Group]:
    """The groups with their p-values adjusted for the number of groups."""
    p = np.array([np.nan if group.null.p is None else group.null.p for group in groups])
    adjusted = benjamini_hochberg(p).adjusted
    return [
        replace(group, adjusted=None if np.isnan(value) else float(value))
        for group, value in zip(groups, adjusted, strict=True)
    ]
