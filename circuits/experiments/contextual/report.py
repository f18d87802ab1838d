"""The report page of the contextual experiment."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from circuits.experiments.contextual import figures as draw
from circuits.experiments.contextual.conclusion import QUESTION, answer, doubt
from circuits.experiments.contextual.config import ContextualConfig
from circuits.experiments.contextual.findings import Findings
from circuits.experiments.contextual.measuring import CONTROLS
from circuits.experiments.copying.words import replaced
from circuits.experiments.naming import taller
from circuits.experiments.retrieval.masking import LATER_LAYERS, SAME_LAYERS
from circuits.experiments.wording import listed
from interp.show import Figure, KeyFigure, Page, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONTROL_SETS: Mapping[str, str] = MappingProxyType(
    {
        SAME_LAYERS: "the other heads of the same layers, as many in each",
        LATER_LAYERS: "all other heads but those of the first layer",
    }
)


def report(config: ContextualConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = {
        "scores": draw.scores_figure(findings),
        "companions": draw.companions_figure(findings),
        "places": draw.places_figure(findings),
        "effects_at_answer": draw.effects_figure(
            findings, findings.effects_at_answer, "one head replaced at the rows that predict the answer"
        ),
        "effects": draw.effects_figure(findings, findings.effects, "one head replaced everywhere"),
        "sets": taller(draw.sets_figure(findings), 120),
    }
    page = Page(
        title=f"Contextual heads of the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[
            _scores(findings, drawn),
            _places(findings, drawn),
            _effects(findings, drawn),
            _sets(findings, drawn),
            _method(config, findings),
        ],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    reading, best = findings.contextual(), findings.order[0]
    said, most = findings.said(), max(findings.counts, default=0)
    figures = [
        KeyFigure("heads that read the gold", f"{len(reading)} of {len(findings.order)}", "beyond shuffled words"),
        KeyFigure(
            f"gold mass of {best}", findings.at(best), f"{len(findings.evaluation)} prompts it was not chosen by"
        ),
        KeyFigure("answer said", said.mean, "share of the right answer's tokens"),
    ]
    if most:
        figures.append(
            KeyFigure(f"tokens kept without {most}", findings.right(most).mean, f"of {findings.right(0).mean:.3f}")
        )
    return figures


def _scores(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    percent = f"{100 * findings.confidence:g} %"
    return Section(
        "Where the answer's attention goes",
        "The contextual score of a head is the attention that the rows of the answer pay to the document that holds "
        "it, averaged over the answer's tokens and the prompts. Beside it stand the attention to the largest other "
        "document, to all others together, to the prompt's first two tokens, where attention often rests, and the "
        "score when the other documents are taken out of the prompt.",
        figures=[
            Figure(
                drawn["scores"], "Mean score on the evaluation prompts. Outlined: heads that read the gold document."
            ),
            Figure(drawn["companions"], "The most contextual heads by the selection prompts, foremost first."),
        ],
        table=findings.wide(),
        table_caption=(
            f"low, high: {percent} interval over questions; other questions: score on the prompts that the order comes "
            f"from; shuffled: mean score on shuffled words; p: share of {len(findings.null)} draws in which any head "
            "has as large a score; effect: change of the answer's log-probability with the head replaced everywhere, "
            "and at the rows that predict the answer."
        ),
        max_rows=16,
    )


def _places(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    n = len(findings.evaluation.made[0].documents)
    return Section(
        "By place of the document",
        f"The gold document stands at {len(findings.evaluation.slots)} places among {n}, every question at each of "
        "them; the other documents keep their order.",
        figures=[
            Figure(
                drawn["places"],
                "Above: the score at each place. Below: how much of the right answer is in the answer that was read.",
            )
        ],
        table=findings.answers_by_place(),
        table_caption="log-probability: of a token of the answer that was read, in nats.",
    )


def _effects(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    order = "Heads in the order of their contextual score; in colour: those that read."
    return Section(
        "Without one head",
        f"One head at a time is {replaced(findings.ablation, several=False)}; the number is the log-probability of the "
        "answer with the head replaced minus that without, in nats. Heads that stand in for each other show little "
        "alone, and heads that prepare what is read (in the documents) show only where they are replaced everywhere."
        f"\n\nScores and effects at the answer's rows: {findings.agreement_at_answer}\n\nScores and effects "
        f"everywhere: {findings.agreement}",
        figures=[Figure(drawn["effects_at_answer"], order), Figure(drawn["effects"], order)],
    )


def _sets(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    percent = f"{100 * findings.confidence:g} %"
    controls = listed([f"from {CONTROL_SETS[name]} ({name!r})" for name in CONTROLS])
    return Section(
        "Without several heads",
        "The most contextual heads of the selection prompts are taken away together on the evaluation prompts: they "
        f"are {replaced(findings.ablation)}. Random sets share no head with them and are drawn {controls}; a curve "
        "ends where too few heads are left.",
        figures=[
            Figure(
                drawn["sets"],
                f"Change of the answer's log-probability. Bands: {percent} interval over questions; of random sets "
                "their central share.",
            )
        ],
        table=findings.sets() if findings.counts else None,
        table_caption=(
            "right: share of the answer's tokens that stay the most likely next ones; then the mean change without "
            "random sets, their number, and the share of them that cost as much (p; empty with fewer than 20)."
        ),
    )


def _method(config: ContextualConfig, findings: Findings) -> Section:
    where = (
        f"The questions are those of {config.documents}."
        if config.documents
        else "The documents are facts told in babble, of the zoo's words; the question names the key of one of them."
    )
    read = (
        "The answer is what the model writes greedily, put behind the prompt and read in one forward."
        if config.answer == "generated"
        else "The answer is the right one, put behind the prompt and read in one forward."
    )
    rows = (
        "Rows are those of the answer's own tokens."
        if config.rows == "answer"
        else "Rows are those from which the answer's tokens are predicted."
    )
    n_selection, n_evaluation = (len(set(part.cluster)) for part in (findings.selection, findings.evaluation))
    return Section(
        "How it was measured",
        f"{where} {n_selection} questions choose heads ({len(findings.selection)} prompts), {n_evaluation} others "
        f"judge them ({len(findings.evaluation)}); intervals resample questions.\n\n{read} {rows} No other row is "
        "computed. After Zhu et al., 2025 (arXiv 2503.23306), whose prompts have 20 documents with the gold one at "
        "places 1, 5, 10, 15 and 20.",
    )
