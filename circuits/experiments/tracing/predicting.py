"""Which way of tracing best predicts a reference: correlations by prompt, paired differences, random rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuits.experiments.tracing.config import intervenes
from circuits.experiments.tracing.rows import Rows, Traced
from interp.errors import BadInput
from interp.stats import Interval, mean_interval, p_value
from interp.tracing import METHODS
from interp.tracing.protocols.trace_agreement import correlations

FEWEST = 3  # sources; of fewer a rank correlation is 1 or -1
RESAMPLES = 2000


@dataclass(frozen=True)
class How:
    """How two traces of a prompt are compared.

    Attributes:
        measure: ``"spearman"``, ``"kendall"`` or ``"pearson"``.
        undefined: ``"zero"`` (the paper's rule) or ``"drop"``.
        absolute: whether sizes are compared, without signs.
        random_orders: random rankings.
        confidence: of every interval.
        seed: of what is drawn.
    """

    measure: str = "spearman"
    undefined: str = "zero"
    absolute: bool = True
    random_orders: int = 200
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Prediction:
    """How well each method predicts a reference.

    Attributes:
        reference: the method that is predicted.
        values: method -> ``[prompt]`` its correlation with the reference; NaN where it is left out.
        layers: method -> ``[layer, prompt]`` the same of the trace at the top of each layer.
        undefined: method -> prompts in which one of the two did not vary.
        random: ``[draw, prompt]`` the correlation of random rankings.
        cluster: which prompts belong together, one label each; None where each stands for itself.
        how: how they were compared.
    """

    reference: str
    values: Mapping[str, Float[np.ndarray, " prompt"]]
    layers: Mapping[str, Float[np.ndarray, "layer prompt"]]
    undefined: Mapping[str, int]
    random: Float[np.ndarray, "draw prompt"]
    how: How
    cluster: tuple[str, ...] | None = None

    def interval(self, method: str) -> Interval:
        """The mean correlation of a method."""
        return self._mean(self.values[method])

    def difference(self, first: str, second: str) -> Interval:
        """How much better the first predicts than the second, prompt by prompt."""
        return self._mean(self.values[first] - self.values[second])

    def over_random(self, method: str) -> Interval:
        """How much better a method predicts than random rankings, prompt by prompt."""
        return self._mean(self.values[method] - self.random.mean(0))

    def p(self, method: str) -> float:
        """The share of random rankings whose mean correlation is as large, the method itself counted."""
        drawn = self.random[:, np.isfinite(self.values[method])].mean(1)
        return p_value(float(np.nanmean(self.values[method])), drawn, tail="greater")

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The methods, the best on average first."""
        return tuple(sorted(self.values, key=lambda name: -_mean_of(self.values[name])))

    def among(self, *, interventions: bool) -> tuple[str, ...]:
        """The methods, the best first: with those that change the prompt, as the reference does, or without."""
        return tuple(name for name in self.order if interventions or not intervenes(name))

    @cached_property
    def first_in(self) -> dict[str, float]:
        """Method without interventions -> the share of resamples of prompts in which it is the best of them."""
        names = self.among(interventions=False)
        if not names:
            return {}
        values = np.stack([self.values[name] for name in names])
        labels = np.unique(self.cluster, return_inverse=True)[1] if self.cluster else np.arange(values.shape[1])
        count = int(labels.max()) + 1
        draw = np.random.default_rng([self.how.seed, 1])
        weights = draw.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, labels].astype(float)
        known = np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ np.where(known, values, 0).T) / (weights @ known.T.astype(float))
        best = np.nan_to_num(means, nan=-np.inf).argmax(1)
        return {name: float((best == place).mean()) for place, name in enumerate(names)}

    def table(self) -> pd.DataFrame:
        """One row per method, the best first."""
        rows = []
        for name in self.order:
            found, gain = self.interval(name), self.over_random(name)
            rows.append(
                {
                    "method": name,
                    "needs": METHODS[name].needs,
                    "correlation": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "sd": float(np.nanstd(self.values[name])) if np.isfinite(self.values[name]).any() else np.nan,
                    "over random": gain.mean,
                    "over random low": gain.low,
                    "over random high": gain.high,
                    "p": self.p(name),
                    "first in": self.first_in.get(name, np.nan),
                    "undefined": self.undefined[name],
                    "prompts": found.n,
                }
            )
        return pd.DataFrame(rows)

    def _mean(self, values: np.ndarray) -> Interval:
        return mean_interval(values, confidence=self.how.confidence, cluster=self.cluster, seed=self.how.seed)


