"""``HeadType``: what kinds of heads there are and how one is told, as data. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Stage = Literal[
    "knowledge recalling",
    "in-context identification",
    "latent reasoning",
    "expression preparation",
    "outside the survey",
]
Prompts = Literal["random", "repeats", "given"]
Effect = Literal["helps", "hurts", "either"]
Removal = Literal["head", "first key"]

SURVEY = "Zheng et al., 2024 (arXiv 2409.03752)"


@dataclass(frozen=True)
class HeadTest:
    """How a head of one type is told: by where it looks, by its weights, and by what is lost without it.

    Attributes:
        looks: what the pattern score measures, in words.
        pattern: ``module:function`` that measures it and its null, ``function(setup) -> PatternReading``.
        prompts: what the pattern is read on: ``random`` tokens said once, random ``repeats`` said twice, or the prompts
            ``given``.
        null: what the pattern score is held against, in words.
        task: whose metric must change without the head: ``repeats`` (say the next token of a repeated text) or the
            batch's ``given`` answers.
        effect: what the head does to that metric: ``helps``, ``hurts``, or ``either`` (it matters).
        removal: what is taken away: the ``head``, or its sight of the ``first key``.
        weight: name of the score of weights that goes with the type, ``""`` for none.
        weight_is: what the type makes one expect of it, in words.
        spans: names that the prompts given must have.
        more_spans: a prefix of further names of which at least two must be there (``"option"``).
    """

    looks: str
    pattern: str
    prompts: Prompts
    null: str
    task: Literal["repeats", "given"]
    effect: Effect
    removal: Removal = "head"
    weight: str = ""
    weight_is: str = ""
    spans: tuple[str, ...] = ()
    more_spans: str = ""

    @property
    def words(self) -> str:
        """The whole test in a sentence."""
        what = {"helps": "lowers", "hurts": "raises", "either": "changes"}[self.effect]
        on = "saying a repeated text again" if self.task == "repeats" else "the batch's answers"
        taken = "the head" if self.removal == "head" else "its sight of the first token"
        return f"{self.looks}, beyond {self.null}; and removing {taken} {what} the metric of {on}"


@dataclass(frozen=True)
class HeadType:
    """One kind of head.

    Attributes:
        name: the survey's word, in snake case.
        stage: when in the model's work such heads act.
        summary: what such a head does, in one line.
        source: the paper that names it, or the survey that lists it.
        test: how one is told here; None where nothing here can tell.
        missing: what a test would need, where there is none.
    """

    name: str
    stage: Stage
    summary: str
    source: str
    test: HeadTest | None = None
    missing: str = ""

    def __str__(self) -> str:
        return self.summary

    def card(self) -> dict[str, Any]:
        """Everything that is known of the type, as plain values."""
        about: dict[str, Any] = {"stage": self.stage, "source": self.source}
        if self.test is None:
            return {**about, "test": f"no test here: {self.missing}"}
        needs = [*self.test.spans, *([f"{self.test.more_spans} 0, 1 ..."] if self.test.more_spans else [])]
        return {
            **about,
            "pattern": f"{self.test.looks} (on {_PROMPTS[self.test.prompts]})",
            "null": self.test.null,
            "causal": self.test.words.rpartition("; and ")[2],
            "weights": f"{self.test.weight}: {self.test.weight_is}" if self.test.weight else "",
            "spans": ", ".join(needs),
        }


_PROMPTS = {
    "random": "random tokens said once",
    "repeats": "random tokens said twice",
    "given": "the prompts given",
}
