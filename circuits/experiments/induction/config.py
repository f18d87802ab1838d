"""Settings of the induction experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from circuits.config import ExperimentConfig
from circuits.methods import REPLACEMENTS
from interp.names import lookup

NEEDED = ("previous_token", "duplicate_token", "induction", "prefix_matching", "copying")


def known_score(name: str) -> str:
    """``name``, if it is a score; near matches otherwise."""
    from interp.scores import SCORES

    lookup(name, SCORES, "score")
    return name


def known_method(name: str) -> str:
    """``name``, if it is something that can be put in place of a head's output; near matches otherwise."""
    lookup(name, REPLACEMENTS, "ablation")
    return name


class InductionConfig(ExperimentConfig):
    """Settings of the induction experiment; ``circuits show induction`` prints them."""

    experiment: Literal["induction"] = Field(description="the kind of experiment")
    n_prompts: int = Field(
        64, ge=4, le=100_000, description="prompts of random tokens: half to choose heads on, half to judge them on"
    )
    segment: int = Field(
        50, ge=4, le=100_000, description="S: each prompt is a start token, S distinct random tokens, and the same S"
    )
    texts: tuple[str, ...] = Field((), description="natural prompts; each is said twice")
    scores: tuple[Annotated[str, AfterValidator(known_score)], ...] = Field(
        NEEDED, min_length=1, description="head scores, names from `circuits list scores`"
    )
    ablation: Annotated[str, AfterValidator(known_method)] = Field(
        "mean", description="what takes the place of a head's output: mean, resample, or zero (off-distribution)"
    )
    top_k: PositiveInt = Field(
        2, description="size of the set of heads with the largest effects, chosen on one half and judged on the other"
    )
    draws: int = Field(
        200, ge=2, le=10_000, description="random head sets to compare with; below 20 an interval is shown and no p"
    )
    reassignments: int = Field(
        999,
        ge=2,
        le=100_000,
        description="how often answers are reassigned over prompts; as few as draws in a quick run",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
    threshold: float = Field(0.4, gt=0, lt=1, description="a head is called by a score's name from this value on")
    emergence: bool = Field(
        True, description="whether to follow the scores over the model's checkpoints, if it has any"
    )
    shown: int = Field(4, ge=0, le=16, description="heads whose attention over real tokens is drawn")
