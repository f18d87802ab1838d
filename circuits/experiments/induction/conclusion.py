"""The answer in words, made from the numbers and nothing else, with its doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuits.experiments.induction.findings import Findings, Group, heads_above
from circuits.experiments.induction.grouping import BY_EFFECT, INDUCTION_HEADS, PREVIOUS_HEADS, SHARING_HEADS
from circuits.experiments.wording import between, named, short
from interp.address import Head
from interp.numerals import numeral
from interp.stats.nulls import FEWEST_SETS

QUESTION = (
    "Which heads look one token back, which complete text that was said before, and what happens to the model's "
    "predictions without them?"
)
THROUGH = 0.25  # patterns carry an effect where at most this share of it is left with patterns held still
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
    rest = f"{_looking_back(findings)}; {_copying(findings)}."
    if induction:
        who = f"{_doing(induction, 'complete')} repeated text"
    elif beside:
        head, offset, share = beside[0]
        who = (
            f"no head has an induction score of {findings.threshold:g}, but {head} looks {offset} tokens after the "
            f"earlier copy with {short(share)} of its attention (induction shifted, not its absence)"
        )
    else:
        who = f"there is no induction head ({_highest(findings, 'induction')})"
    return f"In the model {findings.model!r}, {who}, {rest}"


def _looking_back(findings: Findings) -> str:
    previous = findings.called("previous_token")
    if previous:
        return f"and {_doing(previous, 'look')} one token back"
    sharing = findings.called("previous_token", findings.threshold / 2)
    if sharing:
        return f"and looking one token back is shared, no head giving {findings.threshold:g} to it ({_scored(sharing)})"
    return f"and no head looks one token back ({_highest(findings, 'previous_token')})"


def _copying(findings: Findings) -> str:
    first, second = (findings.interval(part) for part in (findings.losses.first, findings.losses.second))
    word = "is foreseen" if foresees(findings) else "is hardly foreseen"
    return (
        f"the second copy of random tokens {word} (loss {short(second.mean)} {between(second)} nats, "
        f"{short(first.mean)} on the first)"
    )


def _without(findings: Findings) -> list[str]:
    """What the loss does without the induction heads, or else without the heads that matter most."""
    group = findings.group(INDUCTION_HEADS) or findings.group(BY_EFFECT)
    if group is None:
        return []
    return [f"{_rise(findings, group)}.", *_through_patterns(findings)]


def _rise(findings: Findings, group: Group) -> str:
    several = len(group.heads) > 1
    output, its = ("outputs", "their") if several else ("output", "its")
    method = {"zero": "set to zero", "mean": f"replaced by {its} mean", "resample": "replaced by another prompt's"}
    chosen = " (the largest effects on other prompts)" if group.name == BY_EFFECT else ""
    text = (
        f"With the {output} of {named(group.heads)}{chosen} {method[findings.ablation]}, that loss rises by "
        f"{short(group.effect.mean)} {between(group.effect)} nats"
    )
    null = group.null
    if not null.n:
        return f"{text}; no other set has as many heads per layer, so there is nothing to compare it with"
    kind = "other" if group.matched.exhaustive else "random"
    sets = f"the {null.n} {kind} sets of as many heads per layer" if null.n > 1 else "the one other head set like it"
    shared = ", some sharing a head with it" if group.matched.overlap else ""
    against = f"{text}, against {short(null.null_mean)} on average over {sets}{shared}"
    if group.adjusted is None:
        return f"{against} (too few for a p-value)"
    verdict = "" if group.stands_out() else ", so it is not told apart from random heads"
    return f"{against} (p = {numeral(group.adjusted)}){verdict}"


def _through_patterns(findings: Findings) -> list[str]:
    """Heads that work through where later heads look: without them the loss rises, but not with patterns held still."""
    group = findings.group(PREVIOUS_HEADS) or findings.group(SHARING_HEADS)
    if group is None or group.held is None or group.effect.low <= 0 or group.held.mean > THROUGH * group.effect.mean:
        return []
    return [
        f"Without {named(group.heads)} it rises by {short(group.effect.mean)}, and by {short(group.held.mean)} with "
        "every attention pattern held still: the work is done through where later heads look."
    ]


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
    if any(group.stands_out() is None for group in findings.groups):
        return f"{text}; the model has too few other heads for a p-value on whether they matter more than those."
    return f"{text}, but no set beats random heads of its layers, so that no head is said to matter."


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
            f"{short(group.effect.mean)} nats, the costliest alone {short(alone)}."
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


def _doing(pairs: list[tuple[Head, float]], verb: str, most: int = 3) -> str:
    """``L1.H0 (0.93) completes`` or ``9 heads (L3.H6 0.73, ... and 6 more) look``."""
    if len(pairs) == 1:
        return f"{pairs[0][0]} ({short(pairs[0][1])}) {verb}s"
    if len(pairs) <= most:
        *before, last = [f"{head} ({short(score)})" for head, score in pairs]
        return f"{', '.join(before)} and {last} {verb}"
    return f"{len(pairs)} heads ({_scored(pairs)}) {verb}"


def _scored(pairs: list[tuple[Head, float]], most: int = 4) -> str:
    text = ", ".join(f"{head} {short(score)}" for head, score in pairs[:most])
    return text if len(pairs) <= most else f"{text} and {len(pairs) - most} more"


def _highest(findings: Findings, score: str) -> str:
    if score not in findings.scores:
        return f"the score {score} was not asked for"
    found = heads_above(findings.scores[score].values, -np.inf)
    if not found:
        return f"no {score} score is defined"
    return f"highest score {short(found[0][1])}, {found[0][0]}"
