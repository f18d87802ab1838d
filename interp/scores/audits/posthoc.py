"""``posthoc_audit``: attention beside post-hoc explanations of the same answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.names import lookup
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.audits.agreement import agreement_of_rows
from interp.scores.audits.attribution_agreement import LEVELS, POOLS, compared, sign_disagreement_of_rows
from interp.scores.audits.head_tables import head_table, joined_table
from interp.scores.audits.references import REFERENCES
from interp.scores.dropping import Sinks, dropped_columns

_UNSIGNED = ("gradient", "leave_one_out", "leave_one_out_masked")


@dataclass(frozen=True, eq=False, repr=False)
class PosthocAudit:
    """Attention against each explanation, per head.

    Attributes:
        kendall: explanation -> Kendall's tau between the head's row and the explanation.
        spearman: explanation -> Spearman's rho.
        overlap: explanation -> the share of the ``top`` largest in common.
        sign_disagreement: explanation with signs -> the share of the ``top`` most attended tokens that speak against
            the answer.
        level: whether rows are single heads', a layer's, or of all heads.
        top: how many tokens are "the most attended".
    """

    kendall: Mapping[str, HeadScores]
    spearman: Mapping[str, HeadScores]
    overlap: Mapping[str, HeadScores]
    sign_disagreement: Mapping[str, HeadScores]
    level: str
    top: int

    @property
    def tables(self) -> dict[str, HeadScores]:
        """``"explanation: measure"`` -> table."""
        measures = {
            "kendall": self.kendall,
            "spearman": self.spearman,
            f"top {self.top}": self.overlap,
            "signs": self.sign_disagreement,
        }
        return {f"{name}: {measure}": found[name] for measure, found in measures.items() for name in found}

    def table(self) -> pd.DataFrame:
        """One row per head, one column per explanation and measure."""
        return joined_table(self.tables)

    def __repr__(self) -> str:
        return f"PosthocAudit({', '.join(self.kendall)}; level {self.level!r}, top {self.top})"


def posthoc_audit(
    model: Model,
    batch: Batch,
    references: Sequence[str] | Mapping[str, Tensor] = ("value_aware", "gradient", "gradient_x_input", "leave_one_out"),
    *,
    stack: str | None = None,
    metric: Metric | None = None,
    level: str = "head",
    pool: str = "mean",
    top: int = 5,
    row: Group = None,
    samples: int = 256,
    exclude_sinks: Sinks = "first",
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> PosthocAudit:
    """How far each head's row at the answer agrees with explanations made after the fact.

    Weights of attention are positive and know neither values nor the classifier: they cannot tell what speaks for the
    answer from what speaks against it. ``value_aware`` can: ``w_j = sum_i A_ij <v_j, dm/dz_i>``, which sums to the
    head's direct effect.

    Args:
        model: the handle.
        batch: the prompts; ``value_aware`` needs answers (right, wrong), or a metric that is linear in the logits.
        references: names of ``interp.scores.audits.references.REFERENCES``, or name -> numbers ``[batch, key]``.
        stack: whose heads.
        metric: what is explained; see :func:`attention_attribution_agreement`.
        level: ``"head"``, ``"layer"`` or ``"all"``.
        pool: ``"mean"`` or ``"max"`` over heads above heads (alpha-avg and alpha-max).
        top: how many most attended tokens are looked at.
        row: another row than the answer's.
        samples: of LIME.
        exclude_sinks: tokens left out of both sides; by default the first (CLS, BOS). Images have no tokens: give a
            BoolTensor ``[batch, key]`` of columns, or None.
        seed: of LIME.
        progress: called with the number of forwards just finished.

    Raises:
        UnknownName: an unknown explanation or level.
        BadInput: no explanation, or sinks that cannot be found.

    Source: Lopardo et al., 2024 (Attention Meets Post-hoc Interpretability: A Mathematical Perspective).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
        >>> posthoc_audit(model, batch, ["value_aware", "gradient"])
        PosthocAudit(value_aware, gradient; level 'head', top 5)
    """
    lookup(level, LEVELS, "level")
    lookup(pool, POOLS, "pooling")
    if not references or isinstance(references, str):
        raise BadInput(
            f"posthoc_audit: references={references!r}; expected a list of names ({', '.join(REFERENCES)}), or name -> "
            "numbers [batch, key]."
        )
    wanted: dict[str, str | Tensor] = (
        dict(references)
        if isinstance(references, Mapping)
        else {name: lookup(name, REFERENCES, "reference") and name for name in references}
    )
    place = model.stack(stack)
    ask = Ask("posthoc_audit", model, batch, place, dropped_columns(exclude_sinks, batch, place), seed, None, progress)
    found: dict[str, dict[str, HeadScores]] = {"kendall": {}, "spearman": {}, "topk": {}, "signs": {}}
    for name, reference in wanted.items():
        beside = compared(ask, reference, metric=metric, row=row, samples=samples).at(level, pool)
        for how in ("kendall", "spearman", "topk"):
            made = beside.map(lambda a, b, valid, how=how: agreement_of_rows(a, b, valid, how=how, top=top))
            found[how][name] = head_table(ask, f"{name}: {how}", made, level=level)
        if reference not in _UNSIGNED if isinstance(reference, str) else bool((reference < 0).any()):
            made = beside.map(lambda a, b, valid: sign_disagreement_of_rows(a, b, valid, top=top))
            found["signs"][name] = head_table(ask, f"{name}: signs", made, level=level)
    return PosthocAudit(found["kendall"], found["spearman"], found["topk"], found["signs"], level, top)
