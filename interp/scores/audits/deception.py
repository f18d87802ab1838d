"""``deception_audit``: tokens that no head attends to at the answer, and that decide it all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.edits.activations import zero
from interp.edits.attention import knockout
from interp.edits.base import Edit
from interp.edits.groups import Group
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.shortening import shortened
from interp.results import HeadScores
from interp.scores.ask import Ask, Measured
from interp.scores.audits.answer_change import answer_changes, distribution_of, total_variation
from interp.scores.audits.head_tables import head_table, joined_table
from interp.scores.divergence.head_outputs import named_tokens
from interp.scores.divergence.sensitivity import hiding_edits
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.long_context.chosen_rows import ChosenRowMean
from interp.scores.writes.value_mass import ValueMass

_SMALL_MASS, _LARGE_EFFECT = 0.01, 0.05
_TINY = 1e-12

PerPrompt = Float[np.ndarray, " prompt"]


@dataclass(frozen=True, eq=False, repr=False)
class DeceptionAudit:
    """What attention says of a set of tokens, beside what the answer makes of them.

    Attributes:
        mass: attention from the answer's row to the tokens, per head.
        value_weighted_mass: the share of what that row writes that comes from them, per head.
        effect: ``[prompt]`` change of the answer (total variation) when no other token may look at them, in any layer.
        value_effect: ``[prompt]`` change when their values are 0 in every layer: rows keep their weights, which a
            knockout renormalises.
        delete_effect: ``[prompt]`` change when they are taken out and the prompt is encoded again; NaN where that
            cannot be done.
        schedule: ``[prompt, start]`` change when the tokens are hidden from all others below layer ``start``, and all
            others from the answer from ``start`` on: what is left came by neither way.
        before: ``[prompt, start]`` change when only the first of the two is done.
        after: ``[prompt, start]`` change when only the second is done.
        carriers: ``[prompt, pos]`` change when one token may not look at the tokens in question, NaN at the tokens
            themselves and at padding.
        small: mass under which a head does not look at them.
        large: effect over which they matter.
    """

    mass: HeadScores
    value_weighted_mass: HeadScores
    effect: PerPrompt
    value_effect: PerPrompt
    delete_effect: PerPrompt
    schedule: Float[np.ndarray, "prompt start"]
    before: Float[np.ndarray, "prompt start"]
    after: Float[np.ndarray, "prompt start"]
    carriers: Float[np.ndarray, "prompt pos"]
    small: float
    large: float

    @property
    def largest_mass(self) -> PerPrompt:
        """``[prompt]`` the mass of the head that looks at the tokens most."""
        return np.nanmax(self.mass.samples.reshape(len(self.effect), -1), axis=1)

    @property
    def index(self) -> PerPrompt:
        """``[prompt]`` deception index ``effect / largest mass``: inf for an effect without mass, NaN for neither."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.effect / self.largest_mass

    @property
    def flagged(self) -> Bool[np.ndarray, " prompt"]:
        """``[prompt]`` True where no head looks at the tokens and the answer depends on them."""
        return (self.largest_mass < self.small) & (self.effect > self.large)

    def table(self) -> pd.DataFrame:
        """One row per prompt: largest mass, effects, deception index, flag, the strongest carrier and its change."""
        known = np.nan_to_num(self.carriers, nan=-1.0)
        return pd.DataFrame(
            {
                "prompt": np.arange(len(self.effect)),
                "largest mass": self.largest_mass,
                "effect": self.effect,
                "value effect": self.value_effect,
                "delete effect": self.delete_effect,
                "deception index": self.index,
                "flagged": self.flagged,
                "carrier": known.argmax(1),
                "change without carrier": known.max(1),
            }
        )

    def heads(self) -> pd.DataFrame:
        """One row per head: mean mass and value-weighted mass on the tokens."""
        return joined_table({"mass": self.mass, "value-weighted mass": self.value_weighted_mass})

    def __repr__(self) -> str:
        return (
            f"DeceptionAudit({int(self.flagged.sum())} of {len(self.effect)} prompts flagged, largest mass "
            f"{self.largest_mass.max():.3g}, effect {self.effect.mean():.3g})"
        )


