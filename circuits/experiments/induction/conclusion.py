"""The answer in words, made from the numbers and nothing else, with its doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuits.experiments.induction.findings import Findings, Group, heads_above, named
from circuits.experiments.induction.grouping import BY_EFFECT, INDUCTION_HEADS
from interp.address import Head
from interp.numerals import numeral, span
from interp.stats.nulls import FEWEST_SETS

QUESTION = (
    "Which heads look one token back, which complete text that was said before, and what happens to the model's "
    "predictions without them?"
)
HELPED = 0.8  # the second copy counts as foreseen where its loss is below this share of the first's


@dataclass(frozen=True)
class Conclusion:
    """The answer in a sentence or two, and what stands behind and against it."""

    answer: str
    doubt: str


def conclude(findings: Findings) -> Conclusion:
    """What the numbers say: never a head that the scores do not show, never a claim that a null does not carry."""
    return Conclusion(
        answer=" ".join([_who(findings), *_without(findings)]),
        doubt=" ".join([_claims(findings), *_redundancy(findings), *_method(findings)]),
    )


def foresees(findings: Findings) -> bool:
    """Whether the second copy is clearly easier than the first."""
    gain = findings.interval(findings.losses.learning)
    return (
        gain.mean < 0
        and not gain.high >= 0
        and bool(findings.losses.second.mean() < HELPED * findings.losses.first.mean())
    )


def _who(findings: Findings) -> str:
    induction, beside = findings.called("induction"), findings.beside()
    copying = _copying(findings)
    if induction:
        heads = f"{_do(induction, 'complete')} repeated text in {findings.model} ({_scored(induction)})"
        return f"{heads}, {_looking_back(findings)}; {copying}."
    if beside:
        head, offset, share = beside[0]
        return (
            f"No head of {findings.model} has an induction score of {findings.threshold:g}, but {head} looks {offset} "
            f"tokens after the earlier copy with {numeral(share, 2)} of its attention (induction shifted, not its "
            f"absence), {_looking_back(findings)}; {copying}."
        )
    highest = _highest(findings, "induction")
    return f"{findings.model} has no induction head ({highest}), {_looking_back(findings)}; {copying}."


def _looking_back(findings: Findings) -> str:
    previous = findings.called("previous_token")
    if previous:
        return f"and {_do(previous, 'look')} one token back ({_scored(previous)})"
    sharing = findings.called("previous_token", findings.threshold / 2)
    if sharing:
        return f"and looking one token back is shared, no head giving {findings.threshold:g} to it ({_scored(sharing)})"
    return f"and no head looks one token back ({_highest(findings, 'previous_token')})"


def _copying(findings: Findings) -> str:
    first, second = (findings.interval(part) for part in (findings.losses.first, findings.losses.second))
    word = "is foreseen" if foresees(findings) else "is hardly foreseen"
    return (
        f"the second copy of random tokens {word} (loss {numeral(second.mean, 2)} "
        f"{span(second.low, second.high, 2)} nats, {numeral(first.mean, 2)} on the first)"
    )


def _without(findings: Findings) -> list[str]:
    group = findings.group(BY_EFFECT)
    if group is None:
        return []
    rise, null = group.effect, group.null
    verb = {"zero": "set to zero", "mean": "replaced by their mean", "resample": "replaced by another prompt's"}
    text = (
        f"With {named(group.heads)} {verb[findings.ablation]}, that loss rises by {numeral(rise.mean, 2)} "
        f"{span(rise.low, rise.high, 2)} nats"
    )
    if not null.n:
        return [f"{text}; no other set has as many heads per layer, so there is nothing to compare it with."]
    against = f"{text}, against {numeral(null.null_mean, 2)} {span(null.low, null.high, 2)} for {_sets(group)}"
    if null.p is None:
        return [f"{against} (too few sets for a p-value)."]
    verdict = "" if group.stands_out() else ", so it is not told apart from random heads"
    return [f"{against} (p = {numeral(group.adjusted)}){verdict}."]


def _sets(group: Group) -> str:
    count = group.null.n
    kind = "other sets" if group.matched.exhaustive else "random sets"
    return f"{count} {kind} of as many heads per layer"


def _claims(findings: Findings) -> str:
    """Which heads may be said to matter: beyond reassigned answers, and in a set beyond matched random sets."""
    if findings.single.adjusted is None:
        return f"No head is said to matter: fewer than {FEWEST_SETS} draws show intervals and no p-values."
    alone = findings.single.beyond_chance()
    text = (
        f"{len(alone)} of {int(np.isfinite(findings.single.adjusted).sum())} heads change the right token's lead more "
        "than any head does when answers are reassigned over prompts (Benjamini-Hochberg, 5 %)"
    )
    outstanding = {head for group in findings.groups if group.stands_out() for head in group.heads}
    both = [head for head in alone if head in outstanding]
    if both:
        return (
            f"{text}; of these, {named(both)} also belong to a set that beats random heads of the same layers, so they "
            "matter by both tests."
        )
    undecided = any(group.stands_out() is None for group in findings.groups)
    why = (
        "the model has too few other heads to compare with" if undecided else "no set beats random heads of its layers"
    )
    return f"{text}, but {why}, so that no head is said to matter more than its neighbours."


def _redundancy(findings: Findings) -> list[str]:
    """A word on heads that stand in for each other, where the numbers show it."""
    group = findings.group(INDUCTION_HEADS)
    if group is None or len(group.heads) < 2:  # noqa: PLR2004 - one head has nobody to stand in for it
        return []
    values = findings.single.effect.values
    alone = max(float(values[head.layer, head.index]) for head in group.heads)
    if group.effect.low > 0 and alone < 0.5 * group.effect.mean:
        return [
            f"The {len(group.heads)} induction heads stand in for each other: together they cost "
            f"{numeral(group.effect.mean, 2)} nats, the costliest alone {numeral(alone, 2)}."
        ]
    return []


def _method(findings: Findings) -> list[str]:
    lines = [
        f"Scores are means over {len(findings.losses.first)} prompts of random tokens; the line at "
        f"{findings.threshold:g} is a convention."
    ]
    if findings.ablation == "zero":
        lines.append("Zeroed outputs are off-distribution, so effects can be larger than what a head carries.")
    return lines


def _do(pairs: list[tuple[Head, float]], verb: str) -> str:
    return f"1 head {verb}s" if len(pairs) == 1 else f"{len(pairs)} heads {verb}"


def _scored(pairs: list[tuple[Head, float]], most: int = 4) -> str:
    text = ", ".join(f"{head} {numeral(score, 2)}" for head, score in pairs[:most])
    return text if len(pairs) <= most else f"{text} and {len(pairs) - most} more"


def _highest(findings: Findings, score: str) -> str:
    if score not in findings.scores:
        return f"the score {score} was not asked for"
    found = heads_above(findings.scores[score].values, -np.inf)
    if not found:
        return f"no {score} score is defined"
    return f"highest score {numeral(found[0][1], 2)}, {found[0][0]}"
