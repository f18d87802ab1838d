"""Settings of the contrastive gating experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from circuits.experiments.gating.config import FitConfig
from interp.errors import BadInput

Format = Literal["once", "twice", "apart"]


def formats_differ(pair: tuple[Format, Format]) -> tuple[Format, Format]:
    """``pair``, if it names two formats."""
    if pair[0] == pair[1]:
        raise BadInput(f"{pair[0]!r} cannot be kept and lost at once; a contrast needs two formats.")
    return pair


class ContrastConfig(FitConfig):
    """Settings of the contrastive gating experiment; ``circuits show chg-contrastive`` prints them."""

    experiment: Literal["contrast"] = Field(description="the kind of experiment")
    contrasts: tuple[Annotated[tuple[Format, Format], AfterValidator(formats_differ)], ...] = Field(
        (("once", "twice"), ("twice", "apart")),
        min_length=1,
        description="pairs [keep, lose] of formats: once (nothing again), twice, apart (twice with others between)",
    )
    pull: Literal["open", "shut"] = Field(
        "open", description="where gates go that make no difference: open closes only what has to close"
    )
    draws: int = Field(200, ge=2, le=10_000, description="random head sets to compare the closed heads with")
