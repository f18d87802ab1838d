"""The report page of the contrastive gating experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.experiments.contrast.conclusion import QUESTION, answer, doubt
from circuits.experiments.contrast.config import Format
from circuits.experiments.contrast.findings import Findings
from circuits.experiments.contrast.fitting import Contrast, Job
from circuits.experiments.contrast.formats import MEANING
from interp.show import Figure, KeyFigure, Page, Section, bar_chart

if TYPE_CHECKING:
    import plotly.graph_objects as go


def report(job: Job, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn: dict[str, go.Figure] = {}
    first = findings.contrasts[0]
    sections = [_gates(findings, one, drawn) for one in findings.contrasts]
    page = Page(
        title=f"Contrastive gating of the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=[
            KeyFigure(f"loss, {first.retain}", findings.loss(first, first.retain).mean, "nats, every head in place"),
            KeyFigure(f"loss, {first.forget}", findings.loss(first, first.forget).mean, "nats, every head in place"),
            KeyFigure(f"rise, {first.retain}", findings.rise(first, first.retain).mean, "without the closed heads"),
            KeyFigure(f"rise, {first.forget}", findings.rise(first, first.forget).mean, "without the closed heads"),
        ],
        sections=[_effects(findings, drawn), *sections, _heads(findings), _method(job)],
    )
    return page, drawn


def _effects(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    labels, values, low, high, points = [], [], [], [], {}
    for one in findings.contrasts:
        for name in (one.retain, one.forget):
            rise, null = findings.rise(one, name), findings.null(one, name)
            label = f"{name}, to keep {one.retain} and lose {one.forget}"
            labels.append(label)
            values.append(rise.mean)
            low.append(rise.low)
            high.append(rise.high)
            if null is not None and null.n:
                rows = one.losses[name].astype(float)
                points[label] = (rows[2:] - rows[0]).mean(1)
    lost = [f"{one.forget}, to keep {one.retain} and lose {one.forget}" for one in findings.contrasts]
    drawn["effects"] = bar_chart(
        labels, values, low=low, high=high, highlight=lost, points=points, name="rise of the loss, nats",
        note=f"{100 * findings.confidence:g} % interval",
    )  # fmt: skip
    return Section(
        "Without the closed heads",
        "The closed heads of each fit are set to zero, on items that no fit has seen, in both formats. A contrast is "
        "real where the format to lose gets worse, the format to keep does not, and random heads do not do the same.",
        figures=[
            Figure(
                drawn["effects"],
                "Colour: the format that was to be lost; grey: the one to keep; with intervals over items. Dots: "
                "random sets with as many heads in each layer.",
            )
        ],
        table=findings.effects(),
        table_caption="rise: of the loss of the last segment without the closed heads, in nats, with its interval.",
    )


def _gates(findings: Findings, one: Contrast, drawn: dict[str, go.Figure]) -> Section:
    name = f"keep_{one.retain}_lose_{one.forget}"
    drawn[name] = one.gates.gates.plot(
        title="gate", marked=list(one.closed), confidence=findings.confidence
    ).update_layout(coloraxis={"cmin": 0.0, "cmax": 1.0})
    drawn[f"{name}_history"] = one.gates.plot("history")
    pulled = "open" if one.lam > 0 else "shut"
    return Section(
        f"To keep {one.retain} and lose {one.forget}",
        f"One fit of gates from {len(one.gates.seeds)} starts, pulled {pulled} (weight {abs(one.lam):g}).",
        figures=[
            Figure(drawn[name], "Mean gate over seeds: 1 kept, 0 closed. Outlined: closed in more than half of them."),
            Figure(
                drawn[f"{name}_history"],
                "Along the fit: what is minimised without the pull (loss of the format to keep, plus what the other's "
                "log-probability is above it, at least −5), the mean gate, and the entropy of a gate.",
            ),
        ],
    )


def _heads(findings: Findings) -> Section:
    return Section(
        "Every head",
        "",
        table=findings.heads(),
        table_caption="gate: mean over seeds; closed: share of the seeds whose gate is below one half.",
    )


def _method(job: Job) -> Section:
    config = job.config
    names: dict[Format, None] = dict.fromkeys(name for pair in config.contrasts for name in pair)
    formats = "; ".join(f"{name}: {MEANING[name]}" for name in names)
    lines = [
        f"{formats[0].upper()}{formats[1:]}. S is {config.segment}. "
        f"The loss is that of the last segment from its second token on. "
        f"{len(job.fitted)} items fit the gates, {min(config.prompts_per_update, len(job.fitted))} of them in each of "
        f"{config.updates} updates; {len(job.held_out)} others give the losses.",
        "The fit minimises the loss of the format to keep plus the log-probability of the other format relative to it, "
        "bounded below at −5, and the pull on the gates. Nam et al., 2025 (arXiv 2505.13737), who pull shut with a "
        "weight of 0.1; pulled open, a gate is closed only where that pays.",
    ]
    return Section("How it was measured", "\n\n".join(lines))
