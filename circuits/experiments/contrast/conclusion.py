"""The answer in words, made from the numbers and nothing else, with its doubt."""

from __future__ import annotations

from circuits.experiments.contrast.config import Format
from circuits.experiments.contrast.findings import Findings
from circuits.experiments.contrast.fitting import Contrast
from circuits.experiments.contrast.formats import MEANING
from circuits.experiments.wording import between, named, short
from interp.numerals import numeral

QUESTION = "Which heads can be closed so that the model loses one format of the same items and keeps another?"


def answer(findings: Findings) -> str:
    """What each fit closed, and what that does on held-out items."""
    return " ".join(_told(findings, one) for one in findings.contrasts)


def doubt(findings: Findings) -> str:
    """What the formats are, and what the numbers do not say."""
    names: dict[Format, None] = dict.fromkeys(name for one in findings.contrasts for name in (one.retain, one.forget))
    formats = "; ".join(f"{name}: {MEANING[name]}" for name in names)
    return (
        f"{formats[0].upper()}{formats[1:]}. Gates were fitted on other items than those that give the losses; a head "
        "counts as closed where more than half of the seeds shut it."
        f"{_random(findings)}"
    )


def _told(findings: Findings, one: Contrast) -> str:
    lead = f"In the model {findings.model!r}, to" if one is findings.contrasts[0] else "To"
    goal = f"{lead} keep {one.retain!r} and lose {one.forget!r}"
    if not one.closed:
        return f"{goal} no head is closed: the fit finds none that the one format needs and the other does not."
    lost, kept = findings.rise(one, one.forget), findings.rise(one, one.retain)
    left = findings.open_heads(one)
    what = (
        f"the fit closes {named(one.closed)}"
        if one.lam > 0 or len(left) > len(one.closed)
        else f"the fit leaves {named(left)} open"
        if left
        else "the fit closes every head"
    )
    closed = "it raises" if len(one.closed) == 1 else "the closed heads raise"
    effect = (
        f"set to zero, {closed} the loss of {one.forget!r} by {short(lost.mean)} {between(lost)} nats and that of "
        f"{one.retain!r} by {short(kept.mean)} {between(kept)}"
    )
    verdict = "" if findings.separates(one) else ": the two formats are not told apart by closing heads"
    return f"{goal}, {what}; {effect}{verdict}."


def _random(findings: Findings) -> str:
    """What random heads of the same layers do to the formats that were to be lost."""
    told = []
    for one in findings.contrasts:
        null = findings.null(one, one.forget)
        if null is not None and null.n:
            p = f"p = {numeral(null.p)}" if null.p is not None else "too few for a p-value"
            told.append(f"{one.forget!r} by {short(null.null_mean)} nats on average ({null.n} sets, {p})")
    return f" Random heads of the same layers raise the loss of {'; '.join(told)}." if told else ""
