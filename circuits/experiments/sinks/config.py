"""Settings of the sinks experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from circuits.config import ExperimentConfig
from circuits.experiments.atlas.config import ScoreNames


class SinksConfig(ExperimentConfig):
    """Settings of the sinks experiment; ``circuits show sinks`` prints them."""

    experiment: Literal["sinks"] = Field(description="the kind of experiment")
    n_prompts: int = Field(64, ge=4, le=100_000, description="prompts of random tokens said twice")
    tokens: int = Field(
        64, ge=10, le=1_000_000, description="most tokens of a prompt; the share of a uniform head falls with it"
    )
    texts: tuple[str, ...] = Field((), description="texts to read in place of random tokens")
    eps: float = Field(0.3, gt=0, lt=1, description="a head is a sink head where its score exceeds this")
    compare: ScoreNames = Field(
        ("normalised_entropy", "mean_distance", "effective_support", "concentration", "induction", "previous_token"),
        min_length=1,
        description="scores to measure with and without the first token",
    )
    masking: bool = Field(True, description="forbid heads to look at the first token and see what it costs")
    random_sets: int = Field(100, ge=2, le=10_000, description="random sets of heads to compare the sink heads with")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
