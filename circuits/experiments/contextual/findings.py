"""What the scores and the answers without heads say; knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuits.experiments.contextual.measuring import COMPANIONS, CONTROLS, GOLD_ONLY, SCORE, Removed
from circuits.experiments.contextual.prompts import Prompts
from circuits.experiments.retrieval.findings import order_of
from interp.address import Head
from interp.comparison import agreement
from interp.results import HeadScores
from interp.stats import Agreement, Interval, NullComparison, bootstrap_means, compare_with_null, mean_interval

LEVEL = 0.05
GOLD, IRRELEVANT, LARGEST, SINK = range(4)  # bins of the companions


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that the report and the conclusion are made of.

    Attributes:
        model: its name.
        selection, evaluation: the prompts, with the answers that were read.
        chosen_by: tables by name on the selection prompts.
        scores: tables by name on the evaluation prompts.
        null: ``[draw, layer, head]`` the mean contextual score on shuffled words, evaluation prompts.
        effects: what replacing one head everywhere does to the answer's log-probability, evaluation prompts.
        effects_at_answer: the same, replaced only at the rows from which the answer is predicted.
        removed: the answers without several heads.
        confidence: of every interval.
        ablation: what takes the place of a head's output.
        seed: of resamples.
    """

    model: str
    selection: Prompts
    evaluation: Prompts
    chosen_by: Mapping[str, HeadScores]
    scores: Mapping[str, HeadScores]
    null: Float[np.ndarray, "draw layer head"]
    effects: HeadScores
    effects_at_answer: HeadScores
    removed: Removed
    confidence: float
    ablation: str
    seed: int

    @property
    def order(self) -> list[Head]:
        """All heads, the most contextual on the selection prompts first."""
        return order_of(self.chosen_by[SCORE])

    @cached_property
    def agreement(self) -> Agreement:
        """Of contextual scores and effects everywhere, by size; the foremost are as many as read the gold document."""
        return self._agreement(self.effects)

    @cached_property
    def agreement_at_answer(self) -> Agreement:
        """Of contextual scores and effects at the answer's rows."""
        return self._agreement(self.effects_at_answer)

    def _agreement(self, effects: HeadScores) -> Agreement:
        top = max(len(self.contextual()), 1)
        found = agreement(self.scores[SCORE], effects, by="abs", top=top, confidence=self.confidence, seed=self.seed)
        assert isinstance(found, Agreement), "of two tables"
        return found

    def at(self, head: Head, name: str = SCORE) -> float:
        """A head's mean on the evaluation prompts."""
        return float(self.scores[name].values[head.layer, head.index])

    def companion(self, head: Head, part: int) -> Interval:
        """One companion of a head on the evaluation prompts."""
        samples = self.scores[COMPANIONS].samples[:, head.layer, head.index, part]
        return mean_interval(samples, confidence=self.confidence, cluster=self.evaluation.cluster)

    def margin(self, head: Head) -> Interval:
        """How much more of a head's attention goes to the gold document than to the largest other one."""
        samples = self.scores[COMPANIONS].samples[:, head.layer, head.index]
        apart = samples[:, GOLD] - samples[:, LARGEST]
        return mean_interval(apart, confidence=self.confidence, cluster=self.evaluation.cluster)

    def p(self) -> Float[np.ndarray, "layer head"]:
        """Share of shuffled draws in which any head has as large a score, the true one counted."""
        values = self.scores[SCORE].values
        largest = np.nanmax(self.null, axis=(1, 2))
        raw = (1 + (largest[:, None, None] >= values).sum(0)) / (1 + len(largest))
        return np.where(np.isfinite(values), raw, np.nan)

    def contextual(self) -> list[Head]:
        """Heads that read the gold document, in their order.

        Their score exceeds the largest of any head on shuffled words in all but 5 % of draws, and they look more at the
        gold document than at the largest other one.
        """
        p = self.p()
        return [head for head in self.order if p[head.layer, head.index] <= LEVEL and self.margin(head).low > 0]

    def by_place(self, head: Head) -> pd.DataFrame:
        """One row per place of the gold document: the head's score there, with its interval over questions."""
        rows = []
        samples = self.scores[SCORE].samples[:, head.layer, head.index]
        cluster = np.array(self.evaluation.cluster)
        for slot in self.evaluation.slots:
            here = np.array([one.gold == slot for one in self.evaluation.made])
            found = mean_interval(samples[here], confidence=self.confidence, cluster=cluster[here])
            rows.append({"place": slot + 1, "value": found.mean, "low": found.low, "high": found.high})
        return pd.DataFrame(rows)

    def answers_by_place(self) -> pd.DataFrame:
        """One row per place: share of the right answer's tokens in the answer read, and its log-probability a token."""
        rows = []
        logprob = self.removed.logprob[()]
        for slot in self.evaluation.slots:
            here = [index for index, one in enumerate(self.evaluation.made) if one.gold == slot]
            own = [self.evaluation.made[index] for index in here]
            per_token = [logprob[index] / len(one.answer) for index, one in zip(here, own, strict=True)]
            said = [recalled(one.answer, one.right) for one in own]
            rows.append({"place": slot + 1, "said": float(np.mean(said)), "log-probability": float(np.mean(per_token))})
        return pd.DataFrame(rows)

    def said(self) -> Interval:
        """Share of the right answer's tokens that the answer read says."""
        values = [recalled(one.answer, one.right) for one in self.evaluation.made]
        return mean_interval(values, confidence=self.confidence, cluster=self.evaluation.cluster)

    def without(self, count: int) -> Interval:
        """Change of the answer's log-probability without the ``count`` most contextual heads."""
        heads = self.chosen(count)
        change = self.removed.logprob[heads] - self.removed.logprob[()]
        return mean_interval(change, confidence=self.confidence, cluster=self.evaluation.cluster)

    @property
    def counts(self) -> list[int]:
        """How many heads were taken away together."""
        return list(self.removed.sets.chosen)

    def chosen(self, count: int) -> tuple[Head, ...]:
        """The ``count`` most contextual heads, by layer and index."""
        return tuple(sorted(self.removed.sets.chosen[count])) if count else ()

    def random(self, count: int, control: str) -> Float[np.ndarray, " set"]:
        """The same for every random set of a control, means over prompts; empty where too few heads are left."""
        sets = self.removed.sets.random[control, count]
        whole = self.removed.logprob[()]
        return np.array([float((self.removed.logprob[tuple(sorted(one))] - whole).mean()) for one in sets])

    def against(self, count: int, control: str) -> NullComparison:
        """What the most contextual heads do, beside the random sets."""
        return compare_with_null(
            self.without(count).mean,
            self.random(count, control),
            tail="less",
            confidence=self.confidence,
        )

    def right(self, count: int) -> Interval:
        """Share of the answer's tokens that stay most likely without the ``count`` most contextual heads (0: all)."""
        return mean_interval(
            self.removed.right[self.chosen(count)], confidence=self.confidence, cluster=self.evaluation.cluster
        )

    def table(self) -> pd.DataFrame:
        """The long table: one row per head and quantity, with its interval."""
        parts = []
        for name, table in {
            "contextual, selection": self.chosen_by[SCORE],
            "contextual, evaluation": self.scores[SCORE],
            "companions": self.scores[COMPANIONS],
            "gold alone": self.scores[GOLD_ONLY],
            f"effect, {self.ablation}": self.effects,
            f"effect at the answer, {self.ablation}": self.effects_at_answer,
        }.items():
            rows = table.table(confidence=self.confidence)
            rows.insert(0, "quantity", name)
            parts.append(rows)
        return pd.concat(parts, ignore_index=True)

    def wide(self) -> pd.DataFrame:
        """One row per head, the most contextual first."""
        p, reading, made = self.p(), set(self.contextual()), []
        low, high = bootstrap_means(
            self.scores[SCORE].samples, confidence=self.confidence, cluster=self.evaluation.cluster
        )
        for head in self.order:
            at = (head.layer, head.index)
            made.append(
                {
                    "head": str(head),
                    "gold": self.at(head),
                    "low": low[at],
                    "high": high[at],
                    "other questions": float(self.chosen_by[SCORE].values[at]),
                    "largest other": self.companion(head, LARGEST).mean,
                    "all others": self.companion(head, IRRELEVANT).mean,
                    "first tokens": self.companion(head, SINK).mean,
                    "gold alone": self.at(head, GOLD_ONLY),
                    "shuffled": float(self.null[(slice(None), *at)].mean()),
                    "p": p[at],
                    "effect": float(self.effects.values[at]),
                    "at the answer": float(self.effects_at_answer.values[at]),
                    "reads": "yes" if head in reading else "",
                }
            )
        return pd.DataFrame(made)

    def sets(self) -> pd.DataFrame:
        """One row per count: the answer without the most contextual heads and without random ones."""
        rows = []
        for count in self.counts:
            found = self.without(count)
            row: dict[str, object] = {
                "heads": count,
                "which": " ".join(map(str, self.chosen(count))),
                "change": found.mean,
                "low": found.low,
                "high": found.high,
                "right": self.right(count).mean,
            }
            for control in CONTROLS:
                random = self.random(count, control)
                null = self.against(count, control) if len(random) else None
                row |= {control: float(random.mean()) if len(random) else np.nan, f"{control}, sets": len(random)}
                row |= {f"{control}, p": np.nan if null is None or null.p is None else null.p}
            rows.append(row)
        return pd.DataFrame(rows)


def recalled(answer: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Share of the right answer's tokens that an answer says, repeats counted.

    Example:
        >>> recalled((4, 5, 5), (5, 6))
        0.5
    """
    left = list(answer)
    hits = 0
    for token in right:
        if token in left:
            left.remove(token)
            hits += 1
    return hits / len(right)
