"""Questions with and without a picture: those about shapes, or a user's own from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import interp
from circuits.experiments.vision.config import VisionConfig
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.model.batch import Batch

if TYPE_CHECKING:
    from interp.model.handle import Model

COLUMNS = ("image", "question", "answer")
FEWEST = 8  # questions of each sort


@dataclass(frozen=True, eq=False)
class Questions:
    """Some questions of one sort.

    Attributes:
        prompts: what the model reads, with its image token where there is a picture.
        answers: per question the right answer and, where known, a wrong one.
        images: per question ``[height, width, 3]`` bytes; None where the questions have no pictures.
        kinds: what sort of question each is, for tables.
        sources: which picture (or which question) each is about; questions about one stay together.
        tokens: whether an answer may be several tokens.
    """

    prompts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    images: tuple[np.ndarray, ...] | None
    kinds: tuple[str, ...]
    sources: tuple[str, ...]
    tokens: str = "one"

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def fingerprint(self) -> str:
        """Of everything that can change a number."""
        return fingerprint_of(self.prompts, self.answers, self.tokens, *(self.images or ()))

    def select(self, places: Sequence[int]) -> Questions:
        """The questions at ``places``, in that order."""

        def pick(values: Any) -> Any:
            return tuple(values[place] for place in places)

        return replace(
            self,
            prompts=pick(self.prompts),
            answers=pick(self.answers),
            images=None if self.images is None else pick(self.images),
            kinds=pick(self.kinds),
            sources=pick(self.sources),
        )

    def batch(self, model: Model) -> Batch:
        """The questions as ``model`` takes them, with their answers."""
        answers = [[answer if answer[:1].isspace() else f" {answer}" for answer in some] for some in self.answers]
        given = {} if self.images is None else {"images": [[image] for image in self.images]}
        return interp.encode(model, list(self.prompts), answers=answers, answer_tokens=self.tokens, **given)  # type: ignore[arg-type]

    def by_length(self, model: Model) -> Questions:
        """The same questions, the shortest first, so that those of one length lie together."""
        lengths = self.batch(model).lengths
        return self.select(sorted(range(len(self)), key=lambda place: (lengths[place], place)))


@dataclass(frozen=True, eq=False)
class Sorts:
    """All questions of an experiment: with pictures and without, to choose heads on and to judge them on.

    ``hard`` are questions with pictures on which the prior and the picture disagree; the judging ones where such
    questions cannot be drawn. ``about`` says in words what they are.
    """

    vision: dict[str, Questions]
    text: dict[str, Questions]
    hard: Questions
    about: str


def questions_of(config: VisionConfig, model: Model) -> Sorts:
    """The questions that the settings ask for.

    Raises:
        BadInput: a file that cannot be read, too few questions of a sort, or a model that does not know shapes.
    """
    found = _from_file(config, Path(config.questions)) if config.questions is not None else _of_shapes(config, model)
    for sort in ("vision", "text"):
        parts = getattr(found, sort)
        for purpose in parts:
            parts[purpose] = parts[purpose].by_length(model)
    return replace(found, hard=found.hard.by_length(model))


def _of_shapes(config: VisionConfig, model: Model) -> Sorts:
    from interp.zoo.shapes import CLEAR, FAINT, random_picture
    from interp.zoo.shapes_text import IMAGE, TEXT, VISION, WORDS, Item, question, text_item

    known = getattr(model.tokenizer, "get_vocab", dict)()
    if not set(WORDS) | {IMAGE} <= set(known):
        raise BadInput(
            f"{model.name!r} does not know the words of the questions about shapes. Give it questions of its own: "
            "questions=FILE.csv with the columns image, question, answer, wrong, and images=FOLDER."
        )

    def made(items: list[Item], pictures: list[Any] | None, purpose: str) -> Questions:
        lead = "" if pictures is None else f"{IMAGE} "
        return Questions(
            tuple(lead + item.prompt for item in items),
            tuple((item.answer, item.wrong) for item in items),
            None if pictures is None else tuple(picture.pixels for picture in pictures),
            tuple(item.kind for item in items),
            tuple(f"{purpose} {number}" for number in range(len(items))),
        )

    half = config.n_prompts // 2
    vision, text = {}, {}
    for number, (purpose, n) in enumerate((("selection", half), ("evaluation", config.n_prompts - half))):
        draw = np.random.default_rng([config.seed, number])
        pictures = [random_picture(draw, contrast=CLEAR) for _ in range(n)]
        asked = [question(picture, VISION[i % len(VISION)], draw) for i, picture in enumerate(pictures)]
        vision[purpose] = made(asked, pictures, purpose)
        text[purpose] = made([text_item(TEXT[i % len(TEXT)], draw) for i in range(n)], None, purpose)
    draw = np.random.default_rng([config.seed, 2])
    faint = [random_picture(draw, usual=0.0, contrast=FAINT) for _ in range(config.n_prompts)]
    hard = made([question(picture, "color", draw) for picture in faint], faint, "hard")
    return Sorts(
        vision,
        text,
        hard,
        "Pictures of one to four clear shapes, with questions for a color, a shape, a row, a column, the count and "
        "whether a shape is there; text questions are opposites, neighbours of a number, stated colours and repeated "
        "lists. The hard questions ask for the color of a faint shape that has an unusual color.",
    )


def _from_file(config: VisionConfig, path: Path) -> Sorts:
    rows = _rows(path)
    folder = Path(config.images) if config.images is not None else path.parent
    if not folder.is_dir():
        raise BadInput(f"images={str(folder)!r} is no folder.")
    seen = [row for row in rows if row["image"]][: config.n_prompts]
    told = [row for row in rows if not row["image"]][: config.n_prompts]
    for sort, some in (("with an image", seen), ("without one (an empty image column)", told)):
        if len(some) < FEWEST:
            raise BadInput(f"{path.name} has {len(some)} questions {sort}; expected {FEWEST} at least of each sort.")
    if config.metric == "logit_difference" and not all(row.get("wrong") for row in [*seen, *told]):
        raise BadInput(f"metric=logit_difference needs the column 'wrong' filled throughout {path.name}.")
    pictures: dict[str, np.ndarray] = {}
    for row in seen:
        if row["image"] not in pictures:
            pictures[row["image"]] = _pixels(folder / row["image"])
    vision = _made(seen, config.template, config, [pictures[row["image"]] for row in seen])
    text = _made(told, config.text_template, config, None)
    parts = {"vision": _halves(vision, config.seed), "text": _halves(text, config.seed)}
    return Sorts(
        parts["vision"],
        parts["text"],
        parts["vision"]["evaluation"],
        f"{len(seen)} questions about {len(pictures)} images and {len(told)} text questions of {path.name}; "
        "questions about one image stay in one half.",
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"questions={str(path)!r} cannot be read ({error}); expected a CSV file.") from error
    if missing:
        raise BadInput(
            f"{path.name} lacks the columns {', '.join(missing)}; expected image, question, answer[, wrong]."
        )
    empty = [number for number, row in enumerate(rows, start=2) if not (row["question"] and row["answer"])]
    if empty:
        raise BadInput(f"{path.name}, line {empty[0]}: a question and an answer are needed in every row.")
    return rows


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise BadInput(f"The image {str(path)!r} cannot be read ({error}).") from error


def _made(
    rows: list[dict[str, str]], template: str, config: VisionConfig, images: list[np.ndarray] | None
) -> Questions:
    return Questions(
        tuple(template.replace("{question}", row["question"]) for row in rows),
        tuple((row["answer"], row["wrong"]) if row.get("wrong") else (row["answer"],) for row in rows),
        None if images is None else tuple(images),
        tuple(row.get("kind") or "question" for row in rows),
        tuple(row["image"] or row["question"] for row in rows),
        config.answer_tokens,
    )


def _halves(questions: Questions, seed: int) -> dict[str, Questions]:
    names = list(dict.fromkeys(questions.sources))
    if len(names) < 2:  # noqa: PLR2004 - one to choose by and one to judge by
        raise BadInput("All questions are about one image (or are the same); give several, so that they can be split.")
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[place] for place in order[: len(names) // 2]}
    chosen = [place for place, source in enumerate(questions.sources) if source in first]
    rest = [place for place, source in enumerate(questions.sources) if source not in first]
    return {"selection": questions.select(chosen), "evaluation": questions.select(rest)}
