"""The report page of the comparison of checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.checkpoint_comparison.conclusion import QUESTION, answer, doubt
from circuits.experiments.checkpoint_comparison.config import CheckpointConfig
from circuits.experiments.checkpoint_comparison.training import Training
from circuits.experiments.copying.job import Job
from circuits.experiments.copying.words import pairs_in_words
from interp.attribution.methods import METHODS
from interp.show import Figure, KeyFigure, Line, Page, Panel, Section, curve_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_HEADS = 6  # lines of a chart


def report(job: Job, config: CheckpointConfig, model: str, training: Training) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn: dict[str, go.Figure] = {}
    changes = training.changes
    page = Page(
        title=f"Heads over the training of {model!r}",
        question=QUESTION,
        answer=answer(model, training),
        doubt=doubt(training),
        key_figures=[
            KeyFigure("heads gained", str(len(changes.gained)), f"steps {training.pair[0]} to {training.pair[1]}"),
            KeyFigure("heads lost", str(len(changes.lost))),
            KeyFigure("heads shared", str(len(changes.shared)), f"Jaccard {changes.jaccard:.2f}"),
            KeyFigure("turnover", str(training.timeline.turnover), f"over {len(training.steps)} checkpoints"),
        ],
        sections=[
            _timeline(config, training, drawn),
            _changes(training, drawn),
            *([_doses(config, training)] if training.changes.doses else []),
            _retention(training, drawn),
            _method(job, config),
        ],
    )
    return page, drawn


def _timeline(config: CheckpointConfig, training: Training, drawn: dict[str, go.Figure]) -> Section:
    timeline = training.timeline
    strongest = np.argsort(-np.abs(timeline.values).max(0), kind="stable")[:MOST_HEADS]
    values = [Line(str(timeline.heads[place]), timeline.values[:, place]) for place in sorted(strongest.tolist())]
    panels = [
        Panel("logit difference", [Line("unedited", training.metric)]),
        Panel(f"change by {config.method}", values),
    ]
    drawn["training"] = curve_panels(np.array(training.steps, dtype=float), panels, x_name="training step")
    drawn["timeline"] = timeline.plot("active")
    return Section(
        "Over training",
        f"At each of {len(training.steps)} checkpoints: the logit difference of the right and the wrong answer, and "
        f"what it loses or gains without a head ({METHODS[config.method].summary}).",
        figures=[
            Figure(drawn["training"], f"The {len(values)} heads with the largest values at any checkpoint."),
            Figure(drawn["timeline"], "Heads that are ever active, at the checkpoints at which they are."),
        ],
    )


def _changes(training: Training, drawn: dict[str, go.Figure]) -> Section:
    first, second = training.pair
    drawn["change"] = training.changes.plot(title=f"change from step {first} to step {second}")
    table = training.changes.table().drop(columns=["stack", "layer", "head"]).rename(columns={"label": "head"})
    table = table.sort_values("change", key=np.abs, ascending=False, kind="stable", ignore_index=True)
    return Section(
        "Gained and lost",
        str(training.changes),
        figures=[Figure(drawn["change"], "Change of each head's value; heads gained or lost are outlined.")],
        table=table,
        table_caption=(
            f"first, second: value at steps {first} and {second}; low, high: interval of the change over prompts; "
            "support: share of resampled prompts in which the head is over the threshold."
        ),
    )


def _doses(config: CheckpointConfig, training: Training) -> Section:
    return Section(
        "Do they matter?",
        "The outputs of gained heads are scaled at the later checkpoint, those of lost heads at the earlier one, on "
        "prompts that did not choose them; 0 takes them away. Random sets have as many heads in each layer.",
        table=training.changes.dose_table(confidence=config.confidence).dropna(axis="columns", how="all"),
        table_caption="change: of the logit difference, with its interval over prompts; random: the random sets.",
    )


def _retention(training: Training, drawn: dict[str, go.Figure]) -> Section:
    drawn["retention"] = training.timeline.plot("retention")
    figures = [Figure(drawn["retention"], "Row: a checkpoint. Column: how many of its active heads are active there.")]
    if len(training.timeline.cohorts()):
        drawn["cohorts"] = training.timeline.plot("cohorts")
        figures.append(Figure(drawn["cohorts"], "Heads by the step at which they became active: how many still are."))
    return Section(
        "Do heads stay?",
        "Share of the heads active at one checkpoint that are active at another.",
        figures=figures,
    )


def _method(job: Job, config: CheckpointConfig) -> Section:
    lines = [
        pairs_in_words(job),
        f"Heads are judged by {config.method!r} at every checkpoint on the selection prompts, the same for all; "
        "scaling and ablation are done on the evaluation prompts.",
    ]
    return Section("How it was measured", "\n\n".join(lines))
