"""The comparison of checkpoints from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.experiments.checkpoint_comparison.conclusion import answer, doubt
from circuits.experiments.checkpoint_comparison.config import CheckpointConfig
from circuits.experiments.checkpoint_comparison.report import report
from circuits.experiments.checkpoint_comparison.training import Training, chosen_pair, followed
from circuits.experiments.checkpoints import checkpoints_of
from circuits.experiments.copying.job import copying_job
from circuits.outcome import Outcome, Workplace

VERSION = "checkpoints/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: CheckpointConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model, or a checkpoint, cannot be read.
        BadInput: no two checkpoints, a step that is not there, prompts that cannot be made.
        RunFailed: NaN or infinity on the way.
    """
    chosen_pair(config, [step for step, _ in checkpoints_of(config.model)])
    job = copying_job(config, place, VERSION)
    training = followed(job, config)
    name = Path(config.model).name
    page, figures = report(job, config, name, training)
    return Outcome(
        answer=answer(name, training),
        heads=table(config, training),
        top=top(training),
        page=page,
        figures=figures,
        model=job.about,
        notes=[doubt(training)],
        facts=facts(training),
    )


def table(config: CheckpointConfig, training: Training) -> pd.DataFrame:
    """The long table: one row per checkpoint and head, with its interval and whether it is active."""
    timeline, parts = training.timeline, []
    for place, (step, scores) in enumerate(zip(training.steps, training.tables, strict=True)):
        rows = scores.table(confidence=config.confidence)
        rows.insert(0, "quantity", scores.name)
        rows.insert(1, "step", step)
        active = {(h.layer, h.index): bool(a) for h, a in zip(timeline.heads, timeline.active[place], strict=True)}
        rows["active"] = [active[cell] for cell in zip(rows["layer"], rows["head"], strict=True)]
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def top(training: Training) -> pd.DataFrame:
    """One row per head for the terminal, the largest changes first."""
    rows = training.changes.table()
    shown = ["label", "first", "second", "change", "low", "high", "status"]
    frame = pd.DataFrame(rows[shown]).rename(columns={"label": "head"})
    return frame.sort_values("change", key=np.abs, ascending=False, kind="stable", ignore_index=True).head(10)


def facts(training: Training) -> dict[str, Any]:
    """The numbers behind the answer as plain values."""
    changes, timeline = training.changes, training.timeline
    return {
        "steps": list(training.steps),
        "logit difference": training.metric.tolist(),
        "pair": list(training.pair),
        "gained": [str(head) for head in changes.gained],
        "lost": [str(head) for head in changes.lost],
        "shared": [str(head) for head in changes.shared],
        "first active": {
            str(head): step for head, step in zip(timeline.heads, timeline.first, strict=True) if step is not None
        },
        "turnover": timeline.turnover,
        "retention": timeline.retention.tolist(),
        "doses": changes.dose_table().to_dict(orient="records"),
    }
