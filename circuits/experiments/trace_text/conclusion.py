"""The answer in words, made from the findings and nothing else, with its doubt."""

from __future__ import annotations

from circuits.experiments.trace_text.findings import Findings
from circuits.experiments.tracing.words import (
    choice_in_words,
    interventions_in_words,
    p_in_words,
    reference_in_words,
    saturation_in_words,
    told,
    undefined_in_words,
    verdict_sentence,
)
from circuits.experiments.wording import listed

QUESTION = "Which way of tracing says best what happens to the answer as tokens are blanked out?"


def answer(findings: Findings) -> str:
    """The foremost method for the first reference, whatever it is."""
    first = next(iter(findings.predictions))
    return verdict_sentence(findings.verdicts[first], findings.model, findings.main.how.measure)


def doubt(findings: Findings) -> str:
    """How it was chosen, the ceiling, the other references, saturation, and what the numbers do not say."""
    first, *others = findings.predictions
    verdict, said = findings.verdicts[first], []
    if verdict is not None:
        said.append(
            f"{verdict.best!r} is the best in {100 * verdict.first_in:.0f} % of resamples of the prompts; "
            f"{p_in_words(verdict.p, len(findings.main.random))}."
        )
    said += [choice_in_words(findings.main), interventions_in_words(findings.main)]
    for name in others:
        other = findings.verdicts[name]
        if other is not None:
            said.append(f"Of {reference_in_words(name)}, {other.best!r} is the best predictor: {told(other.interval)}.")
    beside = findings.beside.get(first)
    if beside is not None and verdict is not None and verdict.best in beside.values:
        words = "With special tokens left out" if findings.special else "With special tokens counted"
        top = beside.among(interventions=False)[0]
        said.append(f"{words} it reaches {told(beside.interval(verdict.best))}, and the best is {top!r}.")
    said += [saturation_in_words(findings.spreads.values), undefined_in_words(findings.main)]
    if findings.traced.refused:
        said.append(f"This model cannot do {listed(sorted(findings.traced.refused))}; the reasons are in the report.")
    said.append(
        "A reference is no ground truth: blanked-out prompts are unlike what the model has seen, and one token at a "
        "time shows nothing of tokens that stand in for each other."
    )
    return " ".join(one for one in said if one)
