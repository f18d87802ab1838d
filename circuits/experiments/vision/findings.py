"""What the tables say: which heads diverge, what they cost each sort of questions, what is said without the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.experiments.vision.job import SORTS
from circuits.experiments.vision.measuring import DIVERGENCE, EFFECTS
from circuits.experiments.vision.reinforcing import Reinforced
from circuits.experiments.vision.sets import SetEffect
from circuits.experiments.vision.withheld import WAYS, Answers, by_prior
from interp.attribution.head_sets import resampled_means
from interp.results import HeadScores
from interp.stats import Interval, mean_interval, rank_agreement

DRAWS = 1000
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        scores: name -> table of heads on the selection questions.
        effects: sort -> exact effect of each head on the evaluation questions.
        sets: joint effects of the foremost heads.
        answers: way -> answers to the evaluation questions with an image.
        prompts, kinds, clusters: of those questions.
        words: token id -> word of every answer said or right.
        reinforced: answers to the hard questions before and after.
        metric, ablation, confidence: as set.
    """

    model: str
    scores: Mapping[str, HeadScores]
    effects: Mapping[str, HeadScores]
    sets: list[SetEffect]
    answers: Mapping[str, Answers]
    prompts: tuple[str, ...]
    kinds: tuple[str, ...]
    clusters: tuple[str, ...]
    words: Mapping[int, str]
    reinforced: Reinforced
    metric: str
    ablation: str
    confidence: float

    def rate(self, values: np.ndarray) -> Interval:
        """A mean over the evaluation questions with an image."""
        return mean_interval(values, confidence=self.confidence, cluster=self.clusters)

    def right(self, way: str) -> Interval:
        """Share of right answers, with the image, with an even one, or without."""
        return self.rate(self.answers[way].is_right)

    def correlation(self, score: str, sort: str) -> Interval:
        """Spearman's rank correlation over heads of a score and of the cost (minus the effect) of each head.

        The score is from the selection questions, the cost from the evaluation questions; both are resampled.
        """
        first, second = self.scores[score], self.effects[sort]
        exists = first.exists[first.stacks[0]]
        a, b = (np.asarray(table.samples)[:, exists].astype(float) for table in (first, second))
        means_a = resampled_means(a, draws=DRAWS, seed=0)
        means_b = resampled_means(b, draws=DRAWS, seed=1, cluster=second.cluster)
        drawn = [
            rank_agreement(one, -other).spearman
            for one, other in zip(means_a, np.resize(means_b, means_a.shape), strict=True)
        ]
        value = rank_agreement(np.nanmean(a, 0), -np.nanmean(b, 0)).spearman
        ends = np.nanquantile(drawn, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Interval(value, float(ends[0]), float(ends[1]), int(exists.sum()), self.confidence)

    def main(self, ranking: str = DIVERGENCE) -> SetEffect:
        """Of a ranking's sets the one of the paper's rule: the upper half of each layer, which VHR amplifies."""
        return [one for one in self.sets if one.ranking == ranking][-1]

    def found(self, one: SetEffect) -> bool:
        """Whether a set costs questions with an image, and more beside text questions than random sets do, at 5 %."""
        p = one.selective.p
        return one.interval("vision").high < 0 and p is not None and p <= LEVEL

    def set_rows(self) -> pd.DataFrame:
        """One row per set: what it costs on both sorts, with interval, and p beside random sets."""
        rows = []
        for one in self.sets:
            chosen = f"{one.ranking}, every layer" if one.each_layer else one.ranking
            row: dict[str, object] = {"chosen by": chosen, "heads": len(one.heads)}
            row |= {sort: one.interval(sort).mean for sort in SORTS}
            row |= {f"{sort} random": one.against_random(sort).null_mean for sort in SORTS}
            for name, null in (("vision p", one.against_random("vision")), ("selective p", one.selective)):
                if null.p is not None:
                    row[name] = null.p
            for sort in SORTS:
                row |= {f"{sort} low": one.interval(sort).low, f"{sort} high": one.interval(sort).high}
            rows.append({**row, "which": ", ".join(map(str, one.heads[:8]))})
        return pd.DataFrame(rows)

    def short_rows(self) -> pd.DataFrame:
        """The few columns of :meth:`set_rows` that are printed at the end."""
        rows = self.set_rows()
        shown = ("chosen by", "heads", "vision", "text", "vision p", "selective p")
        return rows.loc[:, [name for name in shown if name in rows]]

    def withheld_rows(self, most: int = 12) -> pd.DataFrame:
        """One row per question asked more than once: right with the image, and what is said without."""
        seen, blind = self.answers[WAYS[0]], self.answers[WAYS[2]]
        rows = []
        for prompt, _ in Counter(self.prompts).most_common(most):
            places = [place for place, own in enumerate(self.prompts) if own == prompt]
            said = Counter(self.words[int(blind.said[place])] for place in places)
            answer, times = said.most_common(1)[0]
            truly = np.mean([self.words[int(seen.right[place])] == answer for place in places])
            rows.append(
                {
                    "question": prompt,
                    "asked": len(places),
                    "right with the image": float(seen.is_right[places].mean()),
                    "right without": float(blind.is_right[places].mean()),
                    "said most without": answer,
                    "share": times / len(places),
                    "it is right in": float(truly),
                }
            )
        return pd.DataFrame(rows)

    def kind_rows(self) -> pd.DataFrame:
        """One row per kind of question: right answers in the three ways, and wrong ones that are the prior's."""
        rows = []
        prior = by_prior(self.answers[WAYS[0]], self.answers[WAYS[2]])
        for kind in dict.fromkeys(self.kinds):
            places = [place for place, own in enumerate(self.kinds) if own == kind]
            shares = {way: float(self.answers[way].is_right[places].mean()) for way in WAYS}
            rows.append(
                {"kind": kind, "asked": len(places), **shares, "wrong by the prior": float(prior[places].mean())}
            )
        return pd.DataFrame(rows)

    def head_rows(self) -> pd.DataFrame:
        """One row per head: every score and both effects, the most divergent first."""
        parts = {**self.scores, **{EFFECTS[sort]: table for sort, table in self.effects.items()}}
        first = next(iter(parts.values()))
        cells = np.argwhere(first.exists[first.stacks[0]])
        rows = [
            {"head": f"L{layer}.H{head}", **{name: float(table.values[layer, head]) for name, table in parts.items()}}
            for layer, head in cells.tolist()
        ]
        return pd.DataFrame(rows).sort_values(DIVERGENCE, ascending=False, kind="stable", ignore_index=True)

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and quantity, with its interval."""
        parts = []
        for name, scores in {**self.scores, **{EFFECTS[sort]: table for sort, table in self.effects.items()}}.items():
            rows = scores.table(confidence=self.confidence)
            rows.insert(0, "quantity", name)
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)
