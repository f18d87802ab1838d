"""``label_heads``: labels that pattern and ablation both support."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import pandas as pd

from interp.address import At, Site
from interp.attribution.halves import halves
from interp.errors import BadInput, HeadscopeError
from interp.metrics import logit_difference
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.names import lookup, unknown
from interp.scores.labels import HEAD_TYPES, HeadType
from interp.scores.labels.causes import Rule
from interp.scores.labels.drawn import Drawer, drawer_for
from interp.scores.labels.head_labels import HeadLabels
from interp.scores.labels.reading import Setup
from interp.scores.labels.testing import Work, no_rows

MARGIN = 0.1  # of the pattern score above its null's mean; this library's choice
PATTERN_BATCH = 16  # prompts in one forward that reads patterns


def label_heads(
    model: Model,
    batch: Batch | None = None,
    *,
    types: str | HeadType | Iterable[str | HeadType] | None = None,
    metric: Metric | str = logit_difference,
    method: str = "mean",
    rule: Rule = "discovery",
    cluster: Sequence[object] | None = None,
    level: float = 0.05,
    margin: float = MARGIN,
    n_prompts: int = 32,
    segment: int | None = None,
    draws: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> HeadLabels:
    """Which heads earn which label of ``interp.scores.labels.HEAD_TYPES``, with the evidence.

    A head earns a label only if two tests on disjoint prompts agree:

    1. Pattern. Its pattern score exceeds the null of the type (``circuits show LABEL`` says which) by more than the
       bootstrap over prompts leaves open, the null's mean by ``margin``, and the other heads of its layer that are not
       above the null.
    2. Cause. Without it the metric of the task that the type names changes, in the sense that the type has: by more
       than under reassigned answers (see :func:`interp.claims`; false discoveries among heads are kept to ``level``)
       and more than without the other heads of its layer that do not pass this.

    Types of structure (previous, duplicate, induction) are read on random tokens, and their task is to say a repeated
    text again. All others are about the batch's own answers: patterns are read on one half of its prompts, effects
    measured on the other. A type that needs what the batch or the model has not is not tested, and the result says why.

    Args:
        model: the handle.
        batch: prompts with answers (right, wrong); without, only types of repeated text are tested. Its spans
            (``subject``, ``option 0``, ``yes`` ...) decide which types can be.
        types: names, or ``HeadType`` values of one's own; all by default.
        metric: of the batch's task, as in :func:`interp.claims`.
        method: how heads are put out of the way: mean, resample, uniform or zero.
        rule: ``"discovery"`` as said; ``"claim"`` what :func:`interp.claims` claims, which asks more: the effect must
            exceed the largest of *any* head under reassigned answers, so that heads that share their work beside one
            that works alone seldom pass.
        cluster: one label per prompt of the batch; prompts with one label stay together.
        level: of every test.
        margin: least difference between a pattern score and its null's mean.
        n_prompts: random prompts to draw for patterns, and as many for the task.
        segment: random tokens that are said twice; 24, or as many as fit, by default.
        draws: of each null that needs a forward or other keys.
        seed: of every draw.
        batch_size: prompts in one forward; 16 for patterns and chosen for ablations by default.
        progress: as in :func:`interp.sweep`.

    The registry: Zheng et al., 2024 (Attention heads of large language models: a survey, arXiv 2409.03752). The rule,
    the margin and the nulls are this library's.

    Raises:
        UnknownName: a type that is not there.
        BadInput: a batch without answers, or a level, margin or number that cannot be.
        Unsupported: the model's patterns cannot be read.

    Example:
        >>> import interp
        >>> found = interp.label_heads(interp.load("handmade"), types=["previous", "duplicate", "induction"])
        >>> found.labels  # L0.H1 attends to duplicates as well, but nothing depends on it
        {'L0.H0': ('previous',), 'L1.H0': ('induction',)}
    """
    _check(model, batch, rule, level, margin, n_prompts, draws)
    chosen = _chosen(types)
    parts = None if batch is None else halves(batch, cluster=cluster, seed=seed)
    drawer = _drawer(model, batch, segment, seed)
    setup = Setup(
        "label_heads",
        model,
        parts and parts.selection,
        parts and parts.selection_cluster,
        drawer,
        n_prompts,
        draws,
        seed,
        batch_size or PATTERN_BATCH,
    )
    causal = _is_causal(model, parts.selection if parts else setup.random.task(1))
    work = Work(setup, parts, method, rule, metric, level, margin, batch_size, progress, causal)
    parts_of_table, untested = [], {}
    for kind in chosen:
        try:
            parts_of_table.append(work.tested(kind))
        except HeadscopeError as error:
            untested[kind.name] = str(error)
    return HeadLabels(
        rows=pd.concat(parts_of_table, ignore_index=True) if parts_of_table else no_rows(),
        heads=tuple(model.heads()),
        untested=untested,
        notes=tuple(dict.fromkeys(work.notes)),
        metadata={
            "model": model.name,
            "method": method,
            "rule": rule,
            "metric": getattr(metric, "__name__", str(metric)),
            "level": level,
            "margin": margin,
            "segment": None if drawer is None else drawer.segment,
            "prompts drawn": n_prompts,
            "prompts given": 0 if batch is None else len(batch),
            "seed": seed,
        },
    )


def _check(model: Any, batch: Any, rule: str, level: float, margin: float, n_prompts: int, draws: int) -> None:
    if not isinstance(model, Model):
        raise BadInput(f"label_heads: the model is a {type(model).__name__}; expected what interp.load(...) returns.")
    if batch is not None and not isinstance(batch, Batch):
        raise BadInput(
            f"label_heads: the batch is a {type(batch).__name__}; expected what interp.encode(...) returns, or None."
        )
    if batch is not None and batch.answers is None:
        raise BadInput(
            "label_heads: the batch has no answers, and a label needs a task; give encode(..., "
            "answers=[(right, wrong), ...]), or leave batch= out for the types of repeated text."
        )
    if rule not in get_args(Rule):
        raise BadInput(unknown(rule, get_args(Rule), "rule"))
    if not 0 < level < 1:
        raise BadInput(f"level={level}: expected a number between 0 and 1, such as 0.05.")
    if margin < 0:
        raise BadInput(f"margin={margin}: expected a number of at least 0, such as {MARGIN}.")
    for name, value, least in (("n_prompts", n_prompts, 2), ("draws", draws, 2)):
        if value < least:
            raise BadInput(f"{name}={value}: expected at least {least}.")


def _chosen(types: str | HeadType | Iterable[str | HeadType] | None) -> list[HeadType]:
    if types is None:
        return list(HEAD_TYPES.values())
    given = [types] if isinstance(types, str | HeadType) else list(types)
    if not given:
        raise BadInput(f"label_heads: types= is empty; known: {', '.join(HEAD_TYPES)}.")
    return [one if isinstance(one, HeadType) else lookup(one, HEAD_TYPES, "type of head") for one in given]


def _drawer(model: Model, batch: Batch | None, segment: int | None, seed: int) -> Drawer | None:
    """What draws random tokens; None where the model's own stack does not read them."""
    if model.default_stack != "text" or (batch is not None and batch.ids is None):
        if batch is None:
            raise BadInput(
                f"label_heads: stack {model.default_stack!r} cannot be given random tokens; give batch= with answers."
            )
        return None
    try:
        return drawer_for(model, segment, seed)
    except BadInput:
        if segment is not None or batch is None:
            raise
        return None


def _is_causal(model: Model, batch: Batch) -> bool:
    """Whether no token sees a later one, by the first layer's pattern of the first prompt."""
    stack = model.stack(None)
    layer = next(layer for layer in range(stack.n_layers) if stack.n_heads(layer))
    at = At(Site.PATTERN, layer=layer)
    return not bool(run(model, batch.select([0]), read=[at], logits="last")[at].triu(1).any())
