"""What an atlas is drawn on: random tokens said twice, texts of one's own, or random images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import interp
from interp.errors import BadInput
from interp.scores.labels.drawn import drawer_for

if TYPE_CHECKING:
    from circuits.experiments.atlas.config import AtlasConfig
    from interp.model.batch import Batch
    from interp.model.handle import Model


@dataclass(frozen=True, eq=False)
class Material:
    """Prompts to score.

    Attributes:
        batch: the prompts.
        words: what they are, in a sentence.
        task: the prompts whose answers labels are about; None where there are none.
        labels: whether labels can be looked for.
    """

    batch: Batch
    words: str
    task: Batch | None
    labels: bool


def material_for(model: Model, config: AtlasConfig) -> Material:
    """The prompts that the settings ask for.

    Raises:
        BadInput: texts for a model without a tokenizer, or a model that takes neither tokens nor images.
    """
    if model.default_stack.startswith("vision"):
        return _images(model, config)
    if config.texts:
        if model.tokenizer is None:
            raise BadInput("texts= were given, and this model has no tokenizer; leave them out.")
        many = " (encoder and decoder are given the same)" if model.default_stack == "decoder" else ""
        texts = list(config.texts)
        batch = interp.encode(model, texts, decoder=texts if many else None)
        return Material(batch, f"{len(texts)} texts{many}", None, model.default_stack == "text")
    if model.default_stack not in ("text", "encoder", "decoder"):
        raise BadInput(
            f"The atlas draws tokens or images, and stack {model.default_stack!r} of this model takes others; use "
            "interp.score on inputs of your own."
        )
    return _repeats(model, config)


def _repeats(model: Model, config: AtlasConfig) -> Material:
    """A start token, S random tokens, and all but the last of them again; the last is the answer."""
    drawer = drawer_for(model, config.segment, config.seed)
    ids = drawer.repeats(config.n_prompts).ids
    assert ids is not None
    start, segment = drawer.start, drawer.segment
    words = (
        f"{config.n_prompts} prompts of {'a start token, ' if start else ''}{segment} distinct random tokens and all "
        f"but the last of them again, drawn from seed {config.seed}"
    )
    if model.default_stack != "text":
        decoder = ids[:, :-1].tolist() if model.default_stack == "decoder" else None
        return Material(interp.encode(model, ids[:, :-1], decoder=decoder), words, None, False)
    wrong = ids[:, start + segment // 2]
    last = start + 2 * segment - 1  # where the answer would stand; the token before it answers the one before that
    spans: dict[str, Any] = {
        "context": range(start, start + segment),
        "generated": range(start + segment, last),
        "gold": range(start + segment - 2, start + segment - 1),
        "needle": range(start + segment - 2, start + segment - 1),
        "answer": range(last - 1, last),
    }
    answers = torch.stack([ids[:, -1], wrong], dim=1)
    batch = interp.encode(model, ids[:, :-1], answers=answers.tolist(), spans=spans)
    task = interp.encode(model, ids[:, :-1], answers=answers.tolist())
    spoken = (
        "; spans: context is the first copy, generated the second, answer its last token, needle and gold that token's "
        "first copy"
    )
    return Material(batch, words + spoken, task, True)


def _images(model: Model, config: AtlasConfig) -> Material:
    if config.texts:
        raise BadInput("texts= were given, and this model reads images alone; leave them out.")
    about: Any = getattr(model.hf.config, "vision_config", model.hf.config)
    size = about.image_size
    height, width = (size, size) if isinstance(size, int) else size
    draw = torch.Generator().manual_seed(config.seed)
    pixels = torch.randn(config.n_prompts, about.num_channels, height, width, generator=draw)
    batch = interp.encode(model, inputs={"pixel_values": pixels.to(model.dtype)})
    words = (
        f"{config.n_prompts} images of random pixels (normal, mean 0, deviation 1), drawn from seed {config.seed}: "
        "what heads do by place shows on them, what they do by content does not"
    )
    return Material(batch, words, None, False)
