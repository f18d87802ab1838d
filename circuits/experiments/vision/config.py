"""Settings of the vision experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from circuits.config import ExperimentConfig
from circuits.experiments.copying.config import Replacement
from interp.errors import BadInput


class VisionConfig(ExperimentConfig):
    """Settings of the vision experiment; ``circuits show vision-heads`` prints them."""

    experiment: Literal["vision"] = Field(description="the kind of experiment")
    questions: str | None = Field(
        None,
        description="a CSV file with the columns image, question, answer and, where the metric needs it, wrong; rows "
        "without an image are the text questions. By default pictures and questions of shapes, for shapes-vlm",
    )
    images: str | None = Field(None, description="the folder that the CSV's images lie in; its own by default")
    template: str = Field("<image> {question}", description="prompt of a question with an image; holds {question}")
    text_template: str = Field("{question}", description="prompt of a question without one")
    answer_tokens: Literal["one", "first"] = Field(
        "one", description="'first' lets an answer's first token stand for an answer of several"
    )
    n_prompts: int = Field(
        192,
        ge=16,
        le=100_000,
        description="most questions of each sort: half choose heads, half judge them",
    )
    metric: Literal["logit_difference", "answer_logprob"] = Field(
        "answer_logprob", description="of an answer; logit_difference needs a wrong answer to each question"
    )
    ablation: Replacement = Field(
        "mean",
        description="what takes the place of a head's output: mean or resample over other questions as long as this "
        "one, or zero (off-distribution)",
    )
    outliers: bool = Field(True, description="set divergence to 0 where the paper's rule calls a head an outlier")
    relative: bool = Field(False, description="divide divergence by the norms, so that large heads are not favoured")
    first_layer: NonNegativeInt = Field(
        1, description="layers below it are neither ranked nor amplified; the paper leaves out the first as well"
    )
    top: tuple[PositiveInt, ...] = Field((2, 4), min_length=1, description="how many top heads to take out")
    per_layer: tuple[PositiveInt, ...] = Field(
        (1, 2), description="how many top heads of every layer to take out; the half of each layer always is"
    )
    random_sets: int = Field(100, ge=0, le=10_000, description="random head sets with as many heads per layer")
    reinforce: float = Field(2.0, gt=0, le=100, description="factor on the upper half of each layer's heads (VHR)")
    reinforce_draws: int = Field(10, ge=0, le=1000, description="random halves of each layer, amplified as well")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")

    @model_validator(mode="after")
    def _templates(self) -> VisionConfig:
        for name in ("template", "text_template"):
            if "{question}" not in getattr(self, name):
                raise BadInput(f"{name}={getattr(self, name)!r} has no {{question}} in it.")
        if self.images is not None and self.questions is None:
            raise BadInput("images= names a folder of pictures; give questions=FILE.csv, what is asked about them.")
        return self
