"""The answer in words, made from the curves and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.pruning.findings import Findings
from circuits.experiments.wording import between, listed, short
from interp.numerals import numeral

QUESTION = "How many heads does the model need to copy, and which ranking finds them?"


def answer(findings: Findings) -> str:
    """How far the metric holds as heads go, and which ranking holds it longest."""
    best, n = findings.best(), findings.any_curve.n_heads
    curve = findings.curves[best]
    enough, random = int(findings.kept(best)), findings.kept_by_random()
    if findings.whole <= findings.empty:
        return (
            f"In the model {findings.model!r} heads do not help here: the logit difference is {short(findings.whole)} "
            f"with all of them and {short(findings.empty)} with none."
        )
    if enough < n:
        held = (
            f"with {enough} of {n} heads left at least {100 * findings.keep:g} % of the gap between all heads "
            f"({short(findings.whole)}) and none ({short(findings.empty)}) remains"
        )
    else:
        held = f"already the first cut takes more than {100 * (1 - findings.keep):g} % of the logit difference"
    return (
        f"In the model {findings.model!r}, {held}, in the order of {best!r}, which keeps "
        f"{listed(findings.last(best, 2))} longest; a random order needs {np.median(random):g} heads "
        f"(median of {len(random)}). "
        f"Along that curve the logit difference is {short(curve.lead.mean)} {between(curve.lead)} above random orders."
    )


def doubt(findings: Findings) -> str:
    """Which rankings beat random orders, and what the numbers do not say."""
    adjusted = {name: p for name, p in findings.adjusted().items() if p is not None}
    if not adjusted:
        said = "With fewer than 20 random orders there is a band and no p-value."
    else:
        beat = [f"{name} (p = {numeral(p)})" for name, p in adjusted.items() if p <= 0.05]  # noqa: PLR2004
        fail = [name for name, p in adjusted.items() if p > 0.05]  # noqa: PLR2004
        said = f"Against {len(findings.any_curve.random)} random orders, after Benjamini-Hochberg: "
        said += f"{listed(beat)} {'do' if len(beat) > 1 else 'does'} better" if beat else "no ranking does better"
        said += f"; {listed(fail)} {'are' if len(fail) > 1 else 'is'} not told apart." if fail else "."
    return f"{said} Heads were ranked on one half of the prompts and removed on the other.{_method(findings)}"


def _method(findings: Findings) -> str:
    if findings.ablation != "zero":
        return ""
    return " Zeroed outputs are off-distribution, so effects can be larger than what the heads carry."
