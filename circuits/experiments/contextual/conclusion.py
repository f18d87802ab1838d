"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.contextual.findings import GOLD, LARGEST, LEVEL, Findings
from circuits.experiments.contextual.measuring import CONTROLS
from circuits.experiments.wording import between, listed, named, short
from interp.numerals import numeral
from interp.stats import FEWEST_SETS

QUESTION = "Which heads read the document that holds the answer, and does the answer need them?"
NEARLY = 0.9
FEWEST_DRAWS = 19  # of a null whose smallest p is LEVEL


def answer(findings: Findings) -> str:
    """Which heads read the gold document, and what happens without them."""
    reading, n = findings.contextual(), len(findings.order)
    if not reading:
        best = findings.order[0]
        found, other = findings.companion(best, GOLD), findings.companion(best, LARGEST)
        return (
            f"In the model {findings.model!r} no head can be said to read the document that holds the answer; the "
            f"nearest is {best}, with {short(found.mean)} of its attention there and {short(other.mean)} on the "
            "largest other document."
        )
    first = reading[0]
    own, other = findings.companion(first, GOLD), findings.companion(first, LARGEST)
    text = (
        f"In the model {findings.model!r}, {len(reading)} of {n} heads read the document that holds the answer: "
        f"{named(reading)}. {first} puts {short(own.mean)} {between(own)} of its attention there, and "
        f"{short(other.mean)} on the largest other document"
    )
    count, control = _clearest(findings)
    if count is None or control is None:
        return f"{text}."
    change, random = findings.without(count), findings.random(count, control)
    return (
        f"{text}. Without the {count} most contextual heads the answer's log-probability changes by "
        f"{short(change.mean)} {between(change)}, without {count} random heads from {control} by "
        f"{short(float(random.mean()))} (mean of {len(random)} sets)."
    )


def _clearest(findings: Findings) -> tuple[int | None, str | None]:
    """The fewest heads whose cost lies nearly as far from that of random ones as any, and the control with most sets.

    Counts with too few random sets for a p-value are told only where there are no others.
    """
    found = []
    for count in findings.counts:
        control = max(CONTROLS, key=lambda name, own=count: len(findings.random(own, name)))
        random = findings.random(count, control)
        if len(random):
            found.append((count, control, len(random), float(random.mean()) - findings.without(count).mean))
    enough = [one for one in found if one[2] >= FEWEST_SETS] or found
    if not enough:
        return None, None
    widest = max(gap for *_, gap in enough)
    count, control, *_ = next(one for one in enough if one[3] >= NEARLY * widest)
    return count, control


def doubt(findings: Findings) -> str:
    """How attention and effect agree, what place does, and what the numbers do not say."""
    return " ".join(
        part for part in (_nulls(findings), _agreement(findings), _sets(findings), _place(findings)) if part
    )


def _nulls(findings: Findings) -> str:
    n = len(findings.null)
    if n < FEWEST_DRAWS:
        return f"With {n} shuffled draws no head can pass the null at {LEVEL:g}; ask for at least {FEWEST_DRAWS}."
    return (
        f"A head counts as reading where its score passes the largest of any head on shuffled words (p ≤ {LEVEL:g} of "
        f"{n} draws) and the gold document gets more than any other."
    )


def _agreement(findings: Findings) -> str:
    found, everywhere = findings.agreement_at_answer, findings.agreement
    if not np.isfinite(found.spearman):
        return "Held against exact ablation, no head does anything alone."
    common = round(found.top_overlap * found.top)
    foremost = (
        f"of the {found.top} most contextual heads {common} are among the {found.top}"
        if found.top > 1
        else f"the most contextual head is {'' if common else 'not '}the one"
    )
    return (
        "Held against exact ablation, "
        f"{foremost} whose replacement at the answer's rows does most. Over all heads the rank agreement is Spearman "
        f"{short(found.spearman)}, and {short(everywhere.spearman)} where heads are replaced everywhere, which also "
        "hits those that prepare what is read; heads that do next to nothing come in any order."
    )


def _sets(findings: Findings) -> str:
    said = []
    for count in findings.counts:
        for control in CONTROLS:
            if len(findings.random(count, control)) and (p := findings.against(count, control).p) is not None:
                said.append(f"{count} heads, {control} ({numeral(p)})")
    if not said:
        return "There are too few other heads for p-values of the sets."
    return f"p against random sets: {listed(said)}."


def _place(findings: Findings) -> str:
    reading = findings.contextual()
    if not reading or len(findings.evaluation.slots) < 2:  # noqa: PLR2004 - one place says nothing about places
        return ""
    values = findings.by_place(reading[0])["value"].to_numpy()
    answers = findings.answers_by_place()["said"].to_numpy()
    return (
        f"By place of the document, the score of {reading[0]} goes from {short(float(np.min(values)))} to "
        f"{short(float(np.max(values)))}, and the share of the answer that is said from "
        f"{short(float(answers.min()))} to {short(float(answers.max()))}."
    )
