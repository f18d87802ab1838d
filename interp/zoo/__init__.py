"""Small models whose circuits are known: trained ones, and five whose weights were worked out on paper.

``ZOO`` is data and costs no import of torch. ``interp.load(name)`` loads any of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from interp.errors import BadInput
from interp.names import lookup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class ZooModel:
    """One model: what it is, where its files are (``None`` where it is built by code), and what is known of it.

    ``module`` has the function ``build()`` that makes it and the derivation of every number, where code builds it.

    ``checkpoints`` are the steps at which training was saved, the last of them the end of training.
    ``heads`` maps a role to the heads that have it, as ``L1.H0``.
    """

    name: str
    description: str
    folder: str | None
    checkpoints: tuple[int, ...]
    heads: Mapping[str, tuple[str, ...]]
    known: str
    module: str | None = None


class Checkpoint(NamedTuple):
    """A moment of training: the number of steps done, and a folder that ``interp.load`` reads."""

    step: int
    path: Path


ZOO: Mapping[str, ZooModel] = MappingProxyType(
    {
        "induction": ZooModel(
            name="induction",
            description="2-layer GPT-2 of 417 English words, trained on repeats by its task loss alone",
            folder="induction",
            checkpoints=(0, 300, 500, 600, 700, 800, 900, 1000, 1250, 1750, 2500, 4000),
            heads=MappingProxyType({"previous_token": ("L0.H0",), "induction": ("L1.H0",)}),
            known="one induction head fed by one soft previous-token head; no head was supervised",
        ),
        "induction-planted": ZooModel(
            name="induction-planted",
            description="the same network with its previous-token and induction heads supervised (ground truth)",
            folder="induction_planted",
            checkpoints=(),
            heads=MappingProxyType({"previous_token": ("L0.H0",), "induction": ("L1.H0",)}),
            known="L0.H0 and L1.H0 were trained to be what they are; the others joined as they liked",
        ),
        "needle": ZooModel(
            name="needle",
            description="3-layer Llama, grouped heads: facts told in long babble are asked for, by its task loss alone",
            folder="needle",
            checkpoints=(),
            heads=MappingProxyType({"previous_token": ("L0.H0",), "retrieval": ("L1.H0", "L1.H1")}),
            known="two retrieval heads fed by one soft previous-token head; no head was supervised",
        ),
        "needle-planted": ZooModel(
            name="needle-planted",
            description="the same network with two retrieval heads and a previous-token head supervised (ground truth)",
            folder="needle_planted",
            checkpoints=(),
            heads=MappingProxyType({"previous_token": ("L0.H0",), "retrieval": ("L1.H0", "L1.H4")}),
            known="L0.H0, L1.H0 and L1.H4 were trained to be what they are, in the first of three levels",
        ),
        "digits-vit": ZooModel(
            name="digits-vit",
            description="3-layer ViT that reads handwritten digits of 8 x 8 pixels, a patch a pixel",
            folder="digits_vit",
            checkpoints=(),
            heads=MappingProxyType({}),
            known="trained on scikit-learn's digits; its test images are beside it (interp.zoo.digits)",
        ),
        "shapes-vlm": ZooModel(
            name="shapes-vlm",
            description="LLaVA with a 3-layer Llama, grouped heads: asked about pictures of shapes, and about text",
            folder="shapes_vlm",
            checkpoints=(),
            heads=MappingProxyType({"looks_at_the_asked_shape": ("L1.H2", "L1.H3")}),
            known="each shape has a usual colour, which it names when the picture is withheld; no head was supervised",
        ),
        "handmade": ZooModel(
            name="handmade",
            description="2-layer GPT-2 with weights worked out on paper: every pattern, path and logit known exactly",
            folder=None,
            checkpoints=(),
            heads=MappingProxyType(
                {
                    "previous_token": ("L0.H0",),
                    "duplicate_token": ("L0.H1",),
                    "induction": ("L1.H0",),
                    "nothing": ("L1.H1",),
                }
            ),
            known="only L0.H0 -> L1.H0 reaches the logits; L0.H1 writes where nobody reads, L1.H1 writes nothing",
            module="interp.zoo.handmade",
        ),
        "twins": ZooModel(
            name="twins",
            description="1-layer GPT-2 on paper: two heads that each do the whole job, read out by a saturating step",
            folder=None,
            checkpoints=(),
            heads=MappingProxyType({"twin": ("L0.H0", "L0.H1"), "nothing": ("L0.H2",)}),
            known="zeroing either twin changes nothing, zeroing both takes the whole logit",
            module="interp.zoo.twins",
        ),
        "backup": ZooModel(
            name="backup",
            description="2-layer GPT-2 on paper with self-repair: a head that speaks only when another is silent",
            folder=None,
            checkpoints=(),
            heads=MappingProxyType({"primary": ("L0.H0",), "backup": ("L1.H0",), "nothing": ("L0.H1", "L1.H1")}),
            known="zeroing L0.H0 makes L1.H0 do its job; with other heads frozen the effect is the whole logit",
            module="interp.zoo.backup",
        ),
        "interferer": ZooModel(
            name="interferer",
            description="1-layer GPT-2 on paper: a helping, an interfering and an irrelevant head of chosen strengths",
            folder=None,
            checkpoints=(),
            heads=MappingProxyType({"helping": ("L0.H0",), "interfering": ("L0.H1",), "irrelevant": ("L0.H2",)}),
            known="with gates g the loss is softplus(-(3 g0 - g1)); interp.zoo.interferer.build takes other strengths",
            module="interp.zoo.interferer",
        ),
        "and_or": ZooModel(
            name="and_or",
            description="1-layer GPT-2 on paper: a pair of heads that needs both (AND), a pair where one suffices (OR)",
            folder=None,
            checkpoints=(),
            heads=MappingProxyType({"and": ("L0.H0", "L0.H1"), "or": ("L0.H2", "L0.H3")}),
            known="noising finds the AND pair alone, denoising the OR pair alone, Shapley values all four alike",
            module="interp.zoo.and_or",
        ),
    }
)


def path(name: str) -> Path:
    """The folder with a model's Hugging Face files (config, weights as safetensors, tokenizer) and its card.

    Raises:
        UnknownName: no such model.
        BadInput: the model has no folder because code builds it.

    Example:
        >>> path("induction").name
        'induction'
    """
    folder = lookup(name, ZOO, "zoo model").folder
    if folder is None:
        raise BadInput(f"The zoo model {name!r} has no folder, it is built by code: use interp.zoo.build({name!r}).")
    return Path(__file__).parent / folder


def checkpoints(name: str) -> tuple[Checkpoint, ...]:
    """The moments of training that were kept, first to last, empty for a model that kept none.

    They are stored in half precision and load as float32; the last is the finished model, so rounded.

    Raises:
        UnknownName: no such model.

    Example:
        >>> checkpoints("induction")[0].step, checkpoints("induction")[-1].step
        (0, 4000)
    """
    model = lookup(name, ZOO, "zoo model")
    if not model.checkpoints:
        return ()
    folder = path(name) / "checkpoints"
    return tuple(Checkpoint(step, folder / f"step-{step:05d}") for step in model.checkpoints)


def build(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A zoo model that code builds: the Hugging Face model in evaluation mode, and its tokenizer.

    Raises:
        UnknownName: no such model.
        BadInput: the model is stored in a folder.
    """
    module = lookup(name, ZOO, "zoo model").module
    if module is None:
        raise BadInput(f"The zoo model {name!r} is stored, not built: load interp.zoo.path({name!r}).")
    return importlib.import_module(module).build()
