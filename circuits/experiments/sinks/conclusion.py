"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

import numpy as np

from circuits.experiments.sinks.findings import Findings
from circuits.experiments.wording import between, named, short
from interp.stats import compare_with_null

QUESTION = "Which heads rest on the first token, since which layer, and what is it for?"


def answer(findings: Findings) -> str:
    """How many sink heads there are, where they begin, and what the loss says of them."""
    heads, n = findings.sink_heads, findings.n_heads
    inside = f"In the model {findings.model!r}"
    if not heads:
        largest = short(float(np.nanmax(findings.alpha)))
        return (
            f"{inside} no head rests on the first token: the largest sink score is {largest}, "
            f"and uniform attention would give {short(findings.uniform)}."
        )
    counted = "heads rests" if len(heads) == 1 else "heads rest"
    said = (
        f"{inside} {len(heads)} of {n} {counted} on the first token (score above {findings.eps:g}), from layer "
        f"{findings.born} on: {named(heads, 6)}."
    )
    together = findings.together()
    if together is None:
        return said
    return (
        f"{said} Forbidden to look at it, {'it changes' if len(heads) == 1 else 'together they change'} the loss by "
        f"{short(together.mean)} {between(together)} nats."
    )


def doubt(findings: Findings) -> str:
    """What the sink score needs to be held against."""
    shortest, longest = findings.tokens
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    said = [
        f"The score falls with length; these prompts have {length} tokens, where uniform attention gives "
        f"{short(findings.uniform)}.",
        "Much attention is not much influence: the value-weighted share says how much of what a head writes comes from "
        "the first token.",
    ]
    masking = findings.masking
    if masking is not None and masking.heads:
        elsewhere = findings.elsewhere()
        said.append(
            f"Forbidden another place instead, the same heads change the loss by {short(float(elsewhere.min()))} to "
            f"{short(float(elsewhere.max()))}."
        )
        if len(masking.random):
            against = compare_with_null(float(masking.together.mean()), masking.random)
            said.append(f"Against random heads of the same layers: {against}")
    return " ".join([*said, *findings.notes])