def predicted(
    reference: Rows,
    others: Mapping[str, Rows],
    counted: Bool[np.ndarray, "prompt source"],
    how: How,
    cluster: Sequence[str] | None = None,
) -> Prediction:
    """How well each of ``others`` predicts ``reference``.

    Args:
        reference: what is predicted.
        others: method -> its traces; the reference itself is left out.
        counted: True at the sources that are compared; sources without a number in either do not count.
        how: the comparison.
        cluster: which prompts belong together, one label each.
    """
    values, layers, undefined = {}, {}, {}
    for name, rows in others.items():
        if name == reference.method:
            continue
        own, missing = _correlations(rows.values, reference.values, counted, how)
        values[name], undefined[name] = own, missing
        if rows.layers is not None:
            layers[name] = np.stack([_correlations(one, reference.values, counted, how)[0] for one in rows.layers])
    random = random_correlations(reference.values, counted, how)
    return Prediction(
        reference.method, values, layers, undefined, random, how, None if cluster is None else tuple(cluster)
    )


def predictions_of(
    references: Mapping[str, Rows],
    rows: Mapping[str, Rows],
    counted: Bool[np.ndarray, "prompt source"],
    how: How,
    *,
    signed: bool = False,
    cluster: Sequence[str] | None = None,
) -> dict[str, Prediction]:
    """Reference -> how well each method predicts it; ``signed``: of signed ones by signed ones, with their signs."""
    chosen = {name: own for name, own in rows.items() if own.signed or not signed}
    rule = replace(how, absolute=False, random_orders=1) if signed else how
    return {
        name: predicted(reference, chosen, counted, rule, cluster)
        for name, reference in references.items()
        if reference.signed or not signed
    }


def references_of(traced: Traced, names: Sequence[str], model: str) -> dict[str, Rows]:
    """The references that the model can do, in the order asked for.

    Raises:
        BadInput: none of them.
    """
    found = {name: traced.rows[name] for name in names if name in traced.rows}
    if not found:
        reasons = "; ".join(f"{name}: {traced.refused.get(name, 'not asked for')}" for name in names)
        raise BadInput(f"{model!r} can do none of the references. {reasons}")
    return found


def random_correlations(
    reference: Float[np.ndarray, "prompt source"], counted: Bool[np.ndarray, "prompt source"], how: How
) -> Float[np.ndarray, "draw prompt"]:
    """``[draw, prompt]`` the correlation of random rankings of the counted sources with the reference.

    The orders of prompt i are a function of (seed, i).
    """
    made = np.zeros((how.random_orders, len(reference)))
    for prompt, row in enumerate(reference):
        here = counted[prompt] & np.isfinite(row)
        if here.sum() < FEWEST:
            made[:, prompt] = np.nan
            continue
        own = np.abs(row[here]) if how.absolute else row[here]
        draw = np.random.default_rng([how.seed, prompt])
        orders = draw.permuted(np.tile(np.arange(len(own), dtype=float), (how.random_orders, 1)), axis=1)
        beside = np.broadcast_to(own, orders.shape)
        found = correlations(orders, beside, np.ones(orders.shape, dtype=bool), how=how.measure, absolute=False)
        made[:, prompt] = np.nan_to_num(found) if how.undefined == "zero" else found
    return made


def _correlations(first: np.ndarray, second: np.ndarray, counted: np.ndarray, how: How) -> tuple[np.ndarray, int]:
    """``[prompt]`` correlations, and how many of them are not defined."""
    here = counted & np.isfinite(first) & np.isfinite(second)
    found = correlations(first, second, here, how=how.measure, absolute=how.absolute)
    enough = here.sum(-1) >= FEWEST
    missing = int((enough & ~np.isfinite(found)).sum())
    if how.undefined == "zero":
        found = np.nan_to_num(found)
    return np.where(enough, found, np.nan), missing


