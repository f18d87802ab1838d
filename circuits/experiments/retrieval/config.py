"""Settings of the retrieval experiment."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from circuits.config import ExperimentConfig
from interp.errors import BadInput
from interp.names import lookup

MASKS: Mapping[str, str] = MappingProxyType(
    {"zero": "set to zero", "uniform": "made to attend evenly", "mean": "replaced by its mean over other prompts"}
)


def known_mask(name: str) -> str:
    """``name``, if it is a way to mask a head; near matches otherwise."""
    lookup(name, MASKS, "mask")
    return name


def ascending(counts: tuple[int, ...]) -> tuple[int, ...]:
    """``counts``, if each is larger than the one before."""
    if list(counts) != sorted(set(counts)):
        raise BadInput(f"{list(counts)}: expected numbers that grow, such as [1, 2, 4, 8].")
    return counts


class FactSettings(BaseModel):
    """A fact to hide: a sentence, the question that it answers, and the part of the sentence that is the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sentence: str
    question: str
    answer: str


class RetrievalConfig(ExperimentConfig):
    """Settings of the retrieval experiment; ``circuits show retrieval-heads`` prints them."""

    experiment: Literal["retrieval"] = Field(description="the kind of experiment")
    text: str | None = Field(
        None, description="a text file to hide the facts in; by default the babble of the zoo's needle models"
    )
    facts: tuple[FactSettings, ...] = Field(
        (), description="sentence, question and answer of each fact, with a text; by default drawn from the zoo's words"
    )
    template: str = Field("{context} {question}", description="the prompt around {context} and {question}")
    n_facts: int = Field(
        8, ge=4, le=24, description="facts that are drawn: half to choose heads on, half to judge them on"
    )
    distractors: int = Field(6, ge=0, le=12, description="other facts told in the same drawn text")
    lengths: tuple[PositiveInt, ...] = Field((128, 512), min_length=1, description="tokens of a prompt")
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.5, 1.0), min_length=1, description="where a fact stands in the text, from 0 to 1"
    )
    max_new_tokens: PositiveInt = Field(16, description="of the longest answer that the model writes")
    stop: str | None = Field(".", description="text that ends an answer; a line break suits most models")
    threshold: float = Field(0.1, gt=0, le=1, description="score from which on a head is a retrieval head")
    masks: tuple[Annotated[str, AfterValidator(known_mask)], ...] = Field(
        ("zero", "uniform", "mean"), min_length=1, description="what masking makes of a head: zero, uniform, mean"
    )
    counts: Annotated[tuple[PositiveInt, ...], AfterValidator(ascending)] = Field(
        (1, 2, 4), min_length=1, description="how many heads are masked together"
    )
    draws: int = Field(20, ge=2, le=1000, description="random sets for each count; below 20 a band is shown and no p")
    null_draws: int = Field(
        20, ge=2, le=1000, description="times the prompts' words are shuffled, for the scores' null"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
