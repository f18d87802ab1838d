"""The images: handwritten digits, pictures of shapes with a question each, or a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool

import interp
from circuits.experiments.trace_image.config import TraceImageConfig
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.metrics import answer_logits
from interp.model.image_tokens import image_token_ids

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ASKED = ("color", "row", "column", "shape")  # questions about one shape, which stands somewhere


@dataclass(frozen=True, eq=False)
class Images:
    """Some images with what is asked about them and answered.

    Attributes:
        pixels: per image ``[height, width, 3]`` or ``[height, width]`` bytes.
        names: what each is, in words.
        answers: per image the id of the right answer and, where known, of a wrong one.
        prompts: per image what the model reads, for a vision-language model.
        regions: per image ``[row, column]`` True where the answer is, at pixels or at patches; None where unknown.
        grey: whether they are what :func:`interp.zoo.digits.pixel_values` takes.
        about: what they are, in a sentence.
    """

    pixels: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]
    prompts: tuple[str, ...] = ()
    regions: tuple[Bool[np.ndarray, "row column"], ...] | None = None
    grey: bool = False
    about: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def fingerprint(self) -> str:
        """Of everything that can change a number."""
        return fingerprint_of(self.answers, self.prompts, *self.pixels)

    def select(self, places: Sequence[int]) -> Images:
        """The images at ``places``, in that order."""

        def pick(values: Any) -> Any:
            return tuple(values[place] for place in places) if values else values

        return Images(
            pick(self.pixels),
            pick(self.names),
            pick(self.answers),
            pick(self.prompts),
            pick(self.regions),
            self.grey,
            self.about,
        )

    def parts(self, size: int) -> list[Images]:
        """At most ``size`` images at a time, in order."""
        return [self.select(range(begin, min(begin + size, len(self)))) for begin in range(0, len(self), size)]

    def batch(self, model: Model) -> Batch:
        """The images as ``model`` takes them."""
        answers = [list(one) for one in self.answers]
        return _encoded(model, self.pixels, self.prompts, grey=self.grey, answers=answers)


def images_of(model: Model, config: TraceImageConfig) -> Images:
    """The images that the settings ask for.

    Raises:
        BadInput: no images, files that cannot be read, or a model that needs images of its own.
    """
    takes = bool(image_token_ids(model))
    if not takes and not model.default_stack.startswith("vision"):
        raise BadInput(f"{model.name!r} reads no images; `circuits run trace-text` traces texts.")
    if config.images is not None:
        return _own(model, config, Path(config.images).expanduser(), takes=takes)
    if takes:
        return _shapes(model, config)
    head = getattr(model.hf.config, "num_labels", None)
    side, channels = (getattr(model.hf.config, name, None) for name in ("image_size", "num_channels"))
    if (head, side, channels) != (10, 8, 1):
        raise BadInput(
            f"{model.name!r} does not read digits of 8 x 8 pixels, so that no images are drawn for it. Give it images "
            "of its own: images=FOLDER, and regions=FOLDER with masks of the same names where the truth is known."
        )
    return _digits(config)


def _digits(config: TraceImageConfig) -> Images:
    from interp.zoo.digits import WHITE, digit_images

    digits = digit_images(config.n_images)
    pixels = digits.images.numpy()
    return Images(
        tuple(pixels),
        tuple(f"digit {label}" for label in digits.labels.tolist()),
        tuple((label,) for label in digits.labels.tolist()),
        regions=tuple(pixels >= config.ink * WHITE),
        grey=True,
        about=f"{len(pixels)} handwritten digits that the model was never trained on, 8 x 8 pixels, each a patch; the "
        "true region is the ink.",
    )


def _shapes(model: Model, config: TraceImageConfig) -> Images:
    """Pictures of shapes, each with a question about one of them; picture i is a function of (seed, i)."""
    from interp.zoo.shapes import CLEAR, random_picture
    from interp.zoo.shapes_text import IMAGE, WORDS, question

    known = getattr(model.tokenizer, "get_vocab", dict)()
    if not set(WORDS) | {IMAGE} <= set(known):
        raise BadInput(
            f"{model.name!r} does not know the words of the questions about shapes. Give it images of its own: "
            "images=FOLDER, question='<image> ...', and regions=FOLDER where the truth is known."
        )
    pixels, names, answers, prompts, regions = [], [], [], [], []
    for number in range(config.n_images):
        draw = np.random.default_rng([config.seed, number])
        picture = random_picture(draw, contrast=CLEAR, count=2 + number % 3)
        item = question(picture, ASKED[number % len(ASKED)], draw)
        assert item.about is not None
        pixels.append(picture.pixels)
        names.append(f"{item.prompt} {item.answer}")
        answers.append((known[item.answer], known[item.wrong]))
        prompts.append(f"{IMAGE} {item.prompt}")
        regions.append(item.about.patches)
    return Images(
        tuple(pixels),
        tuple(names),
        tuple(answers),
        tuple(prompts),
        tuple(regions),
        about=f"{len(pixels)} pictures of two to four shapes, 24 x 24 pixels in 6 x 6 patches, each with a question "
        "about one shape; the true region is the patches that hold a pixel of it.",
    )


def _own(model: Model, config: TraceImageConfig, folder: Path, *, takes: bool) -> Images:
    if not folder.is_dir():
        raise BadInput(f"images={str(folder)!r} is no folder.")
    if takes and not config.question:
        raise BadInput("images=: a vision-language model needs a question about them, question='<image> ...'.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)[: config.n_images]
    if len(files) < 4:  # noqa: PLR2004 - an interval over fewer says nothing
        raise BadInput(f"images={str(folder)!r} holds {len(files)} images ({', '.join(KINDS)}); give 4 at least.")
    pixels = tuple(_read(path, "RGB") for path in files)
    prompts = (config.question,) * len(files) if takes else ()
    batch = _encoded(model, pixels, prompts)
    logits = interp.run(model, batch, logits="answers" if takes else "all").logits
    assert logits is not None
    answers = tuple(tuple(one) for one in answer_logits(logits, batch).topk(2).indices.tolist())
    regions = None
    if config.regions is not None:
        masks = [Path(config.regions).expanduser() / f"{path.stem}.png" for path in files]
        regions = tuple(_read(path, "L") > 127 for path in masks)  # noqa: PLR2004 - white
    about = (
        f"{len(files)} images of {folder.name!r}; the right answer is what the model says, the wrong its next choice."
    )
    return Images(pixels, tuple(path.name for path in files), answers, prompts, regions, about=about)


def _read(path: Path, mode: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except (OSError, UnidentifiedImageError) as error:
        raise BadInput(f"The image {str(path)!r} cannot be read ({error}).") from error


def _encoded(
    model: Model,
    pixels: Sequence[np.ndarray],
    prompts: Sequence[str],
    *,
    grey: bool = False,
    answers: list[list[int]] | None = None,
) -> Batch:
    if grey:
        from interp.zoo.digits import pixel_values

        stacked = torch.from_numpy(np.stack(pixels))
        return interp.encode(model, inputs={"pixel_values": pixel_values(stacked)}, answers=answers)
    if prompts:
        return interp.encode(model, list(prompts), images=[[image] for image in pixels], answers=answers)
    return interp.encode(model, images=list(pixels), answers=answers)


def patch_regions(
    regions: Sequence[Bool[np.ndarray, "row column"]], rows: int, columns: int
) -> Bool[np.ndarray, "image patch"]:
    """``[image, patch]`` True at the patches of which at least a tenth lies in the region, row by row.

    Example:
        >>> patch_regions([np.eye(4, dtype=bool)], 2, 2).tolist()
        [[True, False, False, True]]
    """
    made = []
    for region in regions:
        if region.shape == (rows, columns):
            made.append(region.ravel())
            continue
        edges = [
            np.linspace(0, size, count + 1).round().astype(int)
            for size, count in zip(region.shape, (rows, columns), strict=True)
        ]
        cells = [
            region[top:bottom, left:right].mean() >= SHARE_INSIDE if bottom > top and right > left else False
            for top, bottom in zip(edges[0][:-1], edges[0][1:], strict=True)
            for left, right in zip(edges[1][:-1], edges[1][1:], strict=True)
        ]
        made.append(np.array(cells))
    return np.array(made, dtype=bool)


SHARE_INSIDE = 0.1  # of a patch's pixels
