"""How the experiments on tracing say what they found."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from circuits.experiments.tracing.config import intervenes
from circuits.experiments.tracing.predicting import Prediction, Verdict
from circuits.experiments.wording import between, listed, short
from interp.numerals import numeral
from interp.stats import Interval

MEASURES = {"spearman": "Spearman's rho", "kendall": "Kendall's tau", "pearson": "Pearson's r"}
REFERENCES = {
    "blank-out": "what blanking out a token changes",
    "occlusion": "what hiding a token changes",
    "leave-one-out": "what leaving a token out changes",
    "gradient": "the input gradient",
}
SATURATED = 0.05  # relative spread over targets below which a trace hardly knows its target; ours


def reference_in_words(name: str) -> str:
    """A reference as a sentence names it.

    Example:
        >>> reference_in_words("occlusion"), reference_in_words("rollout")
        ('what hiding a token changes', "'rollout'")
    """
    return REFERENCES.get(name, repr(name))


def told(interval: Interval) -> str:
    """A mean and its interval with two decimals."""
    ends = between(interval)
    return f"{short(interval.mean)} {ends}" if ends else short(interval.mean)


def verdict_sentence(verdict: Verdict | None, model: str, measure: str) -> str:
    """Which method best predicts a reference, with its lead over the runner-up and over random rankings."""
    place = f"in the model {model!r}"
    if verdict is None:
        return f"No method has a correlation to speak of {place}."
    predicted = reference_in_words(verdict.reference)
    name = MEASURES[measure]
    if not verdict.over_random.low > 0:
        said = f"No method predicts {predicted} beyond random rankings {place}: the foremost, {verdict.best!r}, reaches"
        return f"{said} {name} {told(verdict.interval)}."
    where = f"{place[0].upper()}{place[1:]}"
    if verdict.ahead is not None and verdict.second is not None and not verdict.decided:
        return (
            f"{where}, {verdict.best!r} and {verdict.runner_up!r} best predict {predicted}, and the prompts do not "
            f"tell them apart: {name} {told(verdict.interval)} and {told(verdict.second)}, difference "
            f"{told(verdict.ahead)}; the first is {told(verdict.over_random)} above random rankings."
        )
    said = f"{where}, {verdict.best!r} best predicts {predicted}: {name} {told(verdict.interval)}"
    if verdict.ahead is None or verdict.second is None:
        return f"{said}, {told(verdict.over_random)} above random rankings."
    gap = f"{told(verdict.ahead)} above the runner-up {verdict.runner_up!r} ({short(verdict.second.mean)})"
    return f"{said}, {gap} and {told(verdict.over_random)} above random rankings."


def choice_in_words(prediction: Prediction) -> str:
    """How the foremost method was chosen, and among what."""
    count = len(prediction.among(interventions=False))
    return (
        "Methods that take tokens or patches away themselves are shown and take no part in 'best'. The two "
        f"foremost of {count} methods were chosen on every other prompt and judged on the rest."
    )


def interventions_in_words(prediction: Prediction) -> str:
    """How well the methods that change the prompt agree with the reference, as a ceiling."""
    names = [name for name in prediction.order if intervenes(name)]
    if not names:
        return ""
    said = listed([f"{name} {told(prediction.interval(name))}" for name in names])
    return f"Other ways of taking tokens away agree with it by {said}."


def saturation_in_words(spreads: Mapping[str, np.ndarray]) -> str:
    """Which traces no longer depend on their target at the top."""
    flat = [name for name, values in spreads.items() if len(values) and values[-1] < SATURATED]
    if not flat:
        return ""
    named = listed([repr(name) for name in flat])
    return (
        f"At the top layer {named} hardly depend{'s' * (len(flat) == 1)} on the target any more (relative spread over "
        f"targets below {SATURATED:g})."
    )


def undefined_in_words(prediction: Prediction) -> str:
    """Which correlations were not defined, and what was done."""
    found = {name: count for name, count in prediction.undefined.items() if count}
    if not found:
        return ""
    rule = "count as 0" if prediction.how.undefined == "zero" else "are left out"
    return (
        f"Correlations with traces that do not vary {rule}: {listed([f'{n} of {name}' for name, n in found.items()])}."
    )


def p_in_words(p: float, draws: int) -> str:
    """A p-value against random rankings."""
    return f"p = {numeral(p, 3)} against {draws} random rankings"
