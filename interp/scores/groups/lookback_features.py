"""Lookback ratios as features of spans of generated text, and a linear detector made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.results import HeadScores
from interp.scores.dropping import Sinks
from interp.scores.score import score

WINDOW = 8
FOLDS = 2
SEED = 42
ITERATIONS = 1000


class GeneratedSpan(NamedTuple):
    """Tokens ``start`` up to, not including, ``stop`` of what was generated after a prompt; 0 is the first of them."""

    prompt: int
    start: int
    stop: int


def lookback_ratios(
    model: Model,
    batch: Batch,
    *,
    generated: Any = "generated",
    tail: int = 1,
    context: Any = None,
    stack: str | None = None,
    exclude_sinks: Sinks = None,
) -> HeadScores:
    """The lookback ratio of every head at every generated token, from one forward over prompt and generated tokens.

    Args:
        model: the handle.
        batch: prompts with what was generated (:func:`interp.with_generated`, :func:`interp.with_answer`).
        generated, tail, context: as in :func:`interp.scores.groups.lookback.lookback`.
        stack: whose heads; the default stack for None.
        exclude_sinks: key columns to leave out; see :func:`interp.scores.dropping.dropped_columns`.

    ``positions`` of the table are the generated tokens from 0; NaN where a prompt has fewer.

    Raises:
        BadInput: as :func:`interp.scores.groups.lookback.lookback`.

    Example:
        >>> import interp, torch
        >>> model = interp.load("induction")
        >>> batch = interp.with_answer(model, interp.encode(model, torch.tensor([[0, 7, 8, 9]])), [[7, 8]])
        >>> interp.lookback_ratios(model, batch).samples.shape
        (1, 2, 4, 2)
    """
    options = {"generated": generated, "tail": tail, "context": context, "tokens": batch.width}
    found = score(model, batch, {"lookback_ratio": options}, stack=stack, exclude_sinks=exclude_sinks)["lookback_ratio"]
    samples = found.samples
    defined = np.flatnonzero(np.isfinite(samples).any((0, 1, 2)))
    length = int(defined[-1]) + 1 if len(defined) else 1
    return HeadScores.from_array(
        samples[..., :length],
        name=found.name,
        sample_axis="prompt",
        stack=found.stacks[0],
        default_stack=found.default_stack,
        exists=found.exists[found.stacks[0]],
        positions=range(length),
        metadata=found.metadata,
    )


def lookback_features(ratios: HeadScores, spans: Sequence[Sequence[int]]) -> Float[np.ndarray, "span feature"]:
    """``[span, layer * head]`` the mean ratio over each span's tokens, heads in the order of layers.

    Args:
        ratios: from :func:`lookback_ratios`.
        spans: (prompt, start, stop) each; see :class:`GeneratedSpan` and :func:`windows`.

    Raises:
        BadInput: a span without a token, or outside what was generated.

    Example:
        >>> table = HeadScores.from_array([[[[0.2, 0.4, 0.9]]]], name="lookback", sample_axis="prompt", positions="012")
        >>> lookback_features(table, [(0, 0, 2)]).round(6).tolist()
        [[0.3]]
    """
    samples, exists = ratios.per_prompt, ratios.exists[ratios.stacks[0]]
    made = np.empty((len(spans), int(exists.sum())))
    for row, (prompt, start, stop) in enumerate(spans):
        there = 0 <= prompt < len(samples)
        length = int(np.isfinite(samples[prompt][exists]).any(0).sum()) if there else 0
        if not there or not 0 <= start < stop <= length:
            raise BadInput(
                f"lookback_features: span {row} is tokens {start} to {stop} of prompt {prompt}; "
                + (f"it has {length} generated tokens." if there else f"there are {len(samples)} prompts.")
            )
        made[row] = np.nanmean(samples[prompt, ..., start:stop][exists], axis=-1)
    return made


def windows(
    labels: Sequence[Sequence[int]], size: int = WINDOW
) -> tuple[list[GeneratedSpan], Bool[np.ndarray, " span"]]:
    """Sliding windows over generated tokens, and whether each is grounded: all of its tokens are.

    Args:
        labels: per prompt one number per generated token, 1 where it is grounded in the context, 0 where it is
            hallucinated.
        size: tokens of a window (8 in the paper); a prompt with fewer tokens is one window.

    Example:
        >>> windows([[1, 1, 0]], size=2)
        ([GeneratedSpan(prompt=0, start=0, stop=2), GeneratedSpan(prompt=0, start=1, stop=3)], array([ True, False]))
    """
    if size < 1:
        raise BadInput(f"windows: size={size}; expected at least one token.")
    spans, grounded = [], []
    for prompt, own in enumerate(labels):
        for start in range(max(len(own) - size, 0) + 1 if len(own) else 0):
            spans.append(GeneratedSpan(prompt, start, min(start + size, len(own))))
            grounded.append(bool(min(own[start : start + size])))
    return spans, np.array(grounded, dtype=bool)


@dataclass(frozen=True, eq=False)
class LookbackDetector:
    """A logistic regression that tells grounded spans from hallucinated ones.

    Attributes:
        coefficients: ``[feature]``; above 0 where looking back speaks for grounded.
        intercept: of the linear part.
        auroc: on held-out folds, one each.
        auroc_train: on the spans that each fold was fitted to.
    """

    coefficients: Float[np.ndarray, " feature"]
    intercept: float
    auroc: tuple[float, ...]
    auroc_train: tuple[float, ...]

    def grounded(self, features: Float[np.ndarray, "span feature"]) -> Float[np.ndarray, " span"]:
        """The probability that each span is grounded."""
        return 1 / (1 + np.exp(-(np.asarray(features) @ self.coefficients + self.intercept)))

    def heads(self, ratios: HeadScores) -> HeadScores:
        """The coefficients as a table of the heads that ``ratios`` has."""
        stack = ratios.stacks[0]
        exists = ratios.exists[stack]
        made = np.full(exists.shape, np.nan)
        made[exists] = self.coefficients
        return HeadScores.from_array(
            made, name="lookback detector", sense=1, stack=stack, default_stack=ratios.default_stack, exists=exists
        )


def fit_lookback_detector(
    features: Float[np.ndarray, "span feature"],
    grounded: Sequence[bool] | Bool[np.ndarray, " span"],
    *,
    groups: Sequence[Any] | None = None,
    folds: int = FOLDS,
    seed: int = SEED,
) -> LookbackDetector:
    """A logistic regression on lookback features, fitted to all spans, with its AUROC on held-out folds.

    Unscaled features, L2 penalty with C = 1, at most 1000 iterations, two folds with seed 42, as in Chuang et al.
    (2024).

    Args:
        features: from :func:`lookback_features`.
        grounded: of each span, True where it is grounded in the context.
        groups: one label per span; spans of one label (one prompt, whose windows overlap) stay in one fold. Without it
            windows of one text may lie on both sides, which flatters the AUROC.
        folds: at least 2.
        seed: of the split.

    Raises:
        BadInput: other numbers of spans, one class alone, or a fold with one class alone.

    Example:
        >>> x = np.array([[0.1], [0.2], [0.3], [0.7], [0.8], [0.9]])
        >>> (fit_lookback_detector(x, [False] * 3 + [True] * 3, folds=3).grounded(x) > 0.5).tolist()
        [False, False, False, True, True, True]
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise BadInput("fit_lookback_detector: it needs scikit-learn; pip install scikit-learn.") from error
    x, y = np.asarray(features, dtype=float), np.asarray(grounded, dtype=bool)
    labels = np.arange(len(x)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if x.ndim != 2 or y.shape != x.shape[:1] or labels.shape != y.shape or not np.isfinite(x).all():  # noqa: PLR2004
        raise BadInput(
            f"fit_lookback_detector: features {x.shape}, {len(y)} labels and {len(labels)} groups; expected "
            "[span, feature] of finite numbers with one of each per span."
        )
    smallest = min(len(np.unique(labels[y == kind])) for kind in (False, True))
    if not 2 <= folds <= smallest:  # noqa: PLR2004 - one to fit, one to judge
        raise BadInput(
            f"fit_lookback_detector: folds={folds} with {smallest} spans (or groups) of the rarer class; expected "
            "from 2 folds to as many as there are, and spans of both classes."
        )
    held, fitted = [], []
    split = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for train, test in split.split(x, y, labels):
        if len(np.unique(y[train])) < 2 or len(np.unique(y[test])) < 2:  # noqa: PLR2004 - both classes
            raise BadInput("fit_lookback_detector: a fold has one class alone; give more spans, or fewer folds.")
        own = LogisticRegression(max_iter=ITERATIONS).fit(x[train], y[train])
        held.append(float(roc_auc_score(y[test], own.decision_function(x[test]))))
        fitted.append(float(roc_auc_score(y[train], own.decision_function(x[train]))))
    whole = LogisticRegression(max_iter=ITERATIONS).fit(x, y)
    return LookbackDetector(whole.coef_[0], float(whole.intercept_[0]), tuple(held), tuple(fitted))
