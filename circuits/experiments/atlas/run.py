"""The atlas experiment from its settings to its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

import interp
from circuits.experiments.atlas.config import AtlasConfig
from circuits.experiments.atlas.findings import Findings, foremost
from circuits.experiments.atlas.prompts import Material, material_for
from circuits.experiments.atlas.report import answer, doubt, report
from circuits.experiments.atlas.scoring import Scored, packed, scored, unpacked
from circuits.experiments.opening import Opened, open_model
from circuits.experiments.pieces import Pieces
from circuits.outcome import Outcome, Workplace
from circuits.units import Arrays, fingerprint_of
from interp.address import At, Head, Site
from interp.model.handle import Model
from interp.scores.labels.head_labels import HeadLabels
from interp.show.explorer import MOST_TOKENS

VERSION = "atlas/1"  # raised whenever the arithmetic changes, so that old pieces are not taken for new ones


def run(config: AtlasConfig, place: Workplace) -> Outcome:
    """What the experiment finds with these settings.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts that the model cannot be given, or no score that applies.
        RunFailed: NaN or infinity on the way.
    """
    opened = open_model(config, place)
    model = opened.model
    material = material_for(model, config)
    pieces = Pieces(place.units, VERSION, opened.fingerprint, config.batch_size, config.seed)
    key = fingerprint_of(config.settings(), material.batch.content_keys.numpy())
    found = scored(model, material, config, pieces, place, key)
    labels = _labels(opened, material, config, pieces, place, key)
    findings = _findings(model, material, config, found, labels, place)
    page, figures = report(config, findings)
    return Outcome(
        answer=answer(findings),
        heads=findings.table(),
        top=_top(findings),
        page=page,
        figures=figures,
        model=opened.about,
        notes=[doubt(findings), *(f"{name} does not apply: {why}" for name, why in found.refused.items())],
        facts={
            "labels": {head: list(earned) for head, earned in findings.earned.items()},
            "scores": list(found.tables),
            "do not apply": dict(found.refused),
            "labels not tested": {} if labels is None else dict(labels.untested),
            "patterns": list(findings.shown),
        },
    )


def _labels(
    opened: Opened, material: Material, config: AtlasConfig, pieces: Pieces, place: Workplace, key: str
) -> HeadLabels | None:
    """The labels, where they can be looked for and were asked for; a unit."""
    if not (config.label and material.labels):
        return None

    def made() -> Arrays:
        found = interp.label_heads(
            opened.model,
            material.task,
            method=config.ablation,
            margin=config.margin,
            n_prompts=config.n_prompts,
            segment=config.segment,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        arrays, about = found.arrays()
        return {**arrays, **packed(about)}

    with place.progress.stage("Look for labels", 1) as done:
        arrays = pieces.arrays("labels", key, made)
        done()
    return HeadLabels.from_arrays({name: array for name, array in arrays.items() if name != "json"}, unpacked(arrays))


def _findings(
    model: Model, material: Material, config: AtlasConfig, found: Scored, labels: HeadLabels | None, place: Workplace
) -> Findings:
    stack = model.stack(None)
    counts = [stack.n_heads(layer) for layer in range(stack.n_layers)]
    ready = Findings(
        model=Path(config.model).name,
        stack=stack.name,
        exists=np.arange(max(counts))[None, :] < np.array(counts)[:, None],
        tables=found.tables,
        nulls=found.nulls,
        refused=found.refused,
        labels=labels,
        patterns=None,
        shown=(),
        tokens=(),
        words=material.words,
        null=f"{config.null_prompts} prompts, {config.null_draws} draws from seed {config.seed}",
        confidence=config.confidence,
    )
    earned = [(head.layer, head.index) for head in map(Head.parse, ready.earned)]
    values = {name: found.tables[name].values for name in ready.single()}
    cells = foremost(ready.exists, earned, values, config.patterns)
    with place.progress.stage("Read patterns", 1) as done:
        patterns = _patterns(model, material, cells)
        done()
    if patterns is None:
        return ready
    return replace(
        ready,
        patterns=patterns,
        shown=[f"L{layer}.H{head}" for layer, head in cells],
        tokens=_tokens(material, patterns.shape[-1]),
    )


def _patterns(
    model: Model, material: Material, cells: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "pattern query key"] | None:
    """The patterns of the first prompt, its first 64 tokens; None where rows and keys are not of the same tokens."""
    first = material.batch.select([0])
    layers: dict[int, list[int]] = {}
    for layer, head in cells:
        layers.setdefault(layer, []).append(head)
    logits = "last" if model.default_stack == "text" else "all"
    made = []
    for layer, heads in layers.items():
        at = At(Site.PATTERN, layer=layer, heads=tuple(heads))
        pattern = interp.run(model, first, read=[at], logits=logits)[at][0]
        if pattern.shape[-1] != pattern.shape[-2]:
            return None
        made.append(pattern[:, :MOST_TOKENS, :MOST_TOKENS].float().cpu().numpy())
    return np.concatenate(made)


def _tokens(material: Material, length: int) -> list[str]:
    tokens = list(material.batch.tokens[0]) if material.batch.tokens else []
    return tokens[:length] if len(tokens) >= length else [str(place) for place in range(length)]


def _top(findings: Findings) -> pd.DataFrame:
    """Labelled heads with their evidence; the top heads of scores where no head earned a label."""
    if findings.labels is not None and findings.earned:
        shown = ["head", "label", "score", "threshold", "effect", "effect_low", "effect_high"]
        return pd.DataFrame(findings.labels.table()[shown])
    return pd.DataFrame(findings.overview()[["score", "top head", "its value"]].head(10))
