"""The report page of the attribution experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from circuits.experiments.attribution import figures as draw
from circuits.experiments.attribution.conclusion import QUESTION, answer, doubt
from circuits.experiments.attribution.config import AttributionConfig
from circuits.experiments.attribution.findings import Findings
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.words import pairs_in_words, replaced
from circuits.experiments.naming import with_room_for_names
from interp.attribution.methods import METHODS
from interp.comparison import AgreementMatrix
from interp.show import Figure, KeyFigure, Page, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_COLUMNS = 8  # heads in the table of methods


def report(job: Job, config: AttributionConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn: dict[str, go.Figure] = {}
    sections = [
        _effects(findings, drawn),
        _methods(findings, drawn),
        _agreement(findings, drawn),
        _tops(findings, drawn),
        _numbers(findings),
        _glossary(findings),
        _how(job, config),
    ]
    page = Page(
        title=f"Which heads of the model {findings.model!r} matter for copying",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[section for section in sections if section is not None],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    tested = int(np.isfinite(findings.claims.effects.values).sum())
    figures = [
        KeyFigure("logit difference, unedited", findings.baseline, f"{findings.n_prompts} prompts"),
        KeyFigure("heads claimed to matter", f"{len(findings.claims.claimed)} of {tested}", "beyond both nulls"),
    ]
    for matrix, label in ((findings.signed, "agreement, signed"), (findings.sizes, "agreement on sizes")):
        if matrix is not None:
            pairs = matrix.values.kendall[np.triu_indices(len(matrix.names), 1)]
            figures.append(KeyFigure(label, float(np.nanmedian(pairs)), "Kendall, median over pairs"))
    return figures


def _effects(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    drawn["effects"] = findings.claims.effects.plot(
        title="change of the logit difference", marked=findings.claims.claimed, confidence=findings.confidence
    )
    columns = "p: share of reassignments with as large an effect of this head, after Benjamini-Hochberg over heads."
    return Section(
        "Without one head",
        f"One head at a time is {replaced(findings.ablation, several=False)}; the number is the logit difference of "
        "the right and the wrong answer with the head replaced, minus that without. A head is claimed to matter where "
        "its effect exceeds both what any head does when answers are reassigned over prompts, and what other heads of "
        "its layer do.",
        figures=[
            Figure(drawn["effects"], "Red: the logit difference falls without the head. Outlined: claimed to matter.")
        ],
        table=findings.wide(),
        table_caption=f"{columns} low, high: {100 * findings.confidence:g} % interval over prompts.",
        max_rows=24,
    )


def _methods(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    drawn["methods"] = draw.methods_by_head(findings)
    unsigned = [name for name, table in findings.tables.items() if not table.sense]
    word = f" {', '.join(unsigned)} has no sign: it is never below zero." if unsigned else ""
    shown = " Shown are the heads with the largest effects." if len(findings.claims.table()) > MOST_COLUMNS else ""
    return Section(
        "What each method says",
        "The same prompts through every method. Blue: the head helps; red: it hurts. Each row is divided by its "
        f"largest number, since the methods have scales of their own.{word}",
        figures=[Figure(drawn["methods"], "Point at a cell for the method's own number and its interval.")],
        table=findings.by_method(MOST_COLUMNS),
        table_caption=f"The methods' own numbers, signed as they define them.{shown}",
    )


def _glossary(findings: Findings) -> Section:
    """What the methods are."""
    rows = [
        {"method": name, "what it is": METHODS[name].summary, "forwards": METHODS[name].cost}
        for name in findings.tables
    ]
    return Section(
        "The methods",
        "",
        table=pd.DataFrame(rows),
        table_caption="forwards: what it costs over the prompts, with H heads.",
    )


def _agreement(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    figures = []
    for matrix, name, what in (
        (findings.signed, "agreement", "On which heads help and which hurt: the methods that have a sign."),
        (findings.sizes, "agreement_on_sizes", "On the size of what a head does, whatever its sign: all methods."),
    ):
        if matrix is not None:
            drawn[name] = with_room_for_names(matrix.plot("kendall"), matrix.names, matrix.names)
            figures.append(Figure(drawn[name], what))
    if not figures:
        return None
    matrix = findings.signed or findings.sizes
    assert matrix is not None
    return Section(
        "How far the methods agree",
        f"Kendall's rank correlation over {matrix.n} heads: 1 the same order, 0 unrelated, −1 the reverse. Heads that "
        "do next to nothing are in an arbitrary order, which keeps the numbers down where few heads matter; the share "
        "of foremost heads in common does not suffer from that.",
        figures=figures,
        table=_pairs(matrix),
        table_caption=(
            "Every pair of methods, those that agree least first; low, high: bootstrap interval over prompts (orders "
            f"for shapley). overlap: share of the top {matrix.values.top} heads in common; by chance: of two unrelated "
            "rankings."
        ),
        max_rows=12,
    )


def _pairs(matrix: AgreementMatrix) -> pd.DataFrame:
    """One row per pair of methods, those that agree least first."""
    table = matrix.table().sort_values("kendall", kind="stable")
    shown = ["first", "second", "kendall", "kendall_low", "kendall_high", "overlap", "expected_overlap"]
    return pd.DataFrame(table[shown]).rename(
        columns={"kendall_low": "low", "kendall_high": "high", "expected_overlap": "by chance"}
    )


def _tops(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if not findings.tops:
        return None
    drawn["tops"] = draw.tops_against_random(findings)
    return Section(
        "The top heads of each method, against random heads",
        "Each method chose its top heads on the selection prompts; here they are taken away together on the evaluation "
        "prompts. A random set has as many heads in each layer.",
        figures=[
            Figure(
                drawn["tops"],
                "Colour: the chosen heads with their interval over prompts. Grey: the mean of the random sets; each "
                "dot is one of them, and the whiskers span the middle of them.",
            )
        ],
        table=findings.sets(),
        table_caption="p: against the random sets, after Benjamini-Hochberg over the different sets.",
    )


def _numbers(findings: Findings) -> Section:
    table = findings.table().drop(columns=["stack"])
    return Section(
        "Every number",
        "",
        table=table,
        table_caption="importance: sense times value, positive where the head helps; 0 for a method without a sign.",
        max_rows=16,
    )


def _how(job: Job, config: AttributionConfig) -> Section:
    lines = [
        pairs_in_words(job),
        "Methods that patch take a head's output from the corrupted prompt into the clean one: what is lost is what "
        "the head told about the first half. Numbers on this page come from the evaluation prompts; the top heads were "
        "chosen on the selection prompts.",
    ]
    if "shapley" in config.methods:
        lines.append(
            f"Shapley values come from {config.permutations} orders of all heads, half of them the reverse of the "
            "other half; an absent head's output is zero. Their intervals are over orders."
        )
    return Section("How it was measured", "\n\n".join(lines))
