"""The report page of the experiment on traces of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from circuits.experiments.trace_image.conclusion import QUESTION, answer, doubt
from circuits.experiments.trace_image.config import TraceImageConfig
from circuits.experiments.trace_image.figures import figures_of, overlay_figure
from circuits.experiments.trace_image.findings import Findings
from circuits.experiments.tracing.words import MEASURES, told
from interp.show import Figure, KeyFigure, Page, Section
from interp.tracing.protocols.localisation import MEASURES as PLACES

if TYPE_CHECKING:
    import plotly.graph_objects as go


def report(config: TraceImageConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = figures_of(findings)
    sections = [
        _overlays(config, findings),
        _prediction(findings, drawn),
        _places(findings, drawn),
        _curves(findings, drawn),
        _sanity(findings, drawn),
        _layers(findings, drawn),
        _refused(findings),
        _method(config, findings),
    ]
    page = Page(
        title=f"Traces of images in the model {findings.model!r}",
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
    for name in ("rollout", "flow"):
        if name in findings.main.values:
            found = findings.main.interval(name)
            made.append(KeyFigure(f"{name} with {findings.main.reference}", found.mean, told(found).split(" ", 1)[-1]))
    return made


def _overlays(config: TraceImageConfig, findings: Findings) -> Section:
    shown = [
        Figure(
            overlay_figure(findings, place),
            f"{findings.images.names[place]}. Each method has its own scale; blue speaks for the answer, orange "
            "against it" + ("." if findings.regions is None else "; outlined: where the answer is."),
        )
        for place in range(min(config.shown, len(findings.images)))
    ]
    return Section("The images", findings.images.about, figures=shown)


def _prediction(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    measure = MEASURES[findings.main.how.measure]
    figures = [
        Figure(
            drawn[f"predicts-{name}"],
            f"Mean over images of {measure} over patches between the sizes of each trace and of {name!r}. Grey: "
            "methods that change the image themselves, and random rankings with the middle share of their means.",
        )
        for name in findings.predictions
    ]
    figures.append(Figure(drawn["methods"], f"{measure} between the methods, mean over images."))
    return Section(
        "Which method predicts what",
        "Blank-out covers one patch at a time in the pixels, with the image's mean colour.",
        figures=figures,
        table=findings.table(),
        table_caption=(
            "over random: minus the mean of random rankings, image by image; first in: share of resamples of the "
            "images in which the method is the best of those that leave the image as it is; with signs: both sides "
            "with their signs; deletion, insertion: areas under the curves (small and large are good)."
        ),
        max_rows=32,
    )


def _places(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if findings.located is None:
        return None
    return Section(
        "Where the answer is",
        "Traces against the true region. " + " ".join(f"{name}: {words}." for name, words in PLACES.items()),
        figures=[
            Figure(drawn[f"place-{measure}"], f"{measure}, mean over images with its interval, and chance.")
            for measure in ("pointing", "iou", "mass")
        ],
        table=findings.places(),
        table_caption="chance: what the same numbers in random order have on average.",
        max_rows=80,
    )


def _curves(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    if findings.curves is None:
        return None
    n = next(iter(findings.curves.values["deletion"].values())).shape[0]
    return Section(
        "Covering patches in the order of a trace",
        f"Deletion covers the patches with the largest numbers first, insertion uncovers them first. {n} images.",
        figures=[
            Figure(
                drawn["curves"],
                f"Mean {findings.metric.replace('_', ' ').replace('logprob', 'log-probability')} of the right answer; "
                "band: the middle share of random orders.",
            )
        ],
        table=findings.areas(),
        table_caption=(
            "better: share of images in which the order is better than random orders are on average; p: share of "
            "random orders at least as good, not corrected for the number of methods."
        ),
        max_rows=60,
    )


def _sanity(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    own = findings.randomised
    if own is None:
        return None
    rows = [
        {
            "method": name,
            "drawn anew down to": part,
            "correlation": float(own.similarity[name][place].mean()),
            "largest change": float(np.nanmean(own.change[name][place])),
        }
        for name in own.similarity
        for place, part in enumerate(own.parts)
    ]
    return Section(
        "Do the traces depend on what the model has learnt?",
        "Layers are drawn anew, as untrained models have them, from the top down. A trace that stays as it was shows "
        "the image and not the model (Adebayo et al., 2018). Undefined correlations count as 0.",
        figures=[Figure(drawn["randomised"], "Rank correlation over patches with the trace of the trained model.")],
        table=pd.DataFrame(rows),
        max_rows=60,
    )


def _layers(findings: Findings, drawn: dict[str, go.Figure]) -> Section | None:
    rows = findings.layers()
    if rows.empty:
        return None
    return Section(
        "Layer by layer",
        "The same correlations of the trace at the top of each layer.",
        figures=[
            Figure(drawn[f"layers-{name}"], "Mean over images with its interval.")
            for name in findings.predictions
            if f"layers-{name}" in drawn
        ],
        table=rows,
        table_caption="sd: over images.",
        max_rows=60,
    )


def _refused(findings: Findings) -> Section | None:
    rows = findings.refused()
    return None if rows.empty else Section("What this model cannot do", "", table=rows, max_rows=40)


def _method(config: TraceImageConfig, findings: Findings) -> Section:
    said = dict.fromkeys(text for rows in findings.traced.rows.values() for text in rows.said)
    rule = "counts as 0" if config.undefined == "zero" else "is left out"
    parts = [
        findings.images.about,
        f"Per image, {MEASURES[config.how]} over the patches between a trace and a reference, ties at their mean "
        f"rank; then the mean over {len(findings.images)} images with its {100 * config.confidence:g} % bootstrap "
        f"interval. A correlation with a trace that does not vary {rule}. Tokens that are no patch (CLS, words) are "
        "not compared.",
        f"Random rankings: {config.random_orders} orders of each image's patches.",
    ]
    if said:
        parts.append("Said on the way: " + " ".join(said))
    return Section("How it was measured", "\n\n".join(parts))
