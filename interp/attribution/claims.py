"""``claims``: which heads matter, said only of heads that stand out from two nulls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from interp.address import At, Head, Site
from interp.attribution.claim_table import Claims
from interp.attribution.halves import labels_of
from interp.attribution.heads_grid import Cell, grid_of
from interp.attribution.reassign import (
    FEWEST_DRAWS,
    Reassignments,
    metric_of_rows,
    over_prompts,
    to_other_tokens,
)
from interp.attribution.removal import REPLACEMENTS, EditsOf, by_layer, removal
from interp.edits.activations import patch
from interp.errors import BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.model.sweep import sweep
from interp.names import unknown
from interp.results import HeadScores
from interp.stats import (
    NullComparison,
    benjamini_hochberg,
    bootstrap_means,
    compare_with_null,
    largest_effect_p,
    matched_random_sets,
)

Null = Literal["answers", "vocabulary"]
CLAIM_METHODS = (*REPLACEMENTS, "patch")
LEAST_DRAWS = 999
ROUNDING = 1e-6  # of the largest metric value: differences below are float32 rounding, and count as ties


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What the two nulls are computed from: the edits of any set of heads, and how to measure them."""

    model: Model
    batch: Batch
    stack: str | None
    heads: tuple[Head, ...]
    edits_of: EditsOf
    batch_size: int | None
    progress: Callable[[int], Any] | None

    def effects(self, sets: Sequence[Sequence[Head]], metric: Metric) -> tuple[np.ndarray, float, tuple[str, ...]]:
        """``(effects [set, prompt, ...], largest metric value met, notes)``."""
        swept = sweep(
            self.model,
            self.batch,
            [self.edits_of(one) for one in sets],
            metric,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        values = swept.values.detach().cpu().double().numpy()
        unedited = swept.unedited.detach().cpu().double().numpy()
        return values - unedited, float(max(np.abs(values).max(), np.abs(unedited).max())), swept.notes


def claims(
    model: Model,
    batch: Batch,
    method: str = "mean",
    *,
    metric: Metric | str = logit_difference,
    null: Null | str = "answers",
    draws: int | None = None,
    random_sets: int = 200,
    level: float = 0.05,
    seed: int = 0,
    cluster: Sequence[object] | None = None,
    heads: Iterable[Head | str | Sequence[int]] | None = None,
    stack: str | None = None,
    source: Any = None,
    reference: Batch | None = None,
    pool: Sequence[int] | None = None,
    edits: EditsOf | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Claims:
    """Which heads matter for a metric of the answers, each with its effect, interval and p-values.

    A head is claimed where its effect, the mean over prompts, stands out from **both** nulls:

    1. Answers reassigned. The same effects are measured with right and wrong answers given to other prompts (whole
       clusters exchange theirs). The head's p-value among its own reassigned effects passes Benjamini-Hochberg over
       heads, and its effect exceeds the *largest absolute effect of any head* under reassignment (Westfall and Young,
       1993) at ``level``. Every reassignment is read from the same edited runs, so that draws cost nothing.
    2. Matched random heads. Its effect exceeds that of the other heads of its layer that did not pass (1), of any layer
       where none is left, by more than the bootstrap over prompts leaves open; and all heads that passed, edited
       together, do more than random sets with as many heads per layer (no p below 20 sets).

    With one answer pair for all prompts reassignment over prompts changes nothing, there is no such null, and nothing
    is claimed. ``null="vocabulary"`` asks another question there: whether the effect on *this pair of tokens* exceeds
    the largest effect of any head on random pairs.

    Args:
        model: the handle.
        batch: the prompts, with answers.
        method: how heads are put out of the way: mean, resample, uniform, zero (off-distribution: in trained models
            nearly every head then moves the answer), or patch (from ``source``).
        metric: ``(logits, batch) -> [batch]`` that reads ``batch.answers``, or the name of one.
        null: ``"answers"`` reassigned over prompts, or replaced by other tokens of the ``"vocabulary"``.
        draws: reassignments to draw; by default 999, or more where Benjamini-Hochberg over the heads needs them.
        random_sets: most matched random sets.
        level: of the false discovery rate and of both nulls.
        seed: of every draw.
        cluster: one label per prompt; prompts with one label (a template, an answer pair) stay together.
        heads: only these heads; all of the stack by default.
        stack: whose heads, the default stack for None.
        source: for ``patch``: the other side of each pair.
        reference: prompts for mean and resample.
        pool: token ids to draw from with ``null="vocabulary"``; all but special ones by default.
        edits: another way to put heads out of the way: a function from some heads to the edits that do it. ``method``
            is then its name, any word.
        batch_size, progress: as in :func:`interp.sweep`.

    Raises:
        BadInput: no answers, fewer than two prompts (or clusters), or a level, method or null that cannot be.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> pairs = [(a, b) for a in range(3, 8) for b in range(9, 13)]
        >>> batch = interp.encode(model, [[0, a, b, a] for a, b in pairs], answers=[(b, a) for a, b in pairs])
        >>> [str(head) for head in interp.claims(model, batch).claimed]
        ['L0.H0', 'L1.H0']
    """
    labels = _checked(batch, "mean" if edits is not None else method, null, draws, level, cluster, source, reference)
    chosen = _heads(model, heads, stack)
    judged = metric_for(metric, model, batch)
    n_draws = draws if draws is not None else max(LEAST_DRAWS, math.ceil(len(chosen) / level))
    anew = _reassigned(model, batch, null, n_draws, seed, labels, pool)
    edits_of = edits or _edits_of(model, batch, chosen, method, source, reference, seed)
    ground = _Sweep(model, batch, stack, chosen, edits_of, batch_size, progress)
    return _judged(ground, judged, anew, null, labels, method, level=level, random_sets=random_sets, seed=seed)


def _judged(
    ground: _Sweep,
    metric: Metric,
    anew: Reassignments,
    null: str,
    labels: tuple[str, ...] | None,
    method: str,
    *,
    level: float,
    random_sets: int,
    seed: int,
) -> Claims:
    """The two nulls and what they leave to be claimed."""
    heads, stack = ground.heads, ground.model.stack(ground.stack)
    values, scale, notes = ground.effects([(head,) for head in heads], metric_of_rows(metric, anew.rows))
    own, drawn = anew.means(values)
    per_prompt = values[:, np.arange(len(ground.batch)), anew.own]  # [head, prompt]
    own_p, largest_p, remarks = _p_values(own, drawn, ROUNDING * scale, per_prompt.shape[1])
    discoveries = benjamini_hochberg(own_p, level=level)
    passed: Bool[np.ndarray, " head"] = discoveries.found & (np.nan_to_num(largest_p, nan=1.0) <= level)
    matched, exceeds = _matched(heads, per_prompt, passed, level, labels, seed)
    together = _together(ground, metric, passed, random_sets, seed)
    cells = [Cell(head.layer, head.index) for head in heads]

    def grid(values: np.ndarray) -> np.ndarray:
        return grid_of(values.reshape(len(heads), -1).astype(float), cells, stack, "query", None)

    return Claims(
        effects=_scores(ground, grid(per_prompt), method, metric, labels),
        p=grid(own_p)[0],
        adjusted=grid(discoveries.adjusted)[0],
        largest=grid(largest_p)[0],
        matched=grid(matched)[0],
        passed=grid(passed)[0] == 1,
        claimed_cells=grid(passed & exceeds & _stands(together, level))[0] == 1,
        together=together,
        level=level,
        null=f"{anew.words}, {'all ' if anew.exhaustive else ''}{len(anew.drawn)} ways",
        method=method,
        metric=getattr(metric, "__name__", repr(metric)),
        notes=(*remarks, *_why(anew, null, remarks, passed, method), *notes),
    )


def _checked(
    batch: Any,
    method: str,
    null: str,
    draws: int | None,
    level: float,
    cluster: Sequence[object] | None,
    source: Any,
    reference: Batch | None,
) -> tuple[str, ...] | None:
    if not isinstance(batch, Batch):
        raise BadInput(f"claims: the batch is a {type(batch).__name__}; expected what interp.encode(...) returns.")
    if batch.answers is None:
        raise BadInput("claims: the nulls reassign right and wrong answers; give encode(..., answers=[...]).")
    if method not in CLAIM_METHODS:
        raise BadInput(unknown(method, CLAIM_METHODS, "method of claims"))
    if (method == "patch") != (source is not None):
        raise BadInput(f"claims: source= goes with method='patch', and with it alone; got method={method!r}.")
    if method == "patch" and reference is not None:
        raise BadInput("claims: reference= goes with mean and resample, not with patch.")
    if null not in get_args(Null):
        raise BadInput(unknown(null, get_args(Null), "null"))
    if not 0 < level < 1:
        raise BadInput(f"level={level}: expected a number between 0 and 1, such as 0.05.")
    if draws is not None and draws < 1:
        raise BadInput(f"draws={draws}: expected at least one reassignment.")
    labels = labels_of(batch, cluster)
    groups = len(batch) if labels is None else len(set(labels))
    if groups < 2:  # noqa: PLR2004 - one has no spread
        kind = "prompt" if labels is None else "cluster"
        raise BadInput(f"claims: {groups} {kind}; intervals and nulls need two at least, and a claim needs many more.")
    return labels


def _heads(model: Model, heads: Iterable[Head | str | Sequence[int]] | None, stack: str | None) -> tuple[Head, ...]:
    every = tuple(model.heads(stack))
    if heads is None:
        return every
    named = {str(head): head for head in every}
    asked = [Head.parse(head) for head in heads]
    strange = [str(head) for head in asked if str(head) not in named]
    if strange or not asked:
        raise BadInput(unknown(strange[0], named, "head") if strange else "claims: heads= is empty.")
    return tuple(dict.fromkeys(named[str(head)] for head in asked))


def _edits_of(
    model: Model, batch: Batch, heads: Sequence[Head], method: str, source: Any, reference: Batch | None, seed: int
) -> EditsOf:
    if method != "patch":
        return removal(model, batch, heads, replacement=method, reference=reference, seed=seed)
    held = run(model, source, read=[At(Site.Z)]) if isinstance(source, Batch) else source
    return lambda some: [
        patch(At(Site.Z, layer=layer, heads=indices, stack=stack), held)
        for (stack, layer), indices in by_layer(some).items()
    ]


def _reassigned(
    model: Model,
    batch: Batch,
    null: str,
    draws: int,
    seed: int,
    labels: tuple[str, ...] | None,
    pool: Sequence[int] | None,
) -> Reassignments:
    assert batch.answers is not None
    if null == "answers":
        if pool is not None:
            raise BadInput("claims: pool= goes with null='vocabulary'.")
        return over_prompts(batch.answers, draws=draws, seed=seed, cluster=labels)
    logits = run(model, batch).logits
    assert logits is not None
    special = getattr(model.tokenizer, "all_special_ids", None) or []
    return to_other_tokens(
        batch, range(logits.shape[-1]) if pool is None else pool, draws=draws, seed=seed, special=special
    )


def _p_values(
    own: Float[np.ndarray, " head"], drawn: Float[np.ndarray, "draw head"], rounding: float, n_prompts: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """``(p of each head among its own draws, p against the largest of any head, notes)``; NaN with too few draws."""
    if len(drawn) < FEWEST_DRAWS:
        nothing = np.full(own.shape, np.nan)
        if not len(drawn):
            return (
                nothing,
                nothing,
                (f"All {n_prompts} prompts have the same answers, so that reassigning them changes nothing.",),
            )
        return (
            nothing,
            nothing,
            (f"The answers can be reassigned in {len(drawn)} other ways only; 19 are the least for a p of 0.05.",),
        )
    size = np.maximum(np.abs(own) - rounding, 0.0)
    own_p = (1 + (np.abs(drawn) >= size).sum(0)) / (1 + len(drawn))
    unmoved = np.abs(drawn - own).max() <= rounding
    remarks = ("The metric does not change with the answers: no effect can stand out.",) if unmoved else ()
    return own_p, largest_effect_p(size, drawn), remarks


def _why(
    anew: Reassignments, null: str, remarks: tuple[str, ...], passed: Bool[np.ndarray, " head"], method: str
) -> tuple[str, ...]:
    said: list[str] = []
    if null == "vocabulary":
        said.append("This compares with random tokens: it says that the effect is special to these answers.")
    elif remarks and not len(anew.drawn):
        said.append(
            "Nothing is claimed; a sign-flip test would call most heads of a random model significant here. Use "
            "prompts with different answers, or null='vocabulary'."
        )
    if passed.all():
        said.append("Every head passed the first null, so that there is none to compare with and none stands out.")
    if method == "zero":
        said.append("zero is off-distribution: an effect can come from the broken input of later layers.")
    return tuple(said)


def _matched(
    heads: Sequence[Head],
    per_prompt: Float[np.ndarray, "head prompt"],
    passed: Bool[np.ndarray, " head"],
    level: float,
    labels: tuple[str, ...] | None,
    seed: int,
) -> tuple[Float[np.ndarray, " head"], Bool[np.ndarray, " head"]]:
    """``(effect size that matched heads reach, whether a head's own is beyond it)``, per head."""
    means = per_prompt.mean(1)
    signs = np.where(means < 0, -1.0, 1.0)
    layers = np.array([head.layer for head in heads])
    reach, margins = np.full(len(heads), np.nan), np.full(per_prompt.T.shape, np.nan)
    for place in range(len(heads)):
        others = ~passed & (np.arange(len(heads)) != place)
        beside = others & (layers == layers[place])
        rivals = np.flatnonzero(beside if beside.any() else others)
        if not rivals.size:
            continue
        order = rivals[np.argsort(np.abs(means[rivals]), kind="stable")]
        rival = order[math.ceil((1 - level) * (len(order) - 1))]
        reach[place] = abs(means[rival])
        margins[:, place] = signs[place] * per_prompt[place] - signs[rival] * per_prompt[rival]
    low, _ = bootstrap_means(margins, confidence=1 - 2 * level, seed=seed, cluster=labels)
    return reach, np.nan_to_num(low, nan=-1.0) > 0


def _together(
    ground: _Sweep, metric: Metric, passed: Bool[np.ndarray, " head"], most: int, seed: int
) -> NullComparison | None:
    """The heads that passed, edited together, beside matched random sets; None where none passed."""
    chosen = [head for head, found in zip(ground.heads, passed, strict=True) if found]
    if not chosen:
        return None
    stack = ground.model.stack(ground.stack)
    widths = [stack.n_heads(layer) for layer in range(stack.n_layers)]
    sets = matched_random_sets(chosen, {chosen[0].stack: widths}, n_draws=most, seed=seed)
    effects, _, _ = ground.effects([chosen, *sets.sets], metric)
    return compare_with_null(float(effects[0].mean()), effects[1:].mean(1), sets=sets)


def _stands(together: NullComparison | None, level: float) -> bool:
    """Whether nothing in the comparison speaks against the heads that passed.

    Sets that share heads with them do as much where heads depend on each other, which is no evidence against.
    """
    if together is None or not together.n:
        return False
    return together.overlap or together.p is None or together.p <= level


def _scores(
    ground: _Sweep,
    samples: Float[np.ndarray, "prompt layer head"],
    method: str,
    metric: Metric,
    labels: tuple[str, ...] | None,
) -> HeadScores:
    better = int(getattr(metric, "sense", 1))
    return HeadScores.from_array(
        samples,
        name=method,
        quantity="effect",
        sense=better if method == "patch" else -better,
        sample_axis="prompt",
        stack=ground.model.stack(ground.stack).name,
        default_stack=ground.model.default_stack,
        cluster=labels,
        metadata={
            "method": method,
            "metric": getattr(metric, "__name__", repr(metric)),
            "model": ground.model.name,
        },
    )
