"""Settings of the contextual experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from circuits.config import ExperimentConfig
from circuits.experiments.copying.config import Replacement
from interp.errors import BadInput


def ascending(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """``numbers``, if each is larger than the one before."""
    if list(numbers) != sorted(set(numbers)):
        raise BadInput(f"{list(numbers)}: expected numbers that grow, such as [1, 2, 4].")
    return numbers


def whole_template(text: str) -> str:
    """``text``, if it has a place for the documents and one for the question."""
    if text.count("{documents}") != 1 or text.count("{question}") != 1:
        raise BadInput(f"{text!r}: expected {{documents}} and {{question}}, once each.")
    return text


def item_template(text: str) -> str:
    """``text``, if it has a place for a document."""
    if text.count("{document}") != 1:
        raise BadInput(f"{text!r}: expected {{document}} once (and {{number}}, where wanted).")
    return text


class ContextualConfig(ExperimentConfig):
    """Settings of the contextual experiment; ``circuits show contextual-heads`` prints them."""

    experiment: Literal["contextual"] = Field(description="the kind of experiment")
    documents: str | None = Field(
        None,
        description=(
            "a file of JSON lines {question, documents: [text], gold: number of the document that holds the answer, "
            "answer: text}; by default facts drawn for the zoo's needle models"
        ),
    )
    n_questions: int = Field(
        16, ge=4, le=10_000, description="questions: half to choose heads on, half to judge them on"
    )
    n_documents: int = Field(12, ge=3, le=200, description="documents of a prompt, the gold one among them, at most")
    length: PositiveInt = Field(256, description="tokens of a drawn prompt; a file's prompts are as long as they are")
    places: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], AfterValidator(ascending)] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="where the gold document stands, 0 first to 1 last"
    )
    template: Annotated[str, AfterValidator(whole_template)] = Field(
        "{documents}\n\nQuestion: {question}\nAnswer:", description="the prompt of a file's question"
    )
    document: Annotated[str, AfterValidator(item_template)] = Field(
        "Document [{number}] {document}\n", description="one document in it"
    )
    chat: bool = Field(False, description="put a file's prompt into the model's chat template")
    answer: Literal["generated", "given"] = Field(
        "generated", description="whose answer is read: the model's own, written greedily, or the right one"
    )
    max_new_tokens: PositiveInt = Field(100, description="of the longest answer that the model writes")
    stop: str | None = Field(None, description="text of one token that ends an answer")
    rows: Literal["answer", "predicting"] = Field(
        "answer", description="rows that count: those of the answer's own tokens, or those that predict them"
    )
    ablation: Replacement = Field(
        "mean", description="what takes the place of a head's output: mean, resample, or zero (off-distribution)"
    )
    counts: Annotated[tuple[PositiveInt, ...], AfterValidator(ascending)] = Field(
        (1, 2, 4, 8), min_length=1, description="how many of the most contextual heads are taken away together"
    )
    draws: int = Field(20, ge=2, le=1000, description="random sets for each count; below 20 a band is shown and no p")
    null_draws: int = Field(20, ge=2, le=1000, description="times the prompts' words are shuffled, for the null")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
