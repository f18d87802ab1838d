"""Settings of the experiment on traces of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from circuits.experiments.tracing.config import MethodName, TracingConfig
from interp.errors import BadInput


class TraceImageConfig(TracingConfig):
    """Settings of the experiment on traces of images; ``circuits show trace-image`` prints them."""

    experiment: Literal["trace_image"] = Field(description="the kind of experiment")
    images: str | None = Field(
        None,
        description="a folder of images of your own; by default handwritten digits (digits-vit) or pictures of shapes "
        "with questions (shapes-vlm)",
    )
    regions: str | None = Field(
        None, description="a folder of masks with the images' names, white where the answer is; the whole image resized"
    )
    question: str = Field(
        "", description="what a vision-language model is asked about images of your own, with its image token"
    )
    n_images: int = Field(32, ge=4, le=10_000, description="images that are traced, at most")
    ink: float = Field(0.5, gt=0, le=1, description="of a digit, how dark a pixel is that counts as written on")
    metric: Literal["logit_difference", "answer_logprob"] = Field("answer_logprob", description="what is explained")
    stack: str | None = Field(None, description="whose tokens; by default the stack that makes the logits")
    curves: NonNegativeInt = Field(16, description="images of the deletion and insertion curves; 0 for none")
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0), min_length=2, description="of the patches that are covered, from 0 to 1"
    )
    curve_draws: PositiveInt = Field(20, description="random orders of the patches, for the curves' band")
    randomised: tuple[MethodName, ...] | None = Field(
        None,
        description="methods whose traces are compared as layers are drawn anew, from the top down; null for every one "
        "that leaves the image as it is, [] for none",
    )
    randomised_images: PositiveInt = Field(8, description="images of that check")
    shown: PositiveInt = Field(3, description="images that are shown with every method's overlay")

    @model_validator(mode="after")
    def _whole(self) -> TraceImageConfig:
        if self.regions is not None and self.images is None:
            raise BadInput("regions= names a folder of masks for images of your own; give images=FOLDER as well.")
        if list(self.shares) != sorted(set(self.shares)) or self.shares[0] != 0 or self.shares[-1] != 1:
            raise BadInput(f"shares={list(self.shares)}: expected numbers that rise from 0 to 1.")
        return self