def _mean_of(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else -np.inf


@dataclass(frozen=True)
class Verdict:
    """Which method without interventions predicts a reference best: chosen on some prompts, judged on others.

    Attributes:
        reference: what is predicted.
        best, runner_up: methods; the second is None where there is one alone.
        interval: the best's mean correlation on the judging prompts.
        second: the runner-up's.
        ahead: the best minus the runner-up there, prompt by prompt.
        over_random: the best minus random rankings there.
        p: share of random rankings that predict as well.
        first_in: share of resamples of all prompts in which it is the best.
    """

    reference: str
    best: str
    runner_up: str | None
    interval: Interval
    second: Interval | None
    ahead: Interval | None
    over_random: Interval
    p: float
    first_in: float

    @property
    def decided(self) -> bool:
        """Whether the interval of its lead over the runner-up lies above 0."""
        return self.ahead is not None and self.ahead.low > 0

    def facts(self) -> dict[str, object]:
        """Plain values."""

        def plain(one: Interval | None) -> list[float] | None:
            return None if one is None else [one.mean, one.low, one.high]

        return {
            "reference": self.reference,
            "best": self.best,
            "runner-up": self.runner_up,
            "correlation": plain(self.interval),
            "runner-up's": plain(self.second),
            "ahead of the runner-up": plain(self.ahead),
            "over random rankings": plain(self.over_random),
            "p against random rankings": self.p,
            "best in so many resamples": self.first_in,
            "decided": self.decided,
        }


def verdict_of(prediction: Prediction) -> Verdict | None:
    """The verdict; None where no method without interventions has a correlation.

    Every other cluster of prompts (or prompt) chooses the two foremost methods, and the rest judges them: the foremost
    of many is foremost by luck as well.
    """
    choosing, judging = halves_of(prediction)
    order = choosing.among(interventions=False)
    order = tuple(name for name in order if np.isfinite(judging.values[name]).any())
    if not order:
        return None
    best, second = order[0], order[1] if len(order) > 1 else None
    return Verdict(
        prediction.reference,
        best,
        second,
        judging.interval(best),
        None if second is None else judging.interval(second),
        None if second is None else judging.difference(best, second),
        judging.over_random(best),
        judging.p(best),
        prediction.first_in[best],
    )


def halves_of(prediction: Prediction) -> tuple[Prediction, Prediction]:
    """The prediction on every other cluster of prompts (or prompt), and on the rest."""
    count = prediction.random.shape[1]
    labels = np.array(prediction.cluster if prediction.cluster else [str(place) for place in range(count)])
    names = list(dict.fromkeys(labels.tolist()))
    first = np.isin(labels, names[::2])
    return part_of(prediction, np.flatnonzero(first)), part_of(prediction, np.flatnonzero(~first))


def part_of(prediction: Prediction, prompts: np.ndarray) -> Prediction:
    """The prediction on some of its prompts."""
    return replace(
        prediction,
        values={name: own[prompts] for name, own in prediction.values.items()},
        layers={name: own[:, prompts] for name, own in prediction.layers.items()},
        random=prediction.random[:, prompts],
        cluster=None if prediction.cluster is None else tuple(prediction.cluster[place] for place in prompts),
    )


def layer_rows(predictions: Mapping[str, Prediction]) -> pd.DataFrame:
    """One row per method, reference and layer: ``trace, reference, layer, mean, sd, low, high``, the paper's table."""
    rows = []
    for reference, prediction in predictions.items():
        for name, layers in prediction.layers.items():
            for layer, own in enumerate(layers):
                found = mean_interval(own, confidence=prediction.how.confidence, cluster=prediction.cluster)
                sd = float(np.nanstd(own)) if np.isfinite(own).any() else np.nan
                rows.append(
                    {
                        "trace": name,
                        "reference": reference,
                        "layer": layer,
                        "mean": found.mean,
                        "sd": sd,
                        "low": found.low,
                        "high": found.high,
                    }
                )
    return pd.DataFrame(rows, columns=["trace", "reference", "layer", "mean", "sd", "low", "high"])


def agreement_grid(
    rows: Mapping[str, Rows], counted: Bool[np.ndarray, "prompt source"], how: How
) -> Float[np.ndarray, "method method"]:
    """The mean over prompts of the correlation of every method with every other."""
    names = list(rows)
    made = np.ones((len(names), len(names)))
    for place, first in enumerate(names):
        for other in range(place + 1, len(names)):
            found = _correlations(rows[first].values, rows[names[other]].values, counted, how)[0]
            mean = float(np.nanmean(found)) if np.isfinite(found).any() else np.nan
            made[place, other] = made[other, place] = mean
    return made
