"""``attention_battery``: what a model's answer makes of other attention weights in the place of a head's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.address import Site
from interp.edits.groups import Group
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.names import lookup
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.audits.adversarial import Search
from interp.scores.audits.agreement import agreement_of_rows, significance
from interp.scores.audits.attribution_agreement import LEVELS, compared
from interp.scores.audits.head_tables import head_table, joined_table
from interp.scores.audits.other_weights import OtherWeights, check_permutations
from interp.scores.audits.row_edits import targets_at
from interp.scores.dropping import Sinks, dropped_columns

_SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class AttentionBattery:
    """What happens to the answer under other weights in the answer's row of each head (Jain and Wallace, 2019).

    Attributes:
        largest_weight: the largest weight of the row. A large one whose permutations change nothing is no explanation.
        permutation: median change of the answer (total variation) over random permutations of the row's weights.
        uniform: change under even weights (Wiegreffe and Pinter, 2019, for frozen ones).
        gradient: Kendall's tau between the row and ``|<x_t, dm/dx_t>|``.
        leave_one_out: Kendall's tau between the row and the change of the answer without each token; None where it was
            left out.
        significant: for ``"gradient"`` and ``"leave_one_out"`` the share of prompts with p < 0.05, per head.
        adversarial: the largest JSD to weights that leave the answer as it is, up to ln 2; None where it was left out.
        level: which heads were edited together.
    """

    largest_weight: HeadScores
    permutation: HeadScores
    uniform: HeadScores
    gradient: HeadScores
    leave_one_out: HeadScores | None
    significant: Mapping[str, HeadScores]
    adversarial: HeadScores | None
    level: str

    @property
    def tables(self) -> dict[str, HeadScores]:
        """Name -> table of every test that was made."""
        made = {
            "largest weight": self.largest_weight,
            "permutation": self.permutation,
            "uniform": self.uniform,
            "gradient tau": self.gradient,
            "leave-one-out tau": self.leave_one_out,
            **{f"{name} significant": table for name, table in self.significant.items()},
            "adversarial JSD": self.adversarial,
        }
        return {name: table for name, table in made.items() if table is not None}

    def table(self) -> pd.DataFrame:
        """One row per head: its label and the mean over prompts of every test; ``std`` of both taus."""
        rows = joined_table(self.tables)
        for name in ("gradient tau", "leave-one-out tau"):
            if name in self.tables:
                rows[f"{name} std"] = spread(self.tables[name])
        return rows

    def __repr__(self) -> str:
        n = self.permutation.samples.shape[0]
        return f"AttentionBattery({len(self.tables)} tests, level {self.level!r}, {n} prompts)"


def spread(table: HeadScores) -> Float[np.ndarray, " head"]:
    """The standard deviation over prompts of each head, in the order of its table; NaN where there is no value."""
    (exists,) = table.exists.values()
    values = table.samples[:, exists]
    number = np.isfinite(values).sum(0)
    mean = np.nansum(values, axis=0) / np.maximum(number, 1)
    square = np.nansum((values - mean) ** 2, axis=0) / np.maximum(number, 1)
    return np.where(number > 0, np.sqrt(square), np.nan)


def attention_battery(
    model: Model,
    batch: Batch,
    *,
    stack: str | None = None,
    level: str = "head",
    row: Group = None,
    permutations: int = 100,
    adversarial: Search | bool = True,
    leave_one_out: str | None = "leave_one_out",
    exclude_sinks: Sinks = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> AttentionBattery:
    """The standard battery on attention as explanation, for every head's row where the answer is read.

    Args:
        model: the handle; its attention maps must be editable.
        batch: the prompts.
        stack: whose heads.
        level: ``"head"`` one head at a time, ``"layer"`` all heads of a layer together, ``"all"`` all heads: a single
            head's edit rarely changes the answer of a large model.
        row: another row than the answer's.
        permutations: random orders per row.
        adversarial: search for adversarial weights (``True``: eps 0.05, 5 starts, 500 steps, which cost a forward and a
            backward each), a :class:`Search`, or ``False`` to leave it out.
        leave_one_out: ``"leave_one_out"`` (tokens taken out), ``"leave_one_out_masked"`` (hidden), or None to leave it
            out, as one must for images.
        exclude_sinks: keys that keep their weight in permutations and even rows and take no part in agreements.
        seed: of permutations and starts.
        progress: called with the number of forwards just finished.

    Raises:
        BadInput: fewer than one permutation.
        Unsupported: attention that cannot be edited.

    Source: Jain and Wallace, 2019 (arXiv 1902.10186); Wiegreffe and Pinter, 2019 (arXiv 1908.04626).

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> attention_battery(model, batch, permutations=4, adversarial=False)
        AttentionBattery(7 tests, level 'head', 1 prompts)
    """
    lookup(level, LEVELS, "level")
    if leave_one_out is not None:
        lookup(leave_one_out, {"leave_one_out": 0, "leave_one_out_masked": 0}, "leave_one_out")
    check_permutations("attention_battery", permutations)
    search = Search() if adversarial is True else adversarial
    if isinstance(search, Search):
        search.check()
    place = model.stack(stack)
    place.require(Site.PATTERN, edit=True)
    dropped = dropped_columns(exclude_sinks, batch, place)
    ask = Ask("attention_battery", model, batch, place, dropped, seed, None, progress)
    taus, shares = {}, {}
    for name, reference in (("gradient", "gradient"), ("leave-one-out", leave_one_out)):
        if reference is None:
            continue
        beside = compared(ask, reference, row=row).at(level)
        taus[name] = head_table(ask, f"{name} tau", beside.map(agreement_of_rows))
        p = beside.map(significance)
        known = {layer: torch.where(x.isfinite(), (x < _SIGNIFICANT).double(), torch.nan) for layer, x in p.items()}
        shares[name] = head_table(ask, f"{name} significant", known)
    rows = OtherWeights(ask, row)
    targets = targets_at(ask, level)
    weights = {layer: own.amax(-1).double() for layer, own in rows.own.items()}
    return AttentionBattery(
        largest_weight=head_table(ask, "largest weight", weights),
        permutation=rows.table("permutation", targets, rows.permutations(targets, permutations)),
        uniform=rows.table("uniform", targets, rows.changes([(each, rows.even()) for each in targets])),
        gradient=taus["gradient"],
        leave_one_out=taus.get("leave-one-out"),
        significant=shares,
        adversarial=rows.table("adversarial JSD", targets, rows.divergences(targets, search))
        if isinstance(search, Search)
        else None,
        level=level,
    )
