"""The answer in words, one sentence per question, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.explanation.findings import LN2, Findings
from circuits.experiments.tracing.words import told
from circuits.experiments.wording import listed, short
from interp.numerals import numeral

QUESTION = "Is attention an explanation of the answer?"
FOUND = 1e-3  # of ln 2: a divergence below it is none
CLOSE = 0.5  # Kendall's tau from which on two explanations are said to agree; ours


def answer(findings: Findings) -> str:
    """One sentence per question."""
    said = [agreement(findings), signs(findings), hidden(findings), weights(findings), taken_away(findings)]
    return " ".join(one for one in said if one)


def agreement(findings: Findings) -> str:
    """Whether attention ranks tokens as explanations do, and whether those agree with each other."""
    comparison, best = findings.comparison, findings.best_row()
    found = findings.mean(comparison.of(best))
    word = "agrees" if found.low > CLOSE else "does not agree" if found.high < CLOSE else "may or may not agree"
    said = (
        f"In the model {findings.model!r} attention {word} with explanations made after the fact: its best row, "
        f"{best!r}, has Kendall's tau {told(found)} with them on average"
    )
    themselves, gap = comparison.themselves(), findings.gap()
    if themselves is None or gap is None:
        return f"{said}."
    more = "more" if gap.low > 0 else "less" if gap.high < 0 else "no more, as far as the prompts tell,"
    return f"{said}; the explanations agree {more} with each other, {told(findings.mean(themselves))}."


def signs(findings: Findings) -> str:
    """How many of the most attended tokens speak against the answer."""
    comparison, best = findings.comparison, findings.best_row()
    own = {second: values for (first, second), values in comparison.values["signs"].items() if first == best}
    if not own:
        return ""
    shown = [
        f"{told(findings.mean(values))} by {name!r} ({short(float(np.nanmean(comparison.against[name])))} of all)"
        for name, values in own.items()
    ]
    said = f"Of the {comparison.top} tokens that it attends to most, these shares speak against the answer:"
    return f"{said} {listed(shown)}."


def hidden(findings: Findings) -> str:
    """Whether attention shows the tokens that matter."""
    both = findings.matter_and_random()
    if both is None:
        return ""
    matter, random = both
    flagged = findings.mean(matter.flagged.astype(float))
    ratio = findings.mean(matter.index)
    return (
        f"The {findings.top} tokens that matter most ({findings.important}) get {told(findings.mean(matter.share))} of "
        f"the attention of the answer's row and change the answer by {told(findings.mean(matter.effect))} when hidden, "
        f"random ones {told(findings.mean(random.share))} and {told(findings.mean(random.effect))}; the deception "
        f"index is {told(ratio)}, and in {100 * flagged.mean:.0f} % of the prompts no head looks at tokens that decide."
    )


def weights(findings: Findings) -> str:
    """Whether other weights give the same answer."""
    other = findings.other
    if other is None:
        return ""
    permuted, far = findings.mean(other.permuted), findings.mean(other.adversarial / LN2)
    same = "keeps" if permuted.high < 0.05 else "changes"  # noqa: PLR2004 - a change of the answer, as in the battery
    found = (
        f"weights as different as {told(far)} of the largest possible divergence leave it as it is"
        if far.mean > FOUND
        else "no other weights that leave it as it is were found"
    )
    said = f"With the weights of all heads' rows permuted the answer {same} (total variation {told(permuted)})"
    return f"{said}, and {found}."


def taken_away(findings: Findings) -> str:
    """Whose order takes the answer away fastest."""
    if findings.curves is None:
        return ""
    rows = findings.curves.table(confidence=findings.confidence)
    areas = {str(row["weights"]): float(row["area"]) for row in rows.to_dict(orient="records")}
    groups = {"attention": findings.comparison.attention, "explanations": findings.comparison.explanations}
    parts = []
    for kind, members in groups.items():
        own = {name: areas[name] for name in members if name in areas}
        if own:
            best = min(own, key=lambda name, own=own: own[name])
            parts.append(f"of {kind} {best!r} (area {numeral(own[best], 2)})")
    random = numeral(float(rows["random"].iloc[0]), 2)
    return f"As tokens are hidden the answer goes fastest in the order {listed(parts)}; random orders have {random}."


def doubt(findings: Findings) -> str:
    """What the numbers do not say."""
    said = []
    chance = float(np.nanmean(findings.comparison.chance))
    overlap = findings.mean(findings.comparison.of(findings.best_row(), "overlap"))
    said.append(
        f"Of the foremost {findings.top} tokens {told(overlap)} are shared by its best row and an explanation, where "
        f"two unrelated orders share {short(chance)}."
    )
    related = findings.mass_and_effect()
    if related is not None:
        said.append(
            f"Over {related[1]} sets of tokens, attention and the effect of hiding them have Spearman's rho "
            f"{short(related[0])}."
        )
    if findings.refused:
        said.append(f"Not done in this model: {listed(sorted(findings.refused))}; the reasons are in the report.")
    said.append(
        "The best row was chosen by the agreement that is reported, out of "
        f"{len(findings.comparison.attention)}, which flatters it. No explanation is ground truth: they differ among "
        "themselves. Adversarial weights are searched for, so that what was found is the least there is; their answer "
        "may change by 0.05 in total variation. Hiding a token renormalises the rows that saw it."
    )
    return " ".join(said)
