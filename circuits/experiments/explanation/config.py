"""Settings of the experiment on attention as an explanation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from circuits.experiments.trace_text.config import TextSettings
from circuits.experiments.tracing.config import MethodName, Option
from interp.errors import BadInput


class ExplanationConfig(TextSettings):
    """Settings of the experiment on attention as an explanation; ``circuits show explain-or-not`` prints them."""

    experiment: Literal["explanation"] = Field(description="the kind of experiment")
    traced: tuple[MethodName, ...] = Field(
        ("rollout", "flow"), description="ways of tracing attention alone that are compared beside its mean and maximum"
    )
    explanations: tuple[MethodName, ...] = Field(
        ("gradient", "gradient-input", "lime", "leave-one-out"),
        min_length=1,
        description="explanations made after the fact, names from `circuits list traces`",
    )
    value_aware: bool = Field(
        True, description="compare with attention weighted by values and the answer's direction as well"
    )
    options: dict[MethodName, dict[str, Option]] = Field({}, description="options of single ways of tracing")
    special: bool = Field(False, description="whether special tokens (BOS, CLS, SEP) are compared as well")
    top: PositiveInt = Field(5, description="how many of the foremost tokens are compared, and audited")
    important: MethodName = Field("leave-one-out", description="what says which tokens matter, for the audit")
    audited: NonNegativeInt = Field(16, description="prompts of the audit of hidden tokens; 0 for none")
    battery: NonNegativeInt = Field(4, description="prompts on which other weights are tried; 0 for none")
    permutations: PositiveInt = Field(50, description="random orders of each row's weights")
    starts: PositiveInt = Field(2, description="starts of each search for adversarial weights")
    steps: PositiveInt = Field(150, description="steps of each search for adversarial weights")
    curves: NonNegativeInt = Field(16, description="prompts of the deletion curves; 0 for none")
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0), min_length=2, description="of the tokens that are hidden, from 0 to 1"
    )
    draws: PositiveInt = Field(40, description="random orders of tokens, for the curves' band")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")

    @field_validator("shares")
    @classmethod
    def _rising(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)) or shares[0] != 0 or shares[-1] != 1:
            raise BadInput(f"shares={list(shares)}: expected numbers that rise from 0 to 1.")
        return shares
