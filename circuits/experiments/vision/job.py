"""One run of the vision experiment: the model, the settings, the questions in parts of one length, finished pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import interp
from circuits.experiments.opening import open_model
from circuits.experiments.pieces import Pieces
from circuits.experiments.vision.config import VisionConfig
from circuits.experiments.vision.questions import Questions, Sorts, questions_of
from circuits.outcome import Workplace
from circuits.progress import Progress
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.model.image_tokens import image_token_ids

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model
    from interp.model.run import Metric

SORTS = ("vision", "text")
FEWEST_REFERENCES = 2
OTHER_HALF = {"selection": "evaluation", "evaluation": "selection"}


@dataclass(frozen=True, eq=False)
class Part:
    """Some questions of one length, and as long ones of the other half that replaced outputs are taken from."""

    questions: Questions
    reference: Questions | None

    @property
    def fingerprint(self) -> str:
        """Of the questions and the reference."""
        return fingerprint_of(self.questions.fingerprint, self.reference.fingerprint if self.reference else None)


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        model: the handle.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        sorts: the questions.
        metric: of an answer.
    """

    model: Model
    about: dict[str, Any]
    config: VisionConfig
    pieces: Pieces
    progress: Progress
    sorts: Sorts
    metric: Metric
    _lengths: dict[str, list[int]] = field(default_factory=dict)

    def questions(self, sort: str, purpose: str) -> Questions:
        """The questions of a sort (``vision`` or ``text``) for a purpose (``selection`` or ``evaluation``)."""
        return getattr(self.sorts, sort)[purpose]

    def parts(self, sort: str, purpose: str) -> list[Part]:
        """Those questions in parts of one length and at most ``batch_size``, in their order.

        Raises:
            BadInput: the replacement needs other questions as long, and there are too few.
        """
        questions, others = self.questions(sort, purpose), self.questions(sort, OTHER_HALF[purpose])
        lengths, theirs = self._length_of(questions), self._length_of(others)
        made = []
        for places in _runs(lengths, self.config.batch_size):
            length = lengths[places[0]]
            alike = [place for place, own in enumerate(theirs) if own == length]
            if self.config.ablation == "zero":
                made.append(Part(questions.select(places), None))
                continue
            if len(alike) < FEWEST_REFERENCES:
                raise BadInput(
                    f"ablation={self.config.ablation} replaces a head's output by that of questions of the same length "
                    f"in the other half; {len(alike)} of the {sort} questions there have {length} tokens (such as "
                    f"{questions.prompts[places[0]]!r}). Use ablation=zero, or more questions of one form."
                )
            made.append(Part(questions.select(places), others.select(alike)))
        return made

    def batch(self, questions: Questions) -> Batch:
        """The questions as the model takes them."""
        return questions.batch(self.model)

    def _length_of(self, questions: Questions) -> list[int]:
        key = questions.fingerprint
        if key not in self._lengths:
            self._lengths[key] = self.batch(questions).lengths
        return self._lengths[key]

    @property
    def widths(self) -> list[int]:
        """Heads of each layer of the stack that makes the logits; 0 where a layer has no attention."""
        stack = self.model.stack()
        return [stack.n_heads(layer) for layer in range(stack.n_layers)]


def vision_job(config: VisionConfig, place: Workplace, version: str) -> Job:
    """The run that the settings ask for, with its model loaded and its questions made.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: a model without image tokens or processor, or questions that do not do.
    """
    opened = open_model(config, place)
    model = opened.model
    if not image_token_ids(model):
        raise BadInput(
            f"{config.model!r} ({type(model.hf).__name__}) takes no images among its tokens; this experiment needs a "
            "vision-language model such as shapes-vlm, a LLaVA, PaliGemma, Qwen2-VL or SmolVLM."
        )
    if model.processor is None:
        raise BadInput(
            f"{config.model!r} came without an image processor; it needs pillow (pip install pillow) and the files "
            "that save_pretrained of a processor writes, beside the weights."
        )
    return Job(
        model=model,
        about=opened.about,
        config=config,
        pieces=Pieces(place.units, version, opened.fingerprint, config.batch_size, config.seed),
        progress=place.progress,
        sorts=questions_of(config, model),
        metric=getattr(interp, config.metric),
    )


def _runs(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Places of neighbours of one length, at most so many at a time."""
    run: list[int] = []
    for place, length in enumerate(lengths):
        if run and (len(run) == most or lengths[run[0]] != length):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
