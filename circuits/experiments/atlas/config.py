"""Settings of the atlas experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from circuits.config import ExperimentConfig
from circuits.experiments.copying.config import Replacement, all_different
from interp.names import lookup
from interp.scores import SCORES


def known_score(name: str) -> str:
    """``name``, if it is a head score; near matches otherwise."""
    lookup(name, SCORES, "score")
    return name


ScoreName = Annotated[str, AfterValidator(known_score)]
ScoreNames = Annotated[tuple[ScoreName, ...], AfterValidator(all_different)]


class AtlasConfig(ExperimentConfig):
    """Settings of the atlas experiment; ``circuits show head-atlas`` prints them."""

    experiment: Literal["atlas"] = Field(description="the kind of experiment")
    n_prompts: int = Field(32, ge=4, le=100_000, description="prompts that are scored")
    segment: int | None = Field(
        None, ge=4, le=100_000, description="random tokens that a prompt says twice; 24, or as many as fit, for null"
    )
    texts: tuple[str, ...] = Field((), description="texts to score in place of random tokens")
    scores: ScoreNames = Field((), description="names from `circuits list scores`; every one that applies for []")
    null_prompts: Literal["shuffled", "random"] = Field("shuffled", description="content of the null prompts")
    null_draws: int = Field(10, ge=2, le=1000, description="null prompts per prompt; the band is their central 95 %")
    null_all: bool = Field(
        False, description="nulls of scores with forwards of their own as well, which can take much longer"
    )
    exclude_sinks: bool = Field(False, description="leave each prompt's first token out of every row")
    label: bool = Field(True, description="look for labels, which takes an ablation of every head")
    ablation: Replacement = Field("mean", description="how labels put heads out of the way: mean, resample, or zero")
    margin: float = Field(0.1, ge=0, description="least difference of a label's pattern score from its null")
    patterns: PositiveInt = Field(64, le=64, description="heads whose pattern the page keeps, labelled heads first")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
