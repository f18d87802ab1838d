"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.retrieval.findings import Findings
from circuits.experiments.retrieval.masking import ALL_LAYERS, LATER_LAYERS, SAME_LAYERS
from circuits.experiments.wording import between, listed, named, short
from interp.numerals import numeral

QUESTION = "Which heads copy a fact out of a long text, and can the model answer without them?"
CLEAR = 0.05


def answer(findings: Findings) -> str:
    """Which heads retrieve, and what is left without them."""
    over, n = findings.over, len(findings.order)
    if not over:
        best = findings.order[0]
        return (
            f"In the model {findings.model!r} no head copies a share {findings.threshold:g} of the answers; the "
            f"nearest is {best} with {short(findings.scores.values[best.layer, best.index])}."
        )
    first = over[0]
    mask = next(iter(findings.masked))
    count, control = _clearest(findings, mask)
    whole, left = findings.right(mask, ()), findings.right(mask, findings.sets.chosen[count])
    text = (
        f"In the model {findings.model!r}, {len(over)} of {n} heads copy at least {100 * findings.threshold:g} % of "
        f"the answers, {first} most ({short(findings.scores.values[first.layer, first.index])}). With the top {count} "
        f"masked ({mask}), {short(left.mean)} {between(left)} of the answer's tokens are right, of {short(whole.mean)}"
    )
    if control is None:
        return f"{text}; too few heads are left for random sets."
    random = findings.random(mask, control, count)
    return (
        f"{text}; with {count} random heads of {control}, {short(float(random.mean()))} (mean of {len(random)} sets)."
    )


def _clearest(findings: Findings, mask: str) -> tuple[int, str | None]:
    """The fewest heads at which the top and the first possible control lie about as far apart as anywhere."""
    best: tuple[float, int, str | None] = (-np.inf, next(iter(findings.sets.chosen)), None)
    for count, heads in findings.sets.chosen.items():
        for control in (LATER_LAYERS, SAME_LAYERS, ALL_LAYERS):
            random = findings.random(mask, control, count)
            if len(random):
                apart = float(random.mean()) - findings.right(mask, heads).mean
                if apart > best[0] + CLEAR:
                    best = (apart, count, control)
                break
    return best[1], best[2]


def doubt(findings: Findings) -> str:
    """What random heads do, how the two scores agree, and what the numbers do not say."""
    return " ".join(
        part for part in (_writing(findings), _controls(findings), _first_token(findings), _masks(findings)) if part
    )


def _writing(findings: Findings) -> str:
    counted = np.asarray(np.isfinite(findings.written.scores.samples).any(axis=(1, 2)))
    if not counted.any():
        return (
            "The model writes too little of any answer, so that the score while it writes is not known; the scores are "
            "of the right answers, read."
        )
    apart = np.nanmax(np.abs(findings.written.scores.values - findings.scores.values))
    return (
        f"The model's own answers say enough on {int(counted.sum())} of {counted.size} prompts; scores while it writes "
        f"them differ from those of the right answers by {short(float(apart))} at most."
    )


def _controls(findings: Findings) -> str:
    mask = next(iter(findings.masked))
    said = []
    for count in findings.sets.chosen:
        anywhere, later = (findings.random(mask, control, count) for control in (ALL_LAYERS, LATER_LAYERS))
        if len(anywhere) and len(later) and later.mean() - anywhere.mean() > CLEAR:
            said.append(f"{count} ({short(float(anywhere.mean()))} against {short(float(later.mean()))})")
    if said:
        return (
            "Random heads that may lie in the first layer cost more than others, with "
            f"{listed(said)} heads masked: score 0 there does not mean unused, for what a head there writes may be "
            "what the retrieval heads read."
        )
    possible = [
        numeral(p) for count in findings.sets.chosen if (p := findings.against(mask, LATER_LAYERS, count).p) is not None
    ]
    return (
        f"Against random heads of later layers, p = {listed(possible)} in the order of the counts." if possible else ""
    )


def _first_token(findings: Findings) -> str:
    gained = [
        head
        for head in findings.order
        if head not in findings.over
        and findings.scores_without_first.values[head.layer, head.index] >= findings.threshold
    ]
    if not gained:
        return ""
    verb = "pass" if len(gained) > 1 else "passes"
    return f"With the first token left out of every row, {named(gained)} {verb} the threshold too."


def _masks(findings: Findings) -> str:
    if len(findings.masked) == 1:
        return ""
    count = max(findings.sets.chosen)
    parts = [f"{mask} {short(findings.right(mask, findings.sets.chosen[count]).mean)}" for mask in findings.masked]
    return f"How heads are masked matters: with the top {count} masked, right are {listed(parts)}."
