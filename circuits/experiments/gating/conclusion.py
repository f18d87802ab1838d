"""The answer in words, made from the numbers and nothing else, with its doubt."""

from __future__ import annotations

from circuits.experiments.gating.findings import Findings
from circuits.experiments.wording import listed, short
from interp.attribution.gating.gates import ROLES
from interp.numerals import span

QUESTION = "Which heads does copying need, which stand in its way, and does exact ablation say the same?"
HELPED = 0.8  # the second copy counts as foreseen where its loss is below this share of the first's
VERBS = {"facilitation": "facilitate", "interference": "interfere with", "irrelevance": "do not matter for"}


def answer(findings: Findings) -> str:
    """The roles that the gates give, and what exact ablation says of the heads that stand out."""
    return " ".join([*_hardly(findings), _roles(findings), _signs(findings)])


def doubt(findings: Findings) -> str:
    """How far ranks agree, and what the numbers do not say."""
    ranks = findings.ranks
    interval = "" if ranks.kendall_interval is None else f" {span(*ranks.kendall_interval)}"
    parts = [
        f"Over all {ranks.n} heads the rank correlation of largest facilitation and exact effect is "
        f"{short(ranks.kendall)}{interval} (Kendall, interval over prompts); heads that do next to nothing are in an "
        "arbitrary order.",
        f"{len(findings.gates.seeds)} seeds on the same prompts; a role is what more than half of them give. Where the "
        "loss saturates, a needed head can end below the threshold, and twins can stand in for each other: the largest "
        "score over seeds is compared with ablation.",
    ]
    return " ".join(parts)


def _hardly(findings: Findings) -> list[str]:
    """A warning where the model does not copy in the first place."""
    first, second = findings.losses
    if second < HELPED * first:
        return []
    return [
        f"The second copy is hardly foreseen (loss {short(second)} nats, {short(first)} on the first), so that there "
        "is little to attribute."
    ]


def _roles(findings: Findings) -> str:
    roles = findings.gates.taxonomy(findings.threshold)
    found = []
    for role in ROLES:
        heads = roles.loc[roles["role"] == role, "label"].tolist()
        if heads and role != "irrelevance":
            verb = VERBS[role]
            if len(heads) == 1:
                verb = "interferes with" if role == "interference" else "facilitates"
            found.append(f"{listed(heads[:6])}{f' and {len(heads) - 6} more' * (len(heads) > 6)} {verb} copying")  # noqa: PLR2004
        elif heads:
            found.append(f"{len(heads)} of {len(roles)} heads are irrelevant")
    unassigned = roles.loc[roles["role"] == "unassigned", "label"].tolist()
    if unassigned:
        found.append(f"{listed(unassigned[:4])} {'is' if len(unassigned) == 1 else 'are'} left without a role")
    return f"In the model {findings.model!r}, by causal head gating, {listed(found)}."


def _signs(findings: Findings) -> str:
    outside = findings.outside
    if not outside:
        return "No head's exact effect lies outside the band of the other heads of its layer."
    named = listed([f"{one.head} ({short(one.effect)})" for one in outside[:4]])
    wrong = [str(one.head) for one in outside if not one.same_sign]
    told = (
        "the sign of the gates is that of ablation for all of them"
        if not wrong and len(outside) > 1
        else "the sign of the gates is that of ablation"
        if not wrong
        else f"the sign of the gates differs for {listed(wrong)}"
    )
    one = len(outside) == 1
    return (
        f"Set to zero, {named} {'changes' if one else 'change'} the loss (nats) by more than other heads of "
        f"{'its layer' if one else 'their layers'}; {told}.{_below(findings)}"
    )


def _below(findings: Findings) -> str:
    """A word on heads that ablation shows and whose gates end below the threshold."""
    roles = findings.gates.taxonomy(findings.threshold).set_index("label")["role"]
    below = [str(one.head) for one in findings.outside if roles[str(one.head)] in ("irrelevance", "unassigned")]
    if not below:
        return ""
    return f" By the threshold of {findings.threshold:g} {listed(below)} would have been missed."