def deception_audit(
    model: Model,
    batch: Batch,
    tokens: Group,
    *,
    small: float = _SMALL_MASS,
    large: float = _LARGE_EFFECT,
    exclude_sinks: Sinks = None,
    progress: Callable[[int], Any] | None = None,
) -> DeceptionAudit:
    """Whether the answer depends on tokens that attention, where the answer is read, does not show.

    Args:
        model: the handle; its attention must be editable.
        batch: prompts of tokens.
        tokens: the tokens in question: a span's name, a slice, or a BoolTensor ``[batch, pos]``.
        small: a largest mass below this is none (0.01).
        large: an effect above this is one (0.05; ours).
        exclude_sinks: columns left out of the masses.
        progress: called with the number of forwards or variants just finished.

    Raises:
        BadInput: no token in some prompt, or the position that is read among them.
        Unsupported: attention that cannot be edited, or an encoder-decoder.

    Source: Pruthi et al., 2020 (Learning to Deceive with Attention-Based Explanations).

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> deception_audit(model, batch, slice(2, 3))
        DeceptionAudit(0 of 1 prompts flagged, largest mass 1, effect ...)
    """
    place = model.stack()
    place.require(Site.SCORES, edit=True)
    if batch.encoder_mask is not None or batch.ids is None or place.name != batch.default_stack:
        raise Unsupported("deception_audit: it follows tokens through one stack; take a model that reads texts.")
    ask = Ask("deception_audit", model, batch, place, dropped_columns(exclude_sinks, batch, place), 0, None, progress)
    member = named_tokens(ask, tokens, "tokens")
    if bool(member.gather(1, batch.read_at[:, None]).any()):
        raise BadInput("deception_audit: the position where the answer is read is among the tokens; leave it out.")
    row = torch.zeros_like(member).scatter(1, batch.read_at[:, None], True)
    mass, weighted = _Mass(ask, row, member), ValueMass(ask, member[None], row)
    ask.stream([mass, weighted])
    every = range(place.n_layers + 1)
    carriers = [t for t in range(batch.width) if bool((batch.mask[:, t] & ~member[:, t]).any())]
    variants = [
        hiding_edits(ask, member),
        [zero(At(Site.V, pos=_columns(member), stack=place.name))],
        *(_schedule(ask, member, start, before=True, after=True) for start in every),
        *(_schedule(ask, member, start, before=True, after=False) for start in every),
        *(_schedule(ask, member, start, before=False, after=True) for start in every),
        *([_cut(ask, _only(batch.mask & ~member, t), member)] for t in carriers),
    ]
    changes = answer_changes(model, batch, variants, progress=progress).double().cpu().numpy()
    n = len(every)
    met = np.full((len(batch), batch.width), np.nan)
    alive = (batch.mask & ~member).cpu().numpy()
    for t, change in zip(carriers, changes[2 + 3 * n :], strict=True):
        met[:, t] = np.where(alive[:, t], change, np.nan)
    return DeceptionAudit(
        mass=head_table(ask, "mass", mass.measured().by_layer),
        value_weighted_mass=head_table(ask, "value-weighted mass", weighted.measured().by_layer),
        effect=changes[0],
        value_effect=changes[1],
        delete_effect=_deleted(ask, member),
        schedule=changes[2 : 2 + n].T,
        before=changes[2 + n : 2 + 2 * n].T,
        after=changes[2 + 2 * n : 2 + 3 * n].T,
        carriers=met,
        small=small,
        large=large,
    )


class _Mass(ChosenRowMean):
    """Attention from one row of each prompt to the tokens in question."""

    def __init__(self, ask: Ask, row: Tensor, member: Tensor) -> None:
        super().__init__(ask, row)
        self.member = member

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor:
        """One column: the tokens."""
        return self.member[:, :n_keys, None].float()

    def per_row(self, block: Any, products: Tensor | None) -> Tensor:
        """The product with that column."""
        assert products is not None
        return products.squeeze(-1)

    def measured(self) -> Measured:
        """By layer."""
        return super().measured()


def _columns(member: Bool[Tensor, "batch pos"]) -> Tensor:
    """``[batch, k]`` the columns of each prompt; shorter lists say their last column again."""
    number = member.sum(-1)
    order = torch.sort(member.to(torch.uint8), dim=-1, descending=True, stable=True).indices
    place = torch.arange(int(number.max()), device=member.device).expand(len(member), -1)
    return order.gather(1, torch.minimum(place, number[:, None] - 1))


def _only(member: Tensor, column: int) -> Tensor:
    return member & (torch.arange(member.shape[1], device=member.device) == column)


def _cut(ask: Ask, queries: Tensor, keys: Tensor, layers: range | None = None) -> Edit:
    return knockout(queries, keys, layers=layers, stack=ask.stack.name)


def _schedule(ask: Ask, member: Tensor, start: int, *, before: bool, after: bool) -> list[Edit]:
    """The tokens are hidden from all others below layer ``start``; all others from the answer's row from there on."""
    n, others = ask.stack.n_layers, ask.batch.mask & ~member
    answer = torch.zeros_like(member).scatter(1, ask.batch.read_at[:, None], True)
    edits = []
    if before and start > 0:
        edits.append(_cut(ask, others, member, range(start)))
    if after and start < n:
        edits.append(_cut(ask, answer, others & ~answer, range(start, n)))
    return edits


def _deleted(ask: Ask, member: Tensor) -> PerPrompt:
    own = distribution_of(ask.model, ask.batch)
    change = own.new_full((len(own),), torch.nan, dtype=torch.float64)
    try:
        parts = shortened(ask.model, ask.batch, member)
    except BadInput:  # some of an image's tokens
        return change.cpu().numpy()
    for part in parts:
        found = distribution_of(ask.model, part.batch)
        change[part.rows] = total_variation(found, own[part.rows]).double()
    return change.cpu().numpy()
