"""The report page of the retrieval experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.naming import taller
from circuits.experiments.retrieval.conclusion import QUESTION, answer, doubt
from circuits.experiments.retrieval.config import MASKS, RetrievalConfig
from circuits.experiments.retrieval.findings import Findings, ends_of
from circuits.experiments.retrieval.masking import CONTROL_WORDS, CONTROLS
from circuits.experiments.retrieval.scoring import recall_grid
from circuits.experiments.wording import listed
from interp.show import (
    Figure,
    KeyFigure,
    Line,
    Page,
    Panel,
    Section,
    bar_chart,
    curve_panels,
    grid_heatmap,
    head_heatmap,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_BARS = 16


def report(config: RetrievalConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = {
        "scores": scores_figure(findings),
        "heads": heads_figure(findings),
        "recall": recall_figure(findings),
        "masking": masking_figure(findings),
    }
    page = Page(
        title=f"Retrieval heads of the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[
            _scores(findings, drawn),
            _masking(findings, drawn),
            _recall(findings, drawn),
            _method(config, findings),
        ],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    best, mask = findings.order[0], next(iter(findings.masked))
    most = max(findings.sets.chosen)
    elsewhere = float(findings.scores_elsewhere.values[best.layer, best.index])
    return [
        KeyFigure(
            "retrieval heads", f"{len(findings.over)} of {len(findings.order)}", f"from {findings.threshold:g} on"
        ),
        KeyFigure(
            f"score of {best}",
            float(findings.scores.values[best.layer, best.index]),
            f"{elsewhere:.3f} on facts it was not chosen by",
        ),
        KeyFigure("answer tokens right", findings.right(mask, ()).mean, f"{len(findings.evaluation)} prompts"),
        KeyFigure(f"without the top {most}", findings.right(mask, findings.sets.chosen[most]).mean, f"mask: {mask}"),
    ]


def scores_figure(findings: Findings) -> go.Figure:
    """Layer by head, the teacher-forced score; retrieval heads are outlined."""
    marked = [(head.layer, head.index) for head in findings.over]
    return head_heatmap(findings.scores.values, name="retrieval score", signed=False, marked=marked, limits=(0.0, 1.0))


def heads_figure(findings: Findings) -> go.Figure:
    """The foremost heads with their intervals, and the draws of the null as dots."""
    heads = findings.order[:MOST_BARS]
    ends = ends_of(findings.scores, findings.confidence)
    low, high = zip(*(ends[head.layer, head.index] for head in heads), strict=True)
    return bar_chart(
        [str(head) for head in heads],
        [float(findings.scores.values[head.layer, head.index]) for head in heads],
        low=low,
        high=high,
        highlight=[str(head) for head in findings.over],
        points={str(head): findings.null[:, head.layer, head.index] for head in heads},
        name="retrieval score",
        note=f"{100 * findings.confidence:g} % interval over facts",
    )


def recall_figure(findings: Findings) -> go.Figure:
    """Depth by length: how much of the answer the model writes."""
    prompts = [*findings.selection.made, *findings.evaluation.made]
    recall = np.concatenate([findings.written.recall, findings.written_elsewhere.recall])
    grid, lengths, depths = recall_grid(prompts, recall)
    return grid_heatmap(
        grid,
        rows=[f"{100 * depth:g} %" for depth in depths],
        columns=[str(length) for length in lengths],
        name="recall",
        signed=False,
        limits=(0.0, 1.0),
    )


def masking_figure(findings: Findings) -> go.Figure:
    """One panel per mask: answers that are right without the top heads, and without random sets."""
    counts = [0, *findings.sets.chosen]
    inside = (1 - findings.confidence) / 2
    panels = []
    for mask in findings.masked:
        found = [findings.right(mask, findings.sets.chosen[count] if count else ()) for count in counts]
        lines = [Line("top heads", *np.array([[one.mean, one.low, one.high] for one in found]).T)]
        whole = found[0].mean
        for control in CONTROLS:
            draws = [findings.random(mask, control, count) if count else np.array([whole]) for count in counts]
            if not any(len(one) for one in draws[1:]):
                continue
            means = [float(one.mean()) if len(one) else np.nan for one in draws]
            low, high = (
                [float(np.quantile(one, q)) if len(one) else np.nan for one in draws] for q in (inside, 1 - inside)
            )
            lines.append(Line(f"random, {control}", means, low, high))
        panels.append(Panel(f"right, {mask}", lines))
    figure = curve_panels(counts, panels, x_name="heads masked together")
    figure.update_yaxes(range=[-0.03, 1.05])
    return taller(figure, 110) if len(panels) == 1 else figure


def _scores(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    percent = f"{100 * findings.confidence:g} %"
    return Section(
        "Which heads look at the token that they help to say",
        "The score of a head is the share of the answer's tokens, where they stand in the fact, that the head looks at "
        "most while that very token is the next one. The answer is read (teacher-forced); beside it, in the table, the "
        "score on other facts, while the model writes its own answer (on prompts of whose answer it says more than "
        "half), and with each prompt's first token left out, where some heads rest.",
        figures=[
            Figure(drawn["scores"], f"Mean score on the selection prompts. Outlined: {findings.threshold:g} or more."),
            Figure(
                drawn["heads"],
                f"The same with its {percent} interval over facts; dots: means over prompts whose words were shuffled, "
                f"{len(findings.null)} times.",
            ),
        ],
        table=findings.wide(),
        table_caption=(
            "shuffled: mean score on shuffled words; p: share of those draws in which any head has as large a score."
        ),
        max_rows=16,
    )


def _masking(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    percent = f"{100 * findings.confidence:g} %"
    words = [f"{name!r}, {CONTROL_WORDS[name]}" for name in CONTROLS]
    return Section(
        "Answers without the heads",
        "Heads are chosen on the selection prompts and masked on the evaluation prompts, which hold other facts. "
        f"A masked head is {listed([f'{MASKS[mask]} ({mask!r})' for mask in findings.masked], 'or')}. Random sets "
        f"share no head with the top heads. They are drawn in three ways: {listed(words)}. The last may break what "
        "comes before retrieval, such as heads of the first layer that look one token back, although their score is 0.",
        figures=[
            Figure(
                drawn["masking"],
                f"Share of the answer's tokens that are the most likely next token. Bands: {percent} interval over "
                "facts for the top heads, the central share of the sets for random ones. A curve ends where too few "
                "heads are left.",
            )
        ],
        table=findings.points(),
        table_caption="p: share of random sets that cost as much; empty with fewer than 20 sets, or none.",
        max_rows=24,
    )


def _recall(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    n = len(findings.selection) + len(findings.evaluation)
    return Section(
        "What the model writes",
        "How much of the answer's words the model's own greedy answer says (ROUGE-1 recall of words, without "
        "stemming), by the length of the prompt and the depth of the fact in it.",
        figures=[Figure(drawn["recall"], f"Mean recall over {n} prompts. Rows: depth of the fact; columns: tokens.")],
    )


def _method(config: RetrievalConfig, findings: Findings) -> Section:
    fact = findings.selection.made[0].fact
    where = (
        f"the text {config.text}"
        if config.text
        else f"babble of the zoo's words in which {config.distractors} other facts are told"
    )
    return Section(
        "How it was measured",
        "\n\n".join(
            [
                f"Facts such as {fact.sentence!r}, asked for by {fact.question!r}, are hidden in {where}, cut so that "
                "the prompt has the length asked for; a fact stands where a sentence ends, at or before its depth. "
                f"{len(set(findings.selection.owners))} facts choose heads ({len(findings.selection)} prompts), "
                f"{len(set(findings.evaluation.owners))} others judge them ({len(findings.evaluation)}). Intervals "
                "resample facts, since the prompts of one fact share words.",
                "The largest entry of a row counts, ties to the lowest position; each position of the answer counts "
                "once. Only the rows that predict the answer are computed. After Wu et al., 2024 (arXiv 2404.15574), "
                "whose masks make a head attend evenly (uniform), whose random heads may be retrieval heads, and who "
                "count repeats, so that scores may pass 1.",
            ]
        ),
    )
