"""The model of an experiment: loaded where the settings say, described for the manifest, and refused where unfit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import interp
from circuits.config import ExperimentConfig
from circuits.manifest import describe_model
from circuits.outcome import Workplace
from interp.address import At, Site
from interp.errors import BadInput

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model


@dataclass(frozen=True)
class Opened:
    """A loaded model.

    Attributes:
        model: the handle.
        about: what the manifest says about it.
        fingerprint: of the weights, their number format and the attention that runs them.
    """

    model: Model
    about: dict[str, Any]
    fingerprint: str

    @property
    def widths(self) -> list[int]:
        """Heads of each layer of the stack that makes the logits; 0 where a layer has no attention."""
        return widths_of(self.model)


def open_model(config: ExperimentConfig, place: Workplace) -> Opened:
    """The model that the settings name.

    Raises:
        LoadFailed: it cannot be read.
        BadInput: a device that is not there.
    """
    if config.device is not None:
        refuse_missing_device(config.device)
    with place.progress.stage("Load the model", 1) as done:
        options = {name: value for name in ("device", "dtype") if (value := getattr(config, name)) is not None}
        model = interp.load(config.model, **options)
        about = describe_model(model, config.model)
        done()
    return Opened(model, about, f"{about['weights']['sha256']} {about['dtype']} {about['attention']}")


def widths_of(model: Model) -> list[int]:
    """Heads of each layer of the stack that makes the logits; 0 where a layer has no attention."""
    stack = model.stacks[model.default_stack]
    return [stack.n_heads(layer) for layer in range(stack.n_layers)]


def refuse_missing_device(name: str) -> None:
    """Refuses a device that this machine, or this build of torch, does not have."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"device={name}: torch cannot use it here ({reason}). Leave it out, or give device=cpu."
        ) from error


def refuse_unless_causal(model: Model, batch: Batch) -> None:
    """Refuses a model whose tokens see later ones: there "the second copy is foreseen" means nothing.

    Args:
        model: the model.
        batch: any prompts; the first is tried.

    Raises:
        BadInput: attention to later tokens.
        Unsupported: patterns that cannot be read.
    """
    at = At(Site.PATTERN, layer=next(layer for layer, width in enumerate(widths_of(model)) if width))
    pattern = interp.run(model, batch.select([0]), read=[at], logits="last")[at]
    if bool(pattern.triu(1).any()):
        raise BadInput(
            f"{type(model.hf).__name__} attends to later tokens; experiments on repeated text need a decoder that "
            "predicts the next token. Give a causal language model."
        )
