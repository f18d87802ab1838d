"""The report page of the experiment on attention as an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from circuits.experiments.explanation.conclusion import (
    QUESTION,
    agreement,
    answer,
    doubt,
    hidden,
    signs,
    taken_away,
    weights,
)
from circuits.experiments.explanation.config import ExplanationConfig
from circuits.experiments.explanation.figures import figures_of, token_figure
from circuits.experiments.explanation.findings import LN2, Findings
from circuits.experiments.tracing.words import told
from interp.show import Figure, KeyFigure, Page, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go


def report(
    config: ExplanationConfig, findings: Findings, tokens: Sequence[tuple[str, ...]]
) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = figures_of(findings)
    sections = [
        _agreement(findings, drawn, tokens),
        _signs(findings, drawn),
        _hidden(config, findings, drawn),
        _weights(config, findings, drawn),
        _curves(findings, drawn),
        _heads(findings, drawn),
        _refused(findings),
        _method(config, findings),
    ]
    page = Page(
        title=f"Attention as an explanation in the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[section for section in sections if section is not None],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    best = findings.best_row()
    found = findings.mean(findings.comparison.of(best))
    made = [KeyFigure("attention with explanations", found.mean, f"Kendall's tau of {best}, {told(found)}")]
    themselves = findings.comparison.themselves()
    if themselves is not None:
        own = findings.mean(themselves)
        made.append(KeyFigure("explanations among themselves", own.mean, told(own)))
    both = findings.matter_and_random()
    if both is not None:
        made.append(KeyFigure("deception index", findings.mean(both[0].index).mean, "effect by largest attention"))
    if findings.other is not None:
        far = findings.mean(findings.other.adversarial / LN2)
        made.append(KeyFigure("other weights, same answer", far.mean, f"of ln 2, {told(far)}"))
    return made


def _agreement(findings: Findings, drawn: dict[str, go.Figure], tokens: Sequence[tuple[str, ...]]) -> Section:
    return Section(
        "Does attention agree with explanations?",
        agreement(findings),
        figures=[
            Figure(drawn["agreement"], "Mean over prompts, with its interval. Grey: the explanations with each other."),
            Figure(drawn["pairs-kendall"], "Kendall's tau between the sizes of both."),
            Figure(drawn["pairs-overlap"], f"Share of the foremost {findings.top} tokens that both have in common."),
            Figure(token_figure(findings, tokens[0], 0), "The first prompt. Each row has its own scale."),
        ],
        table=findings.comparison.table(),
        table_caption="signs: share of the most attended tokens that the explanation counts against the answer.",
        max_rows=40,
    )


def _signs(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if "pairs-signs" not in drawn:
        return None
    return Section(
        "What attention cannot say",
        signs(findings) + " Attention has no sign, so that it cannot tell what speaks for the answer from what speaks "
        "against it.",
        figures=[
            Figure(drawn["pairs-signs"], f"Share of the {findings.top} most attended tokens that speak against it.")
        ],
        table=findings.rows_table(),
        table_caption="Mean over explanations.",
    )


def _hidden(config: ExplanationConfig, findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if findings.hidden is None:
        return None
    return Section(
        "Does attention show the tokens that matter?",
        hidden(findings)
        + " An effect is the total variation between the answer with the tokens hidden from all others, in every "
        "layer, and the answer as it is; the deception index is the effect by the attention of the head that looks at "
        "them most.",
        figures=[
            Figure(drawn["hidden"], f"One mark per prompt and set of {config.top} tokens, of {config.audited} prompts.")
        ],
        table=findings.hidden_table(),
        table_caption="flagged: no head gives them 1 % and the answer changes by more than 0.05 (Pruthi et al., 2020).",
    )


def _weights(config: ExplanationConfig, findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if findings.other is None:
        return None
    return Section(
        "Would other weights do?",
        weights(findings)
        + f" {config.battery} prompts, {config.permutations} permutations, {config.starts} searches of "
        f"{config.steps} steps (Jain and Wallace, 2019, have 100, 5 and 500). All heads of all layers are edited "
        "together, at the row of the answer; the map shows heads one at a time, which seldom change the answer.",
        figures=[Figure(drawn["heads, permutation"], "Change of the answer as one head's row is permuted (median).")],
        table=findings.other_table(),
        table_caption="Mean over prompts. ln 2 is the largest Jensen-Shannon divergence there is.",
    )


def _curves(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if findings.curves is None:
        return None
    return Section(
        "Hiding tokens in each order",
        taken_away(findings),
        figures=[Figure(drawn["curves"], "Mean over prompts; band: the middle share of random orders.")],
        table=findings.curves.table(confidence=findings.confidence),
        table_caption="area: under the curve, small where what matters went first.",
        max_rows=30,
    )


def _heads(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    shown = [name for name in drawn if name.startswith("heads, ") and "kendall" in name]
    if not shown:
        return None
    return Section(
        "Head by head",
        "The row of every head where the answer is read, against explanations.",
        figures=[
            Figure(drawn[name], f"Kendall's tau with {name.removeprefix('heads, ').split(':')[0]!r}.") for name in shown
        ],
    )


def _refused(findings: Findings) -> Section | None:
    if not findings.refused:
        return None
    rows = pd.DataFrame([{"what": name, "reason": why} for name, why in findings.refused.items()])
    return Section("What this model cannot do", "", table=rows)


def _method(config: ExplanationConfig, findings: Findings) -> Section:
    special = "compared as well" if config.special else "not compared"
    return Section(
        "How it was measured",
        "\n\n".join(
            [
                findings.prompts.about,
                "Rows of attention: the last layer's row where the answer is read, its mean and its maximum over "
                "heads; and what rollout and flow make of all layers. Explanations know the answer: gradients, tokens "
                "left out, a linear fit (LIME), and attention weighted by values and the answer's direction "
                "(value-aware: Lopardo et al., 2024).",
                f"Special tokens are {special}. Sizes are ranked, ties at their mean rank; a prompt in which one side "
                f"does not vary has no number. Intervals are {100 * config.confidence:g} % bootstrap intervals over "
                f"{len(findings.prompts)} prompts.",
            ]
        ),
    )
