"""Settings that every experiment on tracing has; nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from circuits.config import ExperimentConfig
from interp.errors import BadInput
from interp.names import lookup, unknown
from interp.tracing import METHODS

Option = bool | int | float | str


def known_method(name: str) -> str:
    """``name``, if it is a way of tracing; near matches otherwise."""
    lookup(name, METHODS, "way of tracing")
    return name


def intervenes(name: str) -> bool:
    """Whether a way of tracing takes sources away and looks at the answer, as blank-out does.

    Example:
        >>> intervenes("leave-one-out"), intervenes("rollout"), intervenes("gradient")
        (True, False, False)
    """
    return METHODS[name].needs == "edits" and METHODS[name].targets == "answer"


MethodName = Annotated[str, AfterValidator(known_method)]


class TracingConfig(ExperimentConfig):
    """Settings of an experiment that traces prompts by several methods and asks which predicts a reference."""

    methods: tuple[MethodName, ...] | None = Field(
        None, description="ways of tracing, names from `circuits list traces`; null for every one that the model can do"
    )
    leave_out: tuple[MethodName, ...] = Field((), description="ways of tracing that are left out of 'every one'")
    options: dict[MethodName, dict[str, Option]] = Field(
        {}, description="options of single methods, as in {lime: {samples: 128}}"
    )
    references: tuple[MethodName, ...] = Field(
        ("blank-out", "gradient"), min_length=1, description="what the others are held against, the main one first"
    )
    how: Literal["spearman", "kendall", "pearson"] = Field(
        "spearman", description="correlation of two traces of one prompt; equal numbers share their mean rank"
    )
    undefined: Literal["zero", "drop"] = Field(
        "zero", description="a correlation with a trace that does not vary: 0, as the paper has it, or left out"
    )
    random_orders: PositiveInt = Field(200, description="random rankings that every method is held against")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")

    @model_validator(mode="after")
    def _named(self) -> TracingConfig:
        if self.methods is not None:
            for name in (*self.options, *self.leave_out):
                if name not in (*self.methods, *self.references):
                    raise BadInput(unknown(name, (*self.methods, *self.references), "method of this run"))
        return self

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods, with the references, each once, in the order of the registry."""
        wanted = [name for name in METHODS if name not in self.leave_out] if self.methods is None else self.methods
        chosen = {*wanted, *self.references}
        return tuple(name for name in METHODS if name in chosen)
