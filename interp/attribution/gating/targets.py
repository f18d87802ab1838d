"""Targets: which tokens of a batch are predicted, from which columns, and which prompts an update sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model

_BY_COLUMN = frozenset({"input_ids", "attention_mask", "position_ids"})
_SHOWN = 10  # prompts named in a message


@dataclass(frozen=True, eq=False)
class Targets:
    """The tokens that are predicted: next-token prediction at the loss mask, or everywhere.

    Attributes:
        batch: the prompts.
        columns: ``[batch, k]`` the column that predicts each target (the one before it); where a prompt has fewer than
            ``k``, other columns of it.
        ids: ``[batch, k]`` the token predicted there.
        weights: ``[batch, k]`` one over the prompt's number of targets, 0 where there is none.
        counts: ``[batch]`` targets of each prompt.
    """

    batch: Batch
    columns: Int[Tensor, "batch k"]
    ids: Int[Tensor, "batch k"]
    weights: Float[Tensor, "batch k"]
    counts: Int[Tensor, " batch"]

    @classmethod
    def of(cls, model: Model, batch: Batch) -> Targets:
        """The targets of ``batch``: its span ``"loss"`` (True at the tokens predicted), else all real tokens.

        The first real token of a prompt is never predicted.

        Raises:
            BadInput: no token ids, or prompts without a target, by number.
            Unsupported: a model that does not predict the next token.
        """
        if not isinstance(batch, Batch):
            raise BadInput(f"The batch is a {type(batch).__name__}; expected what interp.encode(model, ...) returns.")
        if not model.stack().causal:
            raise Unsupported(
                f"{type(model.hf).__name__} is bidirectional: its logits are not of the next token, which gates are "
                "fitted on. Use a causal or an encoder-decoder model."
            )
        if batch.ids is None:
            raise BadInput("Gates are fitted on next-token prediction, which needs token ids; this batch has none.")
        wanted = predicted(batch)
        counts = wanted.sum(1)
        empty = (counts == 0).nonzero()[:, 0].tolist()
        if empty:
            named = ", ".join(map(str, empty[:_SHOWN])) + (" ..." if len(empty) > _SHOWN else "")
            raise BadInput(
                f"Prompts without a target: {named} ({len(empty)} of {len(batch)}). Each needs a token that is "
                "predicted from the one before it: mark one in the span 'loss' that is not the prompt's first."
            )
        most = int(counts.max())
        rank = (~wanted).long() + (~batch.mask[:, :-1]).long()  # a column that only fills up is a real token if it can
        columns = torch.argsort(rank, dim=1, stable=True)[:, :most]
        real = torch.arange(most, device=columns.device) < counts[:, None]
        return cls(batch, columns, batch.ids.gather(1, columns + 1), real / counts[:, None], counts)

    def __len__(self) -> int:
        return len(self.batch)

    def select(self, prompts: Int[Tensor, " prompt"]) -> Targets:
        """The targets of some prompts."""
        most = int(self.counts[prompts].max())
        cut = (self.columns[prompts, :most], self.ids[prompts, :most], self.weights[prompts, :most])
        return Targets(self.batch.select(prompts), *cut, self.counts[prompts])

    def last(self) -> Targets:
        """The last target of each prompt alone."""
        place = (self.counts - 1)[:, None]
        cut = (self.columns.gather(1, place), self.ids.gather(1, place), self.weights.new_ones(place.shape))
        return Targets(self.batch, *cut, torch.ones_like(self.counts))

    def inputs(self) -> tuple[dict[str, Any], Int[Tensor, "batch k"]]:
        """Keywords of the forward without the columns that no target depends on, and the columns within them."""
        batch = self.batch
        plain = set(batch.inputs) <= _BY_COLUMN and all(
            isinstance(value, Tensor) and value.shape == batch.mask.shape for value in batch.inputs.values()
        )
        if not plain or batch.default_stack != "text":
            return batch.inputs, self.columns
        end = int(self.columns.max()) + 1
        start = min(int(batch.mask.long().argmax(1).min()), int(self.columns.min()))
        return {name: value[:, start:end] for name, value in batch.inputs.items()}, self.columns - start


def predicted(batch: Batch) -> Bool[Tensor, "batch before"]:
    """``[batch, pos - 1]`` True at i where token i + 1 is a target.

    Example:
        >>> import interp
        >>> batch = interp.encode(interp.load("handmade"), [[0, 3, 4, 3]], spans={"loss": range(3, 4)})
        >>> predicted(batch).tolist()
        [[False, False, True]]
    """
    wanted = batch.mask[:, 1:] & batch.mask[:, :-1]
    if "loss" in batch.spans:
        span = batch.spans["loss"]
        if span.shape != batch.mask.shape:
            raise BadInput(f"The span 'loss' is {list(span.shape)}; expected {list(batch.mask.shape)} [batch, pos].")
        wanted = wanted & span[:, 1:].to(wanted.device)
    return wanted


def minibatch(n_prompts: int, size: int, *parts: Any) -> Int[Tensor, " prompt"]:
    """Which prompts an update sees: ``size`` of them drawn without repetition, all of them in order if there are fewer.

    Args:
        n_prompts: how many there are.
        size: how many are seen.
        parts: what the draw depends on (seed, name of the fit, update) and on nothing that was drawn before.

    Example:
        >>> minibatch(3, 64, 0, "warm", 0).tolist()
        [0, 1, 2]
    """
    if size >= n_prompts:
        return torch.arange(n_prompts)
    return torch.randperm(n_prompts, generator=generator_of(*parts))[:size]


def generator_of(*parts: Any) -> torch.Generator:
    """A generator whose stream depends on ``parts`` alone."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
