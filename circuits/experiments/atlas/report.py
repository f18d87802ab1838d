"""The atlas page: the map of all heads, labels with their evidence, every score, and what does not apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from circuits.experiments.atlas.config import AtlasConfig
from circuits.experiments.atlas.findings import Findings
from circuits.experiments.wording import listed
from interp.address import Head
from interp.scores import SCORES
from interp.show import Explorer, Figure, KeyFigure, MapScore, Page, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go

QUESTION = "What does each head look at and write, and which heads have earned a name?"
MOST_NAMED = 6


def report(config: AtlasConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    figures = {} if findings.labels is None else {"labels": findings.labels.plot(title="Labels")}
    page = Page(
        title=f"Atlas of the heads of {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[
            _map(findings),
            *_labels(findings),
            _scores(findings),
            *_absent(findings),
            _method(config, findings),
        ],
    )
    return page, figures


def answer(findings: Findings) -> str:
    """How many heads earned which labels."""
    n = findings.n_heads
    if findings.labels is None:
        scores = len(findings.tables)
        return f"The {n} heads of the model {findings.model!r} have {scores} scores each; no labels were looked for."
    inside = f"In the model {findings.model!r}"
    if not findings.earned:
        return f"{inside} none of {n} heads earned a label; each has {len(findings.tables)} scores."
    named = [f"{head} ({listed(labels)})" for head, labels in list(findings.earned.items())[:MOST_NAMED]]
    rest = len(findings.earned) - len(named)
    more = [f"{rest} more"] if rest else []
    return f"{inside} {len(findings.earned)} of {n} heads earned a label: {listed([*named, *more])}."


def doubt(findings: Findings) -> str:
    """What labels and scores do not say."""
    said = (
        "A score is a property of a head's pattern, output or weights on these prompts, and attention is not "
        "importance."
    )
    if findings.labels is None:
        return f"{said} None was held against an ablation here."
    tested = len(findings.labels.tested)
    return (
        f"{said} A label stands only where the pattern exceeds its null and ablating the head changes the task, on "
        f"other prompts. {tested} types were tested and {len(findings.labels.untested)} could not be; a head without a "
        "label may do something that none of them names, or share its work with another."
    )


def _key_figures(findings: Findings) -> list[KeyFigure]:
    layers = len(findings.exists)
    tested = "" if findings.labels is None else f"{len(findings.labels.tested)} types tested"
    return [
        KeyFigure("heads", str(findings.n_heads), f"{layers} layers, stack {findings.stack}"),
        KeyFigure("with a label", str(len(findings.earned)) if findings.labels is not None else "not asked", tested),
        KeyFigure("scores", str(len(findings.tables)), f"{len(findings.single())} of one number per head"),
        KeyFigure("do not apply", str(len(findings.refused)), "with their reasons below"),
    ]


def _map(findings: Findings) -> Section:
    return Section(
        "All heads",
        "Choose what colours the map, and which heads pass; click a head for its pattern and all its scores.",
        figures=[
            Figure(
                explorer(findings),
                "Squares mark heads with a label, one colour for each stage of the survey. The null band is the "
                f"central 95 % of {findings.null}; * marks values outside it. Patterns are of the first prompt.",
                f"A map of {findings.n_heads} heads, layer by head, with a selector of the score that colours it.",
            )
        ],
    )


def explorer(findings: Findings) -> Explorer:
    """The clickable map."""
    labels = findings.labels
    heads = [(int(layer), int(head)) for layer, head in np.argwhere(findings.exists)]
    stages = {} if labels is None else dict(zip(labels.rows["label"], labels.rows["stage"], strict=True))
    evidence = {
        head: [f"{label}: {why}" for label, why in zip(rows["label"], rows["why"], strict=True)]
        for head in findings.earned
        if labels is not None
        for rows in [labels.evidence(head).query("labelled")]
    }
    return Explorer(
        exists=findings.exists,
        scores=[_shown(findings, name) for name in _order(findings)],
        labels=findings.earned,
        stages=stages,
        evidence=evidence,
        patterns=findings.patterns,
        pattern_heads=findings.shown,
        tokens=findings.tokens,
        more={str(Head(*cell)): findings.written_out(*cell) for cell in heads},
    )


def _order(findings: Findings) -> list[str]:
    """Scores in their order, those that labels rest on first."""
    names = findings.single()
    first = [name for name in ("induction", "previous_token", "duplicate_token", "sink") if name in names]
    return first + [name for name in names if name not in first]


def _shown(findings: Findings, name: str) -> MapScore:
    scores, entry = findings.tables[name], SCORES[name]
    rows = scores.table()
    low, high = np.full(findings.exists.shape, np.nan), np.full(findings.exists.shape, np.nan)
    cells = (rows["layer"].to_numpy(dtype=int), rows["head"].to_numpy(dtype=int))
    low[cells], high[cells] = rows["low"], rows["high"]
    band = findings.band(name) or (None, None)
    return MapScore(
        name=name,
        values=scores.values,
        low=low,
        high=high,
        null_low=band[0],
        null_high=band[1],
        summary=entry.summary[:1].upper() + entry.summary[1:],
        direction=entry.direction,
        signed=entry.range[0] < 0 < entry.range[1],
    )


def _labels(findings: Findings) -> list[Section]:
    labels = findings.labels
    if labels is None:
        return []
    shown = ["head", "label", "stage", "score", "low", "high", "threshold", "rival", "weight", "effect", "p"]
    untested = pd.DataFrame({"type": list(labels.untested), "why it was not tested": list(labels.untested.values())})
    sections = [
        Section(
            "Labels and their evidence",
            "\n\n".join(labels.notes),
            table=pd.DataFrame(labels.table()[shown]),
            table_caption="Score: of the pattern, with its 95 % interval; threshold: upper quantile of its null; "
            "rival: what other heads of the layer reach; weight: the score of weights that goes with the type; effect: "
            "of removing the head on the metric of the task; p after Benjamini-Hochberg.",
        )
    ]
    if len(untested):
        sections.append(
            Section(
                "Types that were not tested",
                "",
                table=untested,
                table_caption="A test needs prompts, spans or knowledge that this run has not.",
                max_rows=len(untested),
            )
        )
    return sections


def _scores(findings: Findings) -> Section:
    return Section(
        "Every score",
        "",
        table=findings.overview(),
        table_caption="Scores of several numbers per head are in each head's list above and in heads.parquet.",
        max_rows=200,
    )


def _absent(findings: Findings) -> list[Section]:
    if not findings.refused:
        return []
    table = pd.DataFrame({"score": list(findings.refused), "why": list(findings.refused.values())})
    return [Section("Scores that do not apply", "Each was asked and refused.", table=table, max_rows=len(table))]


def _method(config: AtlasConfig, findings: Findings) -> Section:
    sinks = "Each prompt's first token was left out of every row." if config.exclude_sinks else "No key was left out."
    return Section(
        "How it was measured",
        "\n\n".join(
            [
                f"Prompts: {findings.words}. {sinks}",
                f"Nulls: {findings.null}; a null keeps lengths, spans and special tokens. Scores of weights have none"
                f"{'' if config.null_all else ', nor have scores with forwards of their own (null_all=true)'}.",
                f"Batches of {config.batch_size} prompts. Labels: patterns on one half of the prompts (or on random "
                f"tokens of their own), effects by {config.ablation} ablation on the other half.",
            ]
        ),
    )
