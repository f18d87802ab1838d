"""The report page of the induction experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.induction import figures as draw
from circuits.experiments.induction.conclusion import QUESTION, Conclusion
from circuits.experiments.induction.findings import Findings, Group
from circuits.experiments.induction.job import Job
from circuits.experiments.induction.reading import attention_of, tokens_of
from circuits.experiments.wording import named
from interp.address import Head
from interp.numerals import numeral, span
from interp.show import Figure, KeyFigure, Page, Section, attention_pattern, token_strip
from interp.stats import Interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEANING: Mapping[str, str] = {
    "previous_token": "attention to the token just before, averaged over positions",
    "duplicate_token": "attention to the earlier copy of the current token",
    "induction": "attention to the token after the earlier copy of the current token",
    "prefix_matching": "attention to the tokens after all earlier copies of the current token, summed over copies",
    "copying": (
        "whether what the head writes raises the logit of the token it looks at, from −1 to 1; on tokens said once, "
        "where a head that waits for a repeat has little to copy"
    ),
}
LONGEST_PATTERN = 40  # tokens of a prompt whose attention is drawn


def report(job: Job, findings: Findings, conclusion: Conclusion) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn: dict[str, go.Figure] = {}
    sections = [
        _scores(findings, drawn),
        _attention(job, findings, drawn),
        _offsets(findings, drawn),
        _losses(job, findings, drawn),
        _without_one(findings, drawn),
        _without_several(findings, drawn),
        _held(findings, drawn),
        _natural(findings),
        _emergence(findings, drawn),
        _table(findings),
        _method(job, findings),
    ]
    page = Page(
        title=f"Induction heads in the model {findings.model!r}",
        question=QUESTION,
        answer=conclusion.answer,
        doubt=conclusion.doubt,
        key_figures=_key_figures(findings),
        sections=[section for section in sections if section is not None],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    first, second = (findings.interval(part) for part in (findings.losses.first, findings.losses.second))
    learning = findings.interval(findings.losses.learning)
    figures = [
        KeyFigure("loss of the second copy", second.mean, f"{numeral(first.mean)} of the first; nats"),
        KeyFigure("in-context learning", learning.mean, _interval(learning)),
    ]
    for score, label in (("induction", "induction heads"), ("previous_token", "previous-token heads")):
        if score in findings.scores:
            figures.append(
                KeyFigure(label, str(len(findings.called(score))), f"score of {findings.threshold:g} or more")
            )
    return figures


def _without_one(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    strong = findings.single.beyond_chance()
    drawn["effect"] = findings.single.effect.plot(title="", marked=strong, confidence=findings.confidence)
    drawn["effect_bars"] = draw.single_effects(findings)
    note = "" if findings.single.adjusted is not None else " With fewer than 20 draws there are no p-values."
    return Section(
        "Without one head",
        f"The output of one head at a time is {_replaced(findings)}; the number is the rise of the loss on the second "
        f"copy, in nats.{note}",
        figures=[
            Figure(
                drawn["effect"],
                "Rise of the loss when one head is taken away. Outlined: larger than the largest effect of any head "
                "when right and wrong answers are reassigned over prompts.",
            ),
            Figure(drawn["effect_bars"], "The largest of them with their intervals; in colour those beyond that null."),
        ],
    )


def _without_several(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if not findings.groups:
        return None
    drawn["sets"] = draw.sets_against_random(findings.groups, findings.confidence)
    told = "\n\n".join(_told(group) for group in findings.groups)
    return Section(
        "Without several, against random heads",
        "The sets were chosen on one half of the prompts and are judged here on the other half. A random set has as "
        f"many heads in each layer.\n\n{told}",
        figures=[
            Figure(
                drawn["sets"],
                "Colour: the chosen sets, with the interval over prompts. Grey: the mean of the random sets; each dot "
                "is one of them, and the whiskers span the middle of them.",
            )
        ],
    )


def _told(group: Group) -> str:
    adjusted = (
        "" if group.adjusted is None else f" After Benjamini-Hochberg over the sets p = {numeral(group.adjusted)}."
    )
    heads = f"{group.name.capitalize()}: {named(group.heads, most=16)}"
    return f"{heads}. {group.matched} Rise of the loss: {group.null}{adjusted}"


def _scores(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    shown = []
    for name, scores in findings.scores.items():
        marked = [head for head, _ in findings.called(name)]
        drawn[f"score_{name}"] = draw.score_map(scores, marked, findings.confidence)
        shown.append(Figure(drawn[f"score_{name}"], f"{name.replace('_', ' ').capitalize()}: {MEANING.get(name, '')}."))
    return Section(
        "What each head looks at",
        f"Scores on random tokens said twice ({len(findings.losses.first)} prompts). Outlined: {findings.threshold:g} "
        "or more. Point at a cell for its value and interval.",
        figures=shown,
    )


def _offsets(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    heads = draw.heads_by_offset(findings.offsets)
    drawn["offsets"] = draw.offset_map(findings.offsets, heads)
    return Section(
        "Where heads look, counted from the earlier copy",
        "A head can complete repeated text and still have an induction score near zero, by looking one token beside. "
        "So here is the attention by offset from the earlier copy of the current token: 0 is that copy, +1 the token "
        "after it (induction), +2 one further.",
        figures=[Figure(drawn["offsets"], f"Share of attention at each offset, {len(heads)} heads.")],
    )


def _attention(job: Job, findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    heads = _chosen(findings, job.config.shown)
    if not heads:
        return None
    prompts = findings.natural.prompts[0] if findings.natural is not None else job.evaluation
    tokens = tokens_of(job, prompts)
    patterns = attention_of(job, prompts, heads)
    what = "the first natural prompt" if findings.natural is not None else "the first prompt of random tokens"
    drawn["attention"] = attention_pattern(patterns, tokens, heads, layout="menu", most_tokens=LONGEST_PATTERN)
    drawn["attention_side_by_side"] = attention_pattern(
        patterns, tokens, heads, layout="grid", most_tokens=2 * LONGEST_PATTERN
    )
    return Section(
        "Attention over real tokens",
        f"The attention of {', '.join(map(str, heads))} on {what}, said twice. A previous-token head draws a line just "
        "below the diagonal; an induction head draws one that begins where the text starts again.",
        figures=[
            Figure(drawn["attention_side_by_side"], "Queries down, keys across; point at a cell for its value."),
            Figure(drawn["attention"], "The same with its tokens, one head at a time."),
        ],
    )


def _chosen(findings: Findings, most: int) -> list[Head]:
    """Heads worth looking at: the strongest of each kind in turn, then those with the largest effects."""
    ranked = [
        [head for head, _ in draw.heads_above(findings.scores[name].values, -np.inf)]
        for name in ("induction", "previous_token")
        if name in findings.scores
    ]
    ranked.append(findings.single.effect.top_heads(most))
    turns = [head for place in range(most) for heads in ranked for head in heads[place : place + 1]]
    return list(dict.fromkeys(turns))[:most]


def _losses(job: Job, findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    drawn["loss"] = draw.loss_curve(findings.losses, findings.segment, job.evaluation.start, findings.confidence)
    learning = findings.interval(findings.losses.learning)
    return Section(
        "How much saying it twice helps",
        f"In-context learning, the loss of the second copy minus that of the first: {learning}. The first token of the "
        "second copy is left out, since nothing tells that the text will start again there.",
        figures=[Figure(drawn["loss"], f"Mean loss of each token over {len(findings.losses.first)} prompts.")],
    )


def _natural(findings: Findings) -> Section | None:
    found = findings.natural
    if found is None:
        return None
    learning = findings.interval(found.learning)
    strips = [
        Figure(token_strip(tokens[1:], losses.by_token[0], name="loss"), "Loss of each token; the text is said twice.")
        for tokens, losses in zip(found.tokens[:3], found.losses[:3], strict=True)
    ]
    scored = [
        f"{name.replace('_', ' ')} {numeral(float(np.nanmax(scores.values)), 2)} ({scores.top(1, by='value').label[0]})"
        for name, scores in found.scores.items()
    ]
    return Section(
        "On natural text",
        f"{len(found.prompts)} texts, each said twice. Saying a text again changes its loss per token by "
        f"{learning}.\n\nHighest scores on these texts: {'; '.join(scored)}.",
        figures=strips,
    )


def _held(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    held = [group for group in findings.groups if group.held is not None]
    if not held:
        return None
    drawn["held"] = draw.held_still(held, findings.confidence)
    return Section(
        "With every attention pattern held still",
        "The same heads are taken away, but every head keeps the attention pattern it has in the unedited run. What is "
        "left of the effect travels through values; what is gone went through where later heads look. An induction "
        "head does its work through values; a previous-token head that serves one does it through patterns.",
        figures=[Figure(drawn["held"], "Colour: the whole effect. Grey: what is left with patterns held still.")],
    )


def _emergence(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    grown = findings.emergence
    if grown is None:
        return None
    drawn["emergence"] = draw.over_training(grown)
    told = [f"{len(grown.steps)} checkpoints of one training run, on one batch of prompts."]
    if (fall := grown.steepest_fall()) is not None:
        told.append(f"The loss of the second copy falls most between steps {fall[0]} and {fall[1]}.")
    for score in grown.scores:
        reached = grown.first_above(score, findings.threshold)
        name = score.replace("_", " ")
        told.append(
            f"No head ever reaches {findings.threshold:g} for {name}."
            if reached is None
            else f"{reached[1]} is the first to reach {findings.threshold:g} for {name}, at step {reached[0]}."
        )
    return Section(
        "Over training",
        " ".join(told),
        figures=[
            Figure(
                drawn["emergence"], "Loss of both copies, and the scores of the heads that are strongest at the end."
            )
        ],
    )


def _table(findings: Findings) -> Section:
    return Section(
        "Every head",
        "Scores are means over prompts; the effect is the rise of the loss without the head, with its interval.",
        table=findings.wide(),
        table_caption="p: against reassigned answers, after Benjamini-Hochberg.",
    )


def _method(job: Job, findings: Findings) -> Section:
    config = job.config
    start = "a start token and " if job.evaluation.start else ""
    lines = [
        f"Prompts: {start}{config.segment} distinct random tokens, said twice. {len(job.selection)} prompts choose the "
        f"sets, {len(job.evaluation)} others give every number on this page, and {len(job.reference)} more give the "
        "replaced outputs.",
        "Every effect is the loss with the edit minus the loss without it, on the same prompts, in nats; intervals "
        f"are {100 * config.confidence:g} % bootstrap intervals over prompts.",
        "Reassigned answers: the lead of the right token over the token that another prompt has at that place, after "
        "both were taken from other prompts. A head that only shifts tokens in general moves that as well.",
        *findings.notes,
    ]
    return Section("How it was measured", "\n\n".join(lines))


def _replaced(findings: Findings) -> str:
    return {
        "zero": "set to zero (off-distribution: effects can be larger than what the head carries)",
        "mean": "replaced by its mean over other prompts, position by position",
        "resample": "replaced by its output on another prompt",
    }[findings.ablation]


def _interval(interval: Interval) -> str:
    return f"{100 * interval.confidence:g} % interval {span(interval.low, interval.high)}"
