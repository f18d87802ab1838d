"""The sinks experiment from its settings to its outcome."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from circuits.experiments.opening import open_model
from circuits.experiments.pieces import Pieces
from circuits.experiments.sinks.conclusion import answer, doubt
from circuits.experiments.sinks.config import SinksConfig
from circuits.experiments.sinks.findings import Findings, heads_above
from circuits.experiments.sinks.measuring import Masked, masked, material_for, measured, secondary
from circuits.experiments.sinks.report import report
from circuits.outcome import Outcome, Workplace
from circuits.units import fingerprint_of
from interp.errors import Unsupported

VERSION = "sinks/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: SinksConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: a model that reads no text, or a score that does not apply to it.
        RunFailed: NaN or infinity on the way.
    """
    opened = open_model(config, place)
    material = material_for(opened.model, config)
    pieces = Pieces(place.units, VERSION, opened.fingerprint, config.batch_size, config.seed)
    key = fingerprint_of(material.batch.content_keys.numpy())
    tables, notes = measured(material, config, pieces, place, key)
    masking: Masked | None = None
    if config.masking:
        try:
            masking = masked(material, config, heads_above(tables["sink"], config.eps), pieces, place, key)
        except Unsupported as error:
            notes.append(f"Masking is left out: {error}")
    findings = Findings(
        model=Path(config.model).name,
        tables=tables,
        compared=config.compare,
        secondary=secondary(material, place),
        masking=masking,
        eps=config.eps,
        tokens=material.tokens,
        words=material.words,
        confidence=config.confidence,
        notes=notes,
    )
    page, figures = report(config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=findings.heads().head(8).iloc[:, :5],
        page=page,
        figures=figures,
        model=opened.about,
        notes=[doubt(findings), *notes],
        facts=facts(findings),
    )


def facts(findings: Findings) -> dict[str, object]:
    """The numbers behind the answer as plain values."""
    together = findings.together()
    return {
        "sink heads": [str(head) for head in findings.sink_heads],
        "born in layer": findings.born,
        "sink rate": findings.rate,
        "sink rate by token": findings.rates.tolist(),
        "uniform attention": findings.uniform,
        "tokens": list(findings.tokens),
        "without first token": findings.without().to_dict(orient="records"),
        "loss": None if findings.masking is None else float(np.mean(findings.masking.loss)),
        "change of the loss": None if together is None else [together.mean, together.low, together.high],
        "change with other places": findings.elsewhere().tolist(),
    }
