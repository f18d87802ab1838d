"""Settings of the attribution experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from circuits.experiments.copying.config import CopyingConfig, Methods

EVERY_METHOD = (
    *("zero", "mean", "resample", "patch"),
    *("gradient", "gate_gradient_abs", "attribution_patching", "integrated_gradients", "direct", "shapley"),
)


class AttributionConfig(CopyingConfig):
    """Settings of the attribution experiment; ``circuits show attribute-induction`` prints them."""

    experiment: Literal["attribution"] = Field(description="the kind of experiment")
    methods: Methods = Field(
        EVERY_METHOD, min_length=1, description="methods of attribution, names from `circuits list methods`"
    )
    top_k: PositiveInt = Field(2, description="heads that each method calls its top, chosen on one half of the prompts")
    draws: int = Field(
        200, ge=2, le=10_000, description="random head sets to compare with; below 20 an interval is shown and no p"
    )
    reassignments: int = Field(999, ge=2, le=100_000, description="how often answers are reassigned over prompts")
    steps: int = Field(16, ge=2, le=1_000, description="points of the quadrature of integrated gradients")
    permutations: int = Field(16, ge=4, le=100_000, description="orders of heads that Shapley values are sampled from")
