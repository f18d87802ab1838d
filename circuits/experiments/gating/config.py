"""Settings of the gating experiments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from circuits.config import ExperimentConfig


class FitConfig(ExperimentConfig):
    """The settings of every experiment that fits gates; a kind adds its own."""

    n_prompts: int = Field(64, ge=8, le=100_000, description="prompts: half to fit gates on, half to check them on")
    segment: int = Field(12, ge=4, le=100_000, description="S: length of the random segment")
    fits: int = Field(10, ge=2, le=1_000, description="seeds: fits from different starting gates, all in one batch")
    updates: int = Field(120, ge=2, le=1_000_000, description="updates of each fit")
    prompts_per_update: PositiveInt = Field(8, description="prompts that one update sees")
    lam: float = Field(0.1, gt=0, le=100, description="weight of the pull towards open or shut gates")
    keep_every: PositiveInt = Field(5, description="updates between two states from which a stopped fit goes on")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")


class GatingConfig(FitConfig):
    """Settings of the gating experiment; ``circuits show chg-induction`` prints them."""

    experiment: Literal["gating"] = Field(description="the kind of experiment")
    schedule: Literal["paper", "code"] = Field("paper", description="learning rates, as in the paper or in its code")
    threshold: float = Field(0.5, gt=0, lt=1, description="from where on a score gives a head a role")
    curves: int = Field(6, ge=1, le=16, description="heads whose gates are drawn along the fits")
