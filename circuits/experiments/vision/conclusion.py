"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.vision.findings import Findings
from circuits.experiments.vision.measuring import BARE, DIVERGENCE, MASS
from circuits.experiments.vision.sets import SetEffect
from circuits.experiments.vision.withheld import WAYS
from circuits.experiments.wording import between, named, short
from interp.numerals import numeral

QUESTION = "Does vision-aware head divergence find the heads that answers about pictures rest on, and they alone?"


def answer(findings: Findings) -> str:
    """Whether the divergent heads cost answers about pictures and not text ones, more than random heads do."""
    best = findings.best()
    heads = f"the {len(best.heads)} heads with the largest divergence ({named(best.heads)})"
    if len(best.heads) == 1:
        heads = f"the head with the largest divergence ({best.heads[0]})"
    cost = (
        f"taking out {heads} changes the {words_of(findings)} by {_mean(best, 'vision')} on questions with an image "
        "and by "
        f"{_mean(best, 'text')} on text questions; random heads of the same layers by "
        f"{short(best.against_random('vision').null_mean)} and {short(best.against_random('text').null_mean)}"
    )
    if findings.found(best):
        return f"Yes, in the model {findings.model!r}: {cost}."
    if not len(best.sets.sets):
        return f"In the model {findings.model!r}, {cost}; there were no random heads to compare with."
    return f"Not beyond random heads in the model {findings.model!r}: {cost}."


def words_of(findings: Findings) -> str:
    """The metric in words."""
    return findings.metric.replace("_", " ").replace("logprob", "log-probability")


def doubt(findings: Findings) -> str:
    """Chance, the other ranking, correlations, hallucination and VHR, in a few sentences."""
    best, rival = findings.best(), findings.best(MASS)
    vision, text = (findings.correlation(DIVERGENCE, sort) for sort in ("vision", "text"))
    said = [
        _chance(best),
        f"Over heads, divergence and the cost on questions with an image rank alike by {short(vision.mean)} "
        f"{between(vision)} (Spearman), and with the cost on text questions by {short(text.mean)} {between(text)}.",
        f"The heads that attend to the image most do {'also' if findings.found(rival) else 'not'} pass the same test "
        f"(p = {_p(rival.against_random('vision').p)} and {_p(rival.selective.p)}).",
        _bare(findings),
        _withheld(findings),
        _reinforced(findings),
    ]
    if findings.ablation == "zero":
        said.append("Zeroed outputs are off-distribution, so effects can be larger than what the heads carry.")
    said.append(
        "Heads were chosen on one half of the questions and judged on the other; of several numbers of heads the most "
        "selective one is told here, and the table has all."
    )
    return " ".join(said)


def _chance(best: SetEffect) -> str:
    cost, selective = best.against_random("vision").p, best.selective.p
    if cost is None or selective is None:
        return "With fewer than 20 random sets there is no p-value."
    return (
        f"Of {len(best.sets.sets)} random sets with as many heads per layer few cost questions with an image as much "
        f"(p = {numeral(cost)}), or so much more than text questions (p = {numeral(selective)})."
        if max(cost, selective) <= 0.05  # noqa: PLR2004
        else f"Against {len(best.sets.sets)} random sets with as many heads per layer p = {numeral(cost)} for the "
        "cost on "
        f"questions with an image, and p = {numeral(selective)} for how much more it is than on text questions."
    )


def _bare(findings: Findings) -> str:
    own, bare = (float(np.nanmean(findings.scores[name].samples)) for name in (DIVERGENCE, BARE))
    share = bare / own if own else float("nan")
    return (
        f"An image of one even colour, with nothing to see in it, alone causes {100 * share:.0f} % of the divergence."
    )


def _withheld(findings: Findings) -> str:
    seen, blind = findings.right(WAYS[0]), findings.right(WAYS[2])
    return (
        f"With the image {100 * seen.mean:.0f} % of the answers are right, without it {100 * blind.mean:.0f} %, "
        "which the "
        "language prior guesses."
    )


def _reinforced(findings: Findings) -> str:
    own = findings.reinforced
    (prior, null), (right, _) = own.change("prior"), own.change("right")
    before = own.measure(own.before, "prior").mean()
    random = f"; random halves {short(100 * null.null_mean)}" if null.n else ""
    return (
        f"Amplifying the divergent half of each layer by {own.by:g} on hard questions changes the share of wrong "
        "answers "
        f"that are the prior's ({100 * before:.0f} %) by {short(100 * prior.mean)} points "
        f"{_points(prior.low, prior.high)}{random}, and that of right answers by {short(100 * right.mean)} points "
        f"{_points(right.low, right.high)}."
    )


def _points(low: float, high: float) -> str:
    return f"[{short(100 * low)}, {short(100 * high)}]"


def _mean(one: SetEffect, sort: str) -> str:
    interval = one.interval(sort)
    return f"{short(interval.mean)} {between(interval)}".strip()


def _p(value: float | None) -> str:
    return "none" if value is None else numeral(value)
