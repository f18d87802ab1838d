"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.vision.findings import Findings
from circuits.experiments.vision.measuring import BARE, CONTENT, DIVERGENCE, MASS
from circuits.experiments.vision.sets import SetEffect
from circuits.experiments.vision.withheld import WAYS
from circuits.experiments.wording import between, listed, named, short
from interp.numerals import numeral

QUESTION = "Does vision-aware head divergence find the heads that answers about pictures rest on, and they alone?"


def answer(findings: Findings) -> str:
    """Whether the divergent heads cost answers about pictures and not text ones, more than random heads do."""
    main = findings.main()
    cost = (
        f"taking out {chosen(main)} changes the {words_of(findings)} by {_mean(main, 'vision')} on questions with an "
        f"image and by {_mean(main, 'text')} on text questions; random heads of the same layers by "
        f"{short(main.against_random('vision').null_mean)} and {short(main.against_random('text').null_mean)}"
    )
    if findings.found(main):
        return f"Yes, in the model {findings.model!r}: {cost}."
    if not len(main.sets.sets):
        return f"In the model {findings.model!r}, {cost}; there were no random heads to compare with."
    return f"Not beyond random heads at the 5 % level in the model {findings.model!r}: {cost}."


def chosen(one: SetEffect) -> str:
    """A set of heads in words."""
    if one.each_layer:
        return f"the half of each layer's heads with the largest {one.ranking} ({named(one.heads)})"
    return f"the {len(one.heads)} heads with the largest {one.ranking} ({named(one.heads)})"


def words_of(findings: Findings) -> str:
    """The metric in words."""
    return findings.metric.replace("_", " ").replace("logprob", "log-probability")


def doubt(findings: Findings) -> str:
    """Chance, the other rankings, hallucination and VHR, in a few sentences."""
    said = [_chance(findings), _correlations(findings), _rivals(findings), _bare(findings)]
    said += [_withheld(findings), _reinforced(findings)]
    if findings.ablation == "zero":
        said.append("Zeroed outputs are off-distribution, so effects can be larger than what the heads carry.")
    said.append(
        "Heads were chosen on one half of the questions and judged on the other; half of each layer is the paper's "
        "rule, and other numbers of heads stand in the table."
    )
    return " ".join(said)


def _chance(findings: Findings) -> str:
    main = findings.main()
    cost, selective = main.against_random("vision").p, main.selective.p
    if cost is None or selective is None:
        return "With fewer than 20 random sets there is no p-value."
    return (
        f"Against {len(main.sets.sets)} random sets with as many heads per layer p = {numeral(selective)} for how much "
        f"more questions with an image lose than text questions, and p = {numeral(cost)} for what they lose alone."
    )


def _correlations(findings: Findings) -> str:
    vision, text = (findings.correlation(DIVERGENCE, sort) for sort in ("vision", "text"))
    return (
        f"Over single heads, divergence ranks like the cost on questions with an image by {short(vision.mean)} "
        f"{between(vision)} (Spearman), and like the cost on text questions by {short(text.mean)} {between(text)}."
    )


def _rivals(findings: Findings) -> str:
    parts = []
    for ranking in (CONTENT, MASS):
        rival = findings.main(ranking)
        p = rival.selective.p
        passes = "passes" if findings.found(rival) else "does not pass"
        parts.append(f"by {ranking} {passes} the same test" + ("" if p is None else f" (p = {numeral(p)})"))
    return f"The half of each layer chosen {listed(parts)}."


def _bare(findings: Findings) -> str:
    own, bare = (float(np.nanmean(findings.scores[name].samples)) for name in (DIVERGENCE, BARE))
    share = bare / own if own else float("nan")
    return f"An image of one even colour, with nothing to see in it, causes {100 * share:.0f} % of the divergence."


def _withheld(findings: Findings) -> str:
    seen, blind = findings.right(WAYS[0]), findings.right(WAYS[2])
    return (
        f"With the image {100 * seen.mean:.0f} % of the answers are right, without it {100 * blind.mean:.0f} %, which "
        "the language prior guesses."
    )


def _reinforced(findings: Findings) -> str:
    own = findings.reinforced
    (prior, null), (right, _) = own.change("prior"), own.change("right")
    before = own.measure(own.before, "prior").mean()
    random = f"; random halves {short(100 * null.null_mean)}" if null.n else ""
    return (
        f"Amplifying the divergent half of each layer by {own.by:g} on hard questions changes the share of wrong "
        f"answers that are the prior's ({100 * before:.0f} %) by {short(100 * prior.mean)} points "
        f"{_points(prior.low, prior.high)}{random}, and that of right answers by {short(100 * right.mean)} points "
        f"{_points(right.low, right.high)}."
    )


def _points(low: float, high: float) -> str:
    return f"[{short(100 * low)}, {short(100 * high)}]"


def _mean(one: SetEffect, sort: str) -> str:
    interval = one.interval(sort)
    return f"{short(interval.mean)} {between(interval)}".strip()
