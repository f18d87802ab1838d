"""``audit_attention``: the four audits of attention as explanation, of one model on one set of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.edits.groups import Group
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.audits.adversarial import Search
from interp.scores.audits.agreement import agreement_of_rows
from interp.scores.audits.attribution_agreement import compared
from interp.scores.audits.battery import AttentionBattery, attention_battery
from interp.scores.audits.deception import DeceptionAudit, deception_audit
from interp.scores.audits.deletion import DeletionCurves, deletion_curves
from interp.scores.audits.head_tables import head_table, joined_table
from interp.scores.audits.posthoc import PosthocAudit, posthoc_audit
from interp.scores.dropping import Sinks, dropped_columns


@dataclass(frozen=True, eq=False, repr=False)
class AttentionAudit:
    """When attention is no explanation, said by four audits.

    Attributes:
        agreement: ``"head"``, ``"layer"``, ``"all"`` -> Pearson's r between attention and the size of gradient x input.
        deletion: how fast the answer goes when tokens are hidden in the order of attention (mean over all heads), of
            the attribution, and of both turned round.
        battery: other weights in the place of a head's own.
        posthoc: attention beside explanations made after the fact.
        deception: the tokens in question, or None where none were named.
    """

    agreement: dict[str, HeadScores]
    deletion: DeletionCurves
    battery: AttentionBattery
    posthoc: PosthocAudit
    deception: DeceptionAudit | None

    def table(self) -> pd.DataFrame:
        """One row per head: agreement, tests of the battery, post-hoc measures, and masses where asked for."""
        tables = {f"r of {level}": table for level, table in self.agreement.items()}
        tables |= {**self.battery.tables, **self.posthoc.tables}
        if self.deception is not None:
            tables["mass on the tokens"] = self.deception.mass
            tables["value-weighted mass"] = self.deception.value_weighted_mass
        return joined_table(tables)

    def __repr__(self) -> str:
        said = "" if self.deception is None else f", {int(self.deception.flagged.sum())} prompts flagged"
        return f"AttentionAudit({len(self.table())} heads, {self.table().shape[1] - 4} measures{said})"


def audit_attention(
    model: Model,
    batch: Batch,
    *,
    tokens: Group = None,
    stack: str | None = None,
    level: str = "head",
    permutations: int = 100,
    adversarial: Search | bool = False,
    top: int = 5,
    exclude_sinks: Sinks = "first",
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> AttentionAudit:
    """The four audits: agreement with attribution, the standard battery, post-hoc explanations, deception.

    Args:
        model: the handle; its attention maps must be editable.
        batch: prompts with answers (right, wrong).
        tokens: tokens that the answer should not depend on, for the deception audit; left out without.
        stack: whose heads.
        level: at which heads are edited and compared, ``"head"``, ``"layer"`` or ``"all"``.
        permutations: of each row.
        adversarial: search for adversarial weights as well (slow): ``True``, or a :class:`Search`.
        top: how many most attended tokens are looked at.
        exclude_sinks: tokens left out of comparisons, and kept where rows are permuted; the first by default.
        seed: of what is drawn.
        progress: called with the number of forwards just finished.

    Raises:
        BadInput: prompts without answers.
        Unsupported: attention that cannot be edited.

    Sources: Jain and Wallace, 2019; Wiegreffe and Pinter, 2019; Pruthi et al., 2020; Lopardo et al., 2024.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> audit_attention(model, batch, permutations=4)
        AttentionAudit(4 heads, 24 measures)
    """
    place = model.stack(stack)
    dropped = dropped_columns(exclude_sinks, batch, place)
    ask = Ask("audit_attention", model, batch, place, dropped, seed, None, progress)
    battery = attention_battery(
        model,
        batch,
        stack=stack,
        level=level,
        permutations=permutations,
        adversarial=adversarial,
        exclude_sinks=exclude_sinks,
        seed=seed,
        progress=progress,
    )
    posthoc = posthoc_audit(
        model, batch, stack=stack, level=level, top=top, exclude_sinks=exclude_sinks, seed=seed, progress=progress
    )
    deception = None if tokens is None else deception_audit(model, batch, tokens, progress=progress)
    beside = compared(ask, "gradient")
    agreement = {
        each: head_table(
            ask, f"r of {each}", beside.at(each).map(lambda a, b, valid: agreement_of_rows(a, b, valid, how="pearson"))
        )
        for each in ("head", "layer", "all")
    }
    whole = beside.at("all")
    last = max(whole.attention)
    orders = {
        "attention": whole.attention[last][:, 0],
        "attribution": whole.attribution[last][:, 0],
        "attention turned round": -whole.attention[last][:, 0],
        "attribution turned round": -whole.attribution[last][:, 0],
    }
    return AttentionAudit(agreement, deletion_curves(model, batch, orders), battery, posthoc, deception)
