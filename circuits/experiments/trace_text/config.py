"""Settings of the experiment on traces of texts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from circuits.config import ExperimentConfig
from circuits.experiments.copying.config import Replacement
from circuits.experiments.tracing.config import MethodName, TracingConfig
from interp.errors import BadInput


class TextSettings(ExperimentConfig):
    """Which prompts an experiment on traces of texts reads."""

    texts: tuple[str, ...] = Field(
        (),
        description="texts of your own; by default facts told and asked for (the zoo's needle models), random tokens "
        "said twice (other causal language models), or sentences (encoders without a head)",
    )
    answers: tuple[tuple[str, ...], ...] = Field(
        (), description="per text its right answer and, where wanted, a wrong one; by default what the model says"
    )
    answer_tokens: Literal["one", "first"] = Field(
        "one", description="'first' lets an answer's first token stand for an answer of several"
    )
    n_prompts: int = Field(32, ge=4, le=10_000, description="prompts that are drawn, or texts that are read at most")
    length: int = Field(64, ge=12, description="tokens of a drawn prompt, about")
    metric: Literal["logit_difference", "answer_logprob"] | None = Field(
        None, description="what is explained; null: logit_difference where there are wrong answers, else answer_logprob"
    )

    @model_validator(mode="after")
    def _answered(self) -> TextSettings:
        if self.answers and len(self.answers) != len(self.texts):
            raise BadInput(f"answers: {len(self.answers)} for {len(self.texts)} texts; give one list per text.")
        if self.texts and len(self.texts) < 4:  # noqa: PLR2004 - an interval over fewer says nothing
            raise BadInput(f"texts: {len(self.texts)}; give at least 4, since intervals are over texts.")
        return self


class TraceTextConfig(TextSettings, TracingConfig):
    """Settings of the experiment on traces of texts; ``circuits show trace-text`` prints them."""

    experiment: Literal["trace_text"] = Field(description="the kind of experiment")
    special: bool = Field(
        False, description="whether special tokens (BOS, CLS, SEP), where attention rests, are compared as well"
    )
    heads: bool = Field(True, description="trace through each head, beside ablation and gates")
    head_methods: tuple[MethodName, ...] = Field(("rollout",), description="ways of tracing that are split by head")
    ablation: Replacement = Field("zero", description="what takes the place of a head's output: zero, mean or resample")
    gate_updates: NonNegativeInt = Field(60, description="steps of each fit of gates; 0 for none")
    gate_fits: PositiveInt = Field(3, description="random starts of the gates")
    shown: PositiveInt = Field(2, description="prompts that are shown token by token")
