"""The report page of the experiment on traces of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.experiments.trace_text.conclusion import QUESTION, answer, doubt
from circuits.experiments.trace_text.config import TraceTextConfig
from circuits.experiments.trace_text.figures import figures_of, flow_figure, token_figure
from circuits.experiments.trace_text.findings import Findings
from circuits.experiments.tracing.words import MEASURES, reference_in_words, told
from interp.comparison import AgreementMatrix
from interp.show import Figure, KeyFigure, Page, Section
from interp.stats import Agreement
from interp.tracing import METHODS

if TYPE_CHECKING:
    import plotly.graph_objects as go


def report(config: TraceTextConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = figures_of(findings)
    sections = [
        _prediction(findings, drawn),
        _tokens(config, findings),
        _layers(findings, drawn),
        _target(findings, drawn),
        _heads(config, findings, drawn),
        _refused(findings),
        _method(config, findings),
    ]
    page = Page(
        title=f"Traces of texts in the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[section for section in sections if section is not None],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    made = []
    for reference, verdict in findings.verdicts.items():
        if verdict is not None:
            note = (
                f"{verdict.best}, {100 * findings.confidence:g} % interval {told(verdict.interval).split(' ', 1)[-1]}"
            )
            made.append(KeyFigure(f"best with {reference}", verdict.interval.mean, note))
    for name in ("raw", "rollout", "flow"):
        if name in findings.main.values:
            found = findings.main.interval(name)
            made.append(KeyFigure(f"{name} with {findings.main.reference}", found.mean, told(found).split(" ", 1)[-1]))
    return made


def _prediction(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    measure = MEASURES[findings.main.how.measure]
    figures = [
        Figure(
            drawn[f"predicts-{name}"],
            f"Mean over prompts of {measure} between the sizes of each trace and of {reference_in_words(name)}. Grey: "
            "methods that change the prompt themselves, and random rankings with the middle share of their means.",
        )
        for name in findings.predictions
    ]
    figures.append(Figure(drawn["methods"], f"{measure} between the methods, mean over prompts."))
    return Section(
        "Which method predicts what",
        f"Each method gives every token a number; {findings.prompts.about} What is explained is the "
        f"{findings.metric.replace('_', ' ').replace('logprob', 'log-probability')}.",
        figures=figures,
        table=findings.table(),
        table_caption=(
            "over random: minus the mean of random rankings, prompt by prompt; first in: share of resamples of the "
            "prompts in which the method is the best of those that leave the prompt as it is; with signs: both sides "
            "with their signs; answer first: share of prompts in which the token that holds the answer has the largest "
            "number; undefined: prompts in which a trace does not vary."
        ),
        max_rows=32,
    )


def _tokens(config: TraceTextConfig, findings: Findings) -> Section:
    shown = [
        Figure(token_figure(findings, prompt), f"Prompt {prompt + 1}. Each method has its own scale.")
        for prompt in range(min(config.shown, len(findings.prompts)))
    ]
    diagram = flow_figure(findings)
    if diagram is not None:
        shown.append(
            Figure(
                diagram,
                "The graph that rollout runs through, of the first prompt: what reaches the chosen token at the top "
                "through each edge. Click a token to trace it.",
            )
        )
    return Section("The prompts, token by token", "", figures=shown)


def _layers(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    rows = findings.layers()
    if rows.empty:
        return None
    return Section(
        "Layer by layer",
        "The same correlations of the trace at the top of each layer. Every layer counts the same prompts, once each.",
        figures=[
            Figure(drawn[f"layers-{name}"], "Mean over prompts with its interval.")
            for name in findings.predictions
            if f"layers-{name}" in drawn
        ],
        table=rows,
        table_caption="sd: over prompts.",
        max_rows=60,
    )


def _target(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if "spread" not in drawn:
        return None
    return Section(
        "Does the trace depend on its target?",
        "How much the numbers of a source differ between the tokens that are traced, as a share of their mean, at the "
        "top of each layer. At 0 every token has the same trace: attention flow through dense maps without a causal "
        "mask saturates at what the first layer lets through, whatever the target is.",
        figures=[Figure(drawn["spread"], "Relative spread over targets, mean over sources and prompts.")],
    )


def _heads(config: TraceTextConfig, findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    heads = findings.heads
    if heads is None:
        return None
    figures = [
        Figure(drawn[f"heads, {name}"], _head_caption(name)) for name in heads.tables if f"heads, {name}" in drawn
    ]
    text = (
        "What of a trace passes through each head, beside what the head's absence changes and how a gate on it fares."
    )
    if isinstance(heads.agreement, Agreement):
        text += f" By size: {heads.agreement}"
    elif heads.agreement is not None:
        figures.append(Figure(drawn["heads, agreement"], "Spearman's rank correlation of the sizes over heads."))
    if heads.refused:
        text += " Not done: " + "; ".join(f"{name}: {why}" for name, why in heads.refused.items())
    return Section(
        "Head by head",
        text,
        figures=figures,
        table=heads.agreement.table() if isinstance(heads.agreement, AgreementMatrix) else None,
        table_caption="Rank agreement of the tables of heads, by size.",
    )


def _head_caption(name: str) -> str:
    kind, _, how = name.partition(", ")
    if kind == "traced":
        return f"What each head brings to the trace by {how!r}: with the head, minus with the identity in its place."
    if kind == "ablated":
        return f"Change of the metric as the head's output is replaced ({how})."
    return "Facilitation of each head by causal head gating."


def _refused(findings: Findings) -> Section | None:
    rows = findings.refused()
    if rows.empty:
        return None
    return Section("What this model cannot do", "", table=rows, max_rows=40)


def _method(config: TraceTextConfig, findings: Findings) -> Section:
    special = "Special tokens are compared as well." if config.special else "Special tokens are not compared."
    signed = [name for name in findings.traced.rows if METHODS[name].signed]
    rule = "counts as 0" if config.undefined == "zero" else "is left out"
    said = dict.fromkeys(text for rows in findings.traced.rows.values() for text in rows.said)
    parts = [
        findings.prompts.about,
        f"Per prompt, {MEASURES[config.how]} over the tokens between a trace and a reference, ties at their mean rank, "
        f"then the mean over {len(findings.prompts)} prompts with its {100 * config.confidence:g} % bootstrap interval "
        f"(Abnar and Zuidema, 2020, arXiv 2005.00928, for Spearman's rho). {special} A correlation with a trace that "
        f"does not vary {rule}. Sizes are compared, since attention has no sign; {', '.join(signed) or 'no method'} "
        "have signs, which the column 'with signs' compares.",
        f"Random rankings: {config.random_orders} orders of each prompt's tokens.",
    ]
    if said:
        parts.append("Said on the way: " + " ".join(said))
    return Section("How it was measured", "\n\n".join(parts))
