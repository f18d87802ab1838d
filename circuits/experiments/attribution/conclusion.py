"""The answer in words, made from the numbers and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.attribution.findings import Findings
from circuits.experiments.attribution.sets import TopHeads
from circuits.experiments.copying.words import replaced
from circuits.experiments.wording import between, listed, named, short
from interp.numerals import numeral

QUESTION = "Which heads does the model copy with, and do the methods of attribution agree on them?"


def answer(findings: Findings) -> str:
    """Which heads are claimed, what their absence costs, and which methods miss them."""
    return " ".join([_claimed(findings), *_missed(findings)])


def doubt(findings: Findings) -> str:
    """What the claims were held against, how far ranks agree, and what the numbers do not say."""
    parts = [f"Null of the claims: {findings.claims.null}.", *findings.claims.notes, *_sets(findings)]
    parts += _agreement(findings)
    if findings.ablation == "zero":
        parts.append("Zeroed outputs are off-distribution, so effects can be larger than what a head carries.")
    return " ".join(parts)


def _claimed(findings: Findings) -> str:
    claims, heads = findings.claims, findings.claims.claimed
    tested = int(np.isfinite(claims.effects.values).sum())
    if not heads:
        return (
            f"In the model {findings.model!r} no head is claimed to matter for copying: none of {tested} exceeds both "
            "what reassigned answers and what matched random heads reach."
        )
    rows, effects = claims.table(confidence=findings.confidence).set_index("label").to_dict(), []
    for head in heads[:4]:
        value, low, high = (short(rows[column][str(head)]) for column in ("value", "low", "high"))
        effects.append(f"{head} by {value} [{low}, {high}]")
    more = f" ({len(heads) - 4} more in the table)" if len(heads) > 4 else ""  # noqa: PLR2004 - heads in a sentence
    one = len(heads) == 1
    return (
        f"In the model {findings.model!r}, {len(heads)} of {tested} heads {'is' if one else 'are'} claimed to matter "
        f"for copying: {replaced(findings.ablation, several=False)}, each changes the logit difference of "
        f"{short(findings.baseline)}, {listed(effects)}{more}."
    )


def _missed(findings: Findings) -> list[str]:
    """Methods that say the opposite of a claim, and methods whose foremost heads miss a claimed one."""
    n = len(findings.tables)
    said = [
        f"{listed(methods)} {'says' if len(methods) == 1 else 'say'} the opposite of {head}"
        for head, methods in findings.signs_apart().items()
    ]
    blind = _blind(findings)
    told = [*said, *([blind] if blind else [])]
    if told:
        return [f"Of {n} methods, {'; '.join(told)}."]
    return [f"All {n} methods name these heads first."] if findings.claims.claimed and n > 1 else []


def _blind(findings: Findings) -> str:
    """Methods whose foremost heads miss a claimed one."""
    claimed = set(findings.claims.claimed)
    missed = {method: claimed - set(findings.foremost(method, len(claimed))) for method in findings.tables if claimed}
    by_heads: dict[tuple[str, ...], list[str]] = {}
    for method, heads in missed.items():
        if heads:
            by_heads.setdefault(tuple(sorted(map(str, heads))), []).append(method)
    told = [
        f"{listed(methods)} {'does' if len(methods) == 1 else 'do'} not name {listed(heads)}"
        for heads, methods in by_heads.items()
    ]
    foremost = "the foremost head" if len(claimed) == 1 else f"the {len(claimed)} foremost heads"
    return f"asked for {foremost}, {'; '.join(told)}" if told else ""


def _agreement(findings: Findings) -> list[str]:
    matrix = findings.signed
    if matrix is None:
        return []
    pairs = matrix.values.kendall[np.triu_indices(len(matrix.names), 1)]
    finite = pairs[np.isfinite(pairs)]
    if not finite.size:
        return []
    return [
        f"Between the {len(matrix.names)} methods that say whether a head helps, Kendall's rank correlation goes "
        f"from {short(float(finite.min()))} to {short(float(finite.max()))}; its median over pairs is "
        f"{short(float(np.median(finite)))}."
    ]


def _sets(findings: Findings) -> list[str]:
    if not findings.tops:
        return []
    judged = [top for top in findings.tops if top.adjusted is not None]
    if not judged:
        return ["There are too few other heads, or too few draws, for a p-value of the top heads against random ones."]
    beyond = [top for top in judged if top.stands_out()]
    if not beyond:
        return [f"No set of top heads does more than matched random sets{_strongest(judged)}."]
    return [f"{_told(beyond[0])}{' (the first of ' + str(len(beyond)) + ' such sets)' if len(beyond) > 1 else ''}."]


def _strongest(tops: list[TopHeads]) -> str:
    top = max(tops, key=lambda one: abs(one.effect.mean))
    p = "" if top.adjusted is None else f", p = {numeral(top.adjusted)}"
    return f" (largest: {named(top.heads)}, {short(top.effect.mean)} {between(top.effect)}{p})"


def _told(top: TopHeads) -> str:
    assert top.adjusted is not None
    shared = ", some of which share heads with it" if top.matched.overlap else ""
    return (
        f"Chosen on other prompts, {named(top.heads)} together change it by {short(top.effect.mean)} "
        f"{between(top.effect)}, more than {top.null.n} sets of as many heads per layer{shared} "
        f"({short(top.null.null_mean)} on average, p = {numeral(top.adjusted)})"
    )
