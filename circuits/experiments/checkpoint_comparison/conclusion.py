"""The answer in words, made from the numbers and nothing else, with its doubt."""

from __future__ import annotations

from circuits.experiments.checkpoint_comparison.training import Training
from circuits.experiments.wording import listed, named, short
from interp.numerals import numeral

QUESTION = "Which heads did training make, which did it lose, and does the model use them?"


def answer(model: str, training: Training) -> str:
    """Which heads came and went between the two checkpoints, when, and what their outputs do."""
    first, second = training.pair
    changes = training.changes
    gained, lost = changes.gained, changes.lost
    what = f"{named(gained)} became active" if gained else "no head became active"
    gone = f" and {named(lost)} fell silent" if lost else " and none fell silent"
    parts = [
        f"Between steps {first} and {second} of the training of {model!r}, {what}{gone}; the logit difference "
        f"went from {short(_metric(training, first))} to {short(_metric(training, second))}."
    ]
    parts += _born(training)
    parts += _doses(training)
    return " ".join(parts)


def doubt(training: Training) -> str:
    """What counts as active, and what the numbers do not say."""
    timeline = training.timeline
    confidence = 100 * timeline.metadata["confidence"]
    return (
        f"A head is active where its value is at least {numeral(timeline.metadata['threshold'])} in {confidence:g} % "
        f"of the resampled prompts. Turnover {timeline.turnover}, p = {numeral(timeline.order_p())} against "
        "checkpoints in permuted order. Heads are found on one half of the prompts and tested on the other. They keep "
        "their places only within one training."
    )


def _metric(training: Training, step: int) -> float:
    return float(training.metric[training.steps.index(step)])


def _born(training: Training) -> list[str]:
    """When the gained heads are first active."""
    timeline, by_step = training.timeline, dict[int, list[str]]()
    for head in training.changes.gained:
        step = timeline.first[timeline.heads.index(head)]
        if step is not None:
            by_step.setdefault(step, []).append(str(head))
    told = [
        f"{listed(heads[:4])}{f' and {len(heads) - 4} more' * (len(heads) > 4)} from step {step}"  # noqa: PLR2004
        for step, heads in sorted(by_step.items())
    ]
    return [f"They are active: {'; '.join(told)}."] if told else []


def _doses(training: Training) -> list[str]:
    said = []
    for name, doses in training.changes.doses.items():
        factor = min(doses.factors, key=abs)
        null = doses.against_random(factor)
        random = f"{short(null.null_mean)} for random heads of the same layers" if null.n else "no set to compare with"
        p = f", p = {numeral(null.p)}" if null.p is not None else ""
        step = training.pair[1] if name == "gained" else training.pair[0]
        said.append(
            f"With the outputs of the {name} heads times {factor:g} at step {step}, the logit difference changes by "
            f"{short(null.observed)} ({random}{p})."
        )
    return said
