"""Other attention weights in the place of a head's own: permuted, even, or searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import Site
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.names import lookup
from interp.results import HeadScores
from interp.scores.ask import Ask, Measured
from interp.scores.audits.adversarial import Search, largest_divergence
from interp.scores.audits.answer_change import answer_changes
from interp.scores.audits.answer_rows import AnswerRows
from interp.scores.audits.attribution_agreement import LEVELS
from interp.scores.audits.head_tables import head_table
from interp.scores.audits.row_edits import Targets, even, permuted, row_edits, targets_at


class OtherWeights:
    """The answer's rows of every head, and what the answer makes of other weights in their place.

    Args:
        ask: what is scored; left-out columns keep their weight.
        row: another row than the answer's.

    Attributes:
        own: layer -> ``[batch, head, key]`` the rows as they are.
        valid: layer -> keys that a row sees and that are not left out.
        columns: ``[batch, 1]`` where they stand.
    """

    def __init__(self, ask: Ask, row: Group) -> None:
        self.ask = ask
        seen = AnswerRows(replace(ask, dropped=None), row)
        seen.ask.stream([seen])
        assert seen.rows is not None
        self.columns = seen.rows
        width = max(rows.shape[-1] for rows in seen.patterns.values())
        width = width if ask.key_mask is None else ask.key_mask.shape[1]
        self.own: dict[int, Tensor] = {}
        self.valid: dict[int, Tensor] = {}
        for layer in ask.layers:
            self.own[layer], sees = seen.of(layer, width)
            self.valid[layer] = sees if ask.dropped is None else sees & ~ask.dropped[:, None, :].to(sees.device)

    def even(self) -> dict[int, Tensor]:
        """Even rows of every layer."""
        return {layer: even(own, self.valid[layer]) for layer, own in self.own.items()}

    def changes(self, variants: list[tuple[Targets, Mapping[int, Tensor]]]) -> Float[Tensor, "variant batch"]:
        """The change of the answer with the rows of each variant."""
        edits = [row_edits(self.ask, targets, self.columns, rows) for targets, rows in variants]
        return answer_changes(self.ask.model, self.ask.batch, edits, progress=self.ask.progress)

    def permutations(self, targets: list[Targets], draws: int) -> Float[Tensor, "target batch"]:
        """The median change over ``draws`` permutations."""
        keys = self.ask.batch.content_keys.tolist()
        seeds = range(self.ask.seed * draws, (self.ask.seed + 1) * draws)
        orders = [
            {layer: permuted(own, self.valid[layer], keys, seed) for layer, own in self.own.items()} for seed in seeds
        ]
        changes = self.changes([(each, order) for each in targets for order in orders])
        return changes.view(len(targets), draws, -1).quantile(0.5, dim=1)

    def divergences(self, targets: list[Targets], search: Search) -> Float[Tensor, "target batch"]:
        """The largest divergence of other weights under which the answer stays."""
        return largest_divergence(self.ask, targets, self.columns, self.own, self.valid, search)

    def by_layer(self, targets: list[Targets], values: Float[Tensor, "target batch"]) -> dict[int, Tensor]:
        """Layer -> ``[batch, head]``: one number per target, shown by each of its heads."""
        made = {
            layer: torch.full((len(self.ask.batch), self.ask.stack.n_heads(layer)), torch.nan, dtype=torch.float64)
            for layer in self.ask.layers
        }
        for target, value in zip(targets, values, strict=True):
            for layer, heads in target.items():
                made[layer][:, list(heads)] = value.double().cpu()[:, None]
        return made

    def table(self, name: str, targets: list[Targets], values: Float[Tensor, "target batch"]) -> HeadScores:
        """:meth:`by_layer` as a table."""
        return head_table(self.ask, name, self.by_layer(targets, values))


def uniform_effect(ask: Ask, *, level: str = "head", row: Group = None) -> Measured:
    """The change of the answer (total variation, in [0, 1]) when a head's row at the answer has even weights.

    Args:
        ask: what is scored, on attention that can be edited; left-out columns keep their weight.
        level: ``"head"`` one head at a time, ``"layer"`` or ``"all"`` heads together.
        row: another row than the answer's.

    Wiegreffe and Pinter, 2019, for weights frozen in training.
    """
    rows, targets = _prepared(ask, level, row)
    return Measured(rows.by_layer(targets, rows.changes([(each, rows.even()) for each in targets])))


def permutation_effect(ask: Ask, *, permutations: int = 100, level: str = "head", row: Group = None) -> Measured:
    """The median change of the answer over random orders of the weights in a head's row at the answer.

    Args:
        ask: what is scored, on attention that can be edited; left-out columns keep their weight.
        permutations: how many orders.
        level, row: as in :func:`uniform_effect`.

    Raises:
        BadInput: fewer than one permutation.

    Jain and Wallace, 2019.
    """
    check_permutations(ask.name, permutations)
    rows, targets = _prepared(ask, level, row)
    return Measured(rows.by_layer(targets, rows.permutations(targets, permutations)))


def check_permutations(name: str, permutations: int) -> None:
    """Refuse what is no number of permutations.

    Raises:
        BadInput: with what is expected.
    """
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 1:
        raise BadInput(f"{name}: permutations={permutations!r}; expected a whole number of at least 1.")


def _prepared(ask: Ask, level: str, row: Group) -> tuple[OtherWeights, list[Targets]]:
    lookup(level, LEVELS, "level")
    ask.stack.require(Site.PATTERN, edit=True)
    return OtherWeights(ask, row), targets_at(ask, level)
