"""Settings of the pruning experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from circuits.experiments.copying.config import CopyingConfig, Methods


class PruningConfig(CopyingConfig):
    """Settings of the pruning experiment; ``circuits show pruning-curve`` prints them."""

    experiment: Literal["pruning"] = Field(description="the kind of experiment")
    rankings: Methods = Field(
        ("mean", "gradient", "gate_gradient_abs", "direct"),
        min_length=1,
        description="methods that heads are ranked by, names from `circuits list methods`",
    )
    recompute: bool = Field(True, description="one curve more, for which what is left is ranked anew after every cut")
    cuts: PositiveInt = Field(8, description="equal steps from all heads to none")
    draws: int = Field(
        100, ge=2, le=10_000, description="random orders to compare with; below 20 a band is shown and no p"
    )
    keep: float = Field(0.9, gt=0, lt=1, description="share of the model's metric that counts as kept")
