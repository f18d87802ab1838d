"""Settings that every experiment on copying pairs has."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from circuits.config import ExperimentConfig
from circuits.methods import REPLACEMENTS
from interp.attribution.methods import METHODS
from interp.errors import BadInput
from interp.names import lookup


def known_method(name: str) -> str:
    """``name``, if it is a method of attribution; near matches otherwise."""
    lookup(name, METHODS, "attribution method")
    return name


def known_replacement(name: str) -> str:
    """``name``, if it is something that can be put in place of a head's output; near matches otherwise."""
    lookup(name, REPLACEMENTS, "ablation")
    return name


def all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, if none stands there twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{', '.join(twice)} stands there twice.")
    return names


MethodName = Annotated[str, AfterValidator(known_method)]
Replacement = Annotated[str, AfterValidator(known_replacement)]
Methods = Annotated[tuple[MethodName, ...], AfterValidator(all_different)]


class CopyingConfig(ExperimentConfig):
    """The settings of every experiment on copying pairs; a kind adds its own."""

    n_prompts: int = Field(
        96, ge=8, le=100_000, description="pairs of prompts: half to choose heads on, half to judge them on"
    )
    segment: int = Field(
        24, ge=4, le=100_000, description="S: a prompt is a start token, S distinct tokens, and all but the last again"
    )
    ablation: Replacement = Field(
        "mean", description="what takes the place of a head's output: mean, resample, or zero (off-distribution)"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
