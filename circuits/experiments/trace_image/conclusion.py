"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.trace_image.findings import Findings
from circuits.experiments.tracing.config import intervenes
from circuits.experiments.tracing.words import (
    choice_in_words,
    interventions_in_words,
    p_in_words,
    reference_in_words,
    told,
    undefined_in_words,
    verdict_sentence,
)
from circuits.experiments.wording import listed, short

QUESTION = "Which way of tracing an image says best what covering its patches does, and where the answer truly is?"


def answer(findings: Findings) -> str:
    """The foremost predictor of the first reference, and where it and the foremost pointer point."""
    first = next(iter(findings.predictions))
    said = verdict_sentence(findings.verdicts[first], findings.model, findings.main.how.measure)
    return " ".join([said.replace("blanking out a token", "covering a patch"), *_pointing(findings)])


def _pointing(findings: Findings) -> list[str]:
    located = findings.located
    if located is None:
        return []
    means = {name: located.interval(name, "iou", confidence=findings.confidence) for name in located.values}
    known = {name: one for name, one in means.items() if np.isfinite(one.mean) and not intervenes(name)}
    if not known:
        return []
    best = max(known, key=lambda name: known[name].mean)
    point = located.interval(best, "pointing", confidence=findings.confidence)
    chances = {measure: float(np.nanmean(located.chance[measure])) for measure in ("iou", "pointing")}
    return [
        f"The true region is met best by {best!r}: overlap (IoU) {told(known[best])} where chance gives "
        f"{short(chances['iou'])}, and its largest number lies inside in {100 * point.mean:.0f} % of the images "
        f"({100 * chances['pointing']:.0f} % by chance)."
    ]


def doubt(findings: Findings) -> str:
    """How it was chosen, the ceiling, curves, sanity, and what the numbers do not say."""
    first, *others = findings.predictions
    verdict, said = findings.verdicts[first], []
    if verdict is not None:
        said.append(
            f"{verdict.best!r} is the best in {100 * verdict.first_in:.0f} % of resamples of the images; "
            f"{p_in_words(verdict.p, len(findings.main.random))}."
        )
    said += [choice_in_words(findings.main), interventions_in_words(findings.main)]
    for name in others:
        other = findings.verdicts[name]
        if other is not None:
            said.append(f"Of {reference_in_words(name)}, {other.best!r} is the best predictor: {told(other.interval)}.")
    said += [_curves(findings), _sanity(findings), undefined_in_words(findings.main)]
    if findings.traced.refused:
        said.append(f"This model cannot do {listed(sorted(findings.traced.refused))}; the reasons are in the report.")
    said.append(
        "A covered patch is unlike what the model has seen, and where the answer is need not be where the model looks."
    )
    return " ".join(one for one in said if one)


def _curves(findings: Findings) -> str:
    if findings.curves is None:
        return ""
    parts = []
    for way, sign in (("deletion", -1), ("insertion", 1)):
        rows = [
            row
            for row in findings.areas().to_dict(orient="records")
            if row["direction"] == way and np.isfinite(row["area"]) and not intervenes(row["weights"])
        ]
        if rows:
            row = max(rows, key=lambda row, sign=sign: sign * row["area"])
            areas = f"area {short(row['area'])}, random orders {short(row['random'])}"
            parts.append(f"{way} by {row['weights']!r} ({areas})")
    return f"The best order of patches is, for {listed(parts)}." if parts else ""


def _sanity(findings: Findings) -> str:
    if findings.randomised is None:
        return ""
    blind = findings.randomised.blind
    if not blind:
        return "Every trace changes as the model's layers are drawn anew."
    return f"{listed([repr(name) for name in blind])} did not change as all layers were drawn anew: no explanation."
