"""Settings of the comparison of checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from circuits.experiments.copying.config import CopyingConfig, MethodName


class CheckpointConfig(CopyingConfig):
    """Settings of the comparison of checkpoints; ``circuits show compare-checkpoints`` prints them."""

    experiment: Literal["checkpoints"] = Field(description="the kind of experiment")
    method: MethodName = Field("mean", description="method that heads are judged by, from `circuits list methods`")
    first: int | None = Field(None, ge=0, description="step of the earlier checkpoint; the first there is for null")
    second: int | None = Field(None, ge=0, description="step of the later checkpoint; the last there is for null")
    threshold: float | None = Field(
        None, gt=0, description="a head is active from this value on; for null a tenth of the largest at any checkpoint"
    )
    factors: tuple[float, ...] = Field(
        (1.3, 0.5, 0.0), min_length=1, description="what the outputs of gained and lost heads are multiplied by"
    )
    draws: int = Field(
        200, ge=2, le=10_000, description="random head sets to compare with; below 20 an interval is shown and no p"
    )
