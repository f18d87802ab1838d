"""Copies of a model with parts drawn anew; the model itself stays as found."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import transformers
from torch import Tensor, nn

from interp.errors import Unsupported
from interp.model.handle import Model
from interp.model.load import load
from interp.model.stacks import Stack

Draw = Literal["initialise", "shuffle", "normal"]
DRAWS = {
    "initialise": "as the family draws the weights of an untrained model",
    "shuffle": "each tensor's own numbers in another order",
    "normal": "Gaussian numbers with each tensor's own mean and standard deviation",
}
_AWAY = 7_654_321  # from the seeds that models are usually made with: an untrained model must not be drawn again
LOGITS = -1  # in place of a layer: what makes the logits of the last residual stream


@dataclass(eq=False)
class RandomisedCopy:
    """A copy of a model whose parts can be drawn anew and put back.

    Attributes:
        model: the copy's handle.
        parts: layer (or ``LOGITS``) -> names of its parameters.
        fresh: name -> the numbers that are put in.
        own: name -> the numbers that the model has.
    """

    model: Model
    parts: dict[int, tuple[str, ...]]
    fresh: dict[str, Tensor]
    own: dict[str, Tensor]

    def with_random(self, layers: Sequence[int]) -> Model:
        """The copy's handle with these parts random and all others the model's own."""
        chosen = {name for layer in layers for name in self.parts[layer]}
        with torch.no_grad():
            for name, parameter in self.model.hf.named_parameters():
                if name in self.own:
                    parameter.copy_((self.fresh if name in chosen else self.own)[name])
        # what was found by trying the weights is found again
        return replace(self.model, licences={}, wirings={}, reads=[])


def randomised_copy(model: Model, stack: Stack, *, draw: Draw = "initialise", seed: int = 0) -> RandomisedCopy:
    """A copy of ``model`` on its device, with other numbers for every block of ``stack`` and for what makes the logits.

    Args:
        model: the handle; neither it nor the global random numbers change.
        stack: whose blocks.
        draw: a name of ``DRAWS``.
        seed: of the numbers.

    An unembedding that is tied to the embedding is untied in the copy, so that it can be random alone.

    Raises:
        Unsupported: quantised weights, or a model that cannot be copied.
    """
    try:
        copied = copy.deepcopy(model.hf)
    except Exception as error:
        raise Unsupported(f"{model.name!r} cannot be copied ({type(error).__name__}: {error}).") from error
    _untie(copied)
    parts = {LOGITS: tuple(_outside(copied))}
    for index in range(len(stack.blocks)):
        start = f"{stack.path}.{index}."
        parts[index] = tuple(name for name, _ in copied.named_parameters() if name.startswith(start))
    parameters = dict(copied.named_parameters())
    wanted = [name for names in parts.values() for name in names]
    packed = [name for name in wanted if not parameters[name].is_floating_point()]
    if packed:
        raise Unsupported(f"{model.name!r} holds quantised weights ({packed[0]}); load it without quantisation.")
    own = {name: parameters[name].detach().clone() for name in wanted}
    fresh = dict(_fresh(model, own, draw, seed))
    handle = load(copied, tokenizer=model.tokenizer, processor=model.processor, check=bool(model.card.checks))
    return RandomisedCopy(replace(handle, name=model.name), parts, fresh, own)


def _outside(hf: transformers.PreTrainedModel) -> Iterator[str]:
    """Parameters outside the base model: the unembedding or the classifier; else the unembedding's own."""
    prefix = getattr(hf, "base_model_prefix", "")
    inner = getattr(hf, prefix, None) if prefix else None
    if isinstance(inner, nn.Module) and inner is not hf:
        yield from (name for name, _ in hf.named_parameters() if not name.startswith(f"{prefix}."))
        return
    try:
        head = hf.get_output_embeddings()
    except NotImplementedError:
        return
    own = set() if head is None else {id(parameter) for parameter in head.parameters()}
    yield from (name for name, parameter in hf.named_parameters() if id(parameter) in own)


def _untie(hf: nn.Module) -> None:
    """Give every place of a shared parameter one of its own; the first keeps the old one."""
    seen: set[int] = set()
    for module in hf.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
            seen.add(id(parameter))


def _fresh(model: Model, own: dict[str, Tensor], draw: str, seed: int) -> Iterator[tuple[str, Tensor]]:
    if draw == "initialise":
        yield from _initialised(model, own, seed)
        return
    for number, (name, value) in enumerate(own.items()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        if draw == "shuffle":
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            yield name, value.flatten()[order].view_as(value)
        else:
            drawn = torch.randn(value.shape, generator=generator).to(value)
            spread = value.float().std(correction=0).to(value.dtype) if value.numel() > 1 else 0
            yield name, value.float().mean().to(value.dtype) + spread * drawn


def _initialised(model: Model, own: dict[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    with torch.random.fork_rng(devices=[]):  # the global numbers go on afterwards as if nothing had been drawn
        torch.manual_seed(_AWAY + seed)
        untrained = type(model.hf)(copy.deepcopy(model.hf.config))
    _untie(untrained)
    made = dict(untrained.named_parameters())
    missing = [name for name in own if name not in made or made[name].shape != own[name].shape]
    if missing:
        raise Unsupported(
            f"{model.name!r}: an untrained model of its config has no {missing[0]!r} (adapters?); use draw='shuffle'."
        )
    for name, value in own.items():
        yield name, made[name].detach().to(value)
