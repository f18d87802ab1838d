"""Greedy search for a set of heads whose edit optimises a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.address import Head
from interp.attribution.curve import metric_name
from interp.attribution.greedy_search import GreedySearch
from interp.attribution.halves import labels_of, share_prompts
from interp.attribution.ranking import refuse_strange_heads
from interp.attribution.removal import EditsOf, by_layer, place_of
from interp.attribution.slopes import edit_slopes
from interp.edits.activations import zero
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.model.sweep import sweep
from interp.names import unknown
from interp.tensor_file import plain_json

HeadEdit = Callable[[Head], Edit | Sequence[Edit]]
_SCREENED = 16  # candidates that a screened round runs exactly, where the caller names no number


def greedy_heads(
    model: Model,
    batch: Batch,
    edit: str | HeadEdit = "zero",
    *,
    metric: Metric | str = logit_difference,
    maximise: bool = True,
    rounds: int = 5,
    per_round: int = 1,
    candidates: Iterable[Head | str | Sequence[int]] | None = None,
    stack: str | None = None,
    held_out: Batch | None = None,
    patience: int | None = None,
    screen: str | None = None,
    screened: int | None = None,
    cluster: Sequence[object] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> GreedySearch:
    """Heads, added round by round, whose edits together raise (or lower) a metric the most.

    Args:
        model: the handle.
        batch: the prompts that the search sees.
        edit: ``"zero"``, or a function from a head to its edit (or edits), such as
            ``lambda head: interp.to_identity(At(Site.PATTERN, head.layer, heads=(head.index,)), 0.5)``.
        metric: ``(logits, batch) -> [batch]``, or the name of a metric; its mean is the objective.
        maximise: whether the metric is to become large; False makes it small.
        rounds: how many times heads are added.
        per_round: heads added in a round, the best ones of its table.
        candidates: heads to choose from; all heads of ``stack`` by default.
        stack: whose heads.
        held_out: prompts that the search does not see, on which every round's set is measured. The best of many noisy
            numbers flatters itself; these prompts say by how much.
        patience: stop after so many rounds without a better objective than before, on ``held_out`` where it is given.
        screen: ``"gradient"`` runs exactly only the ``screened`` candidates of the best slope dm/du at u = 0 (from one
            forward and one backward, see :func:`interp.attribution.slopes.edit_slopes`); None runs all.
        screened: candidates that a screened round runs exactly, 16 by default, at least ``per_round``.
        cluster: one label per prompt of ``batch``; prompts of one label are resampled together.
        batch_size, progress: as in ``interp.sweep``.

    Round r runs S + {h} for every candidate h left, S being the heads chosen before, and adds the ``per_round`` best.
    With one round this is the ranking of single heads; where effects add up it finds the best set exactly. HeadHunter:
    Ahn et al., "Fine-Grained Perturbation Guidance via Attention Head Selection" (2025).

    Raises:
        BadInput: numbers, heads or edits that cannot be, before any forward pass.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3], [0, 5, 6, 5]], answers=[(4, 5), (6, 4)])
        >>> search = greedy_heads(model, batch, maximise=False, rounds=1, per_round=2)
        >>> [str(head) for head in search.heads], search.objective.round(2).tolist()
        (['L0.H0', 'L1.H0'], [-10.0])
    """
    chosen = _candidates(model, candidates, stack)
    _check_numbers(rounds, per_round, patience, len(chosen))
    if screen not in (None, "gradient"):
        raise BadInput(unknown(screen, ("gradient",), "screen"))
    labels = labels_of(batch, cluster)
    search = _Search(
        model=model,
        batch=batch,
        metric=metric_for(metric, model, batch),
        edits_of=_edits_of(edit, chosen),
        sign=1 if maximise else -1,
        per_round=per_round,
        screened=None if screen is None else max(screened or _SCREENED, per_round),
        batch_size=batch_size,
        progress=progress,
    )
    judge = None if held_out is None else (held_out, metric_for(metric, model, held_out))
    log = search.run(chosen, rounds, judge, patience)
    return GreedySearch(
        metric=metric_name(metric),
        maximise=maximise,
        candidates=chosen,
        added=tuple(log.added),
        table_samples=np.stack(log.tables),
        samples=np.stack(log.reached),
        held_out_samples=np.stack(log.tested) if log.tested else None,
        cluster=labels,
        metadata=plain_json(
            {
                "edit": edit if isinstance(edit, str) else getattr(edit, "__name__", repr(edit)),
                "screen": screen,
                "screened": search.screened,
                "patience": patience,
                "stopped_early": patience is not None and log.since_best >= patience,
                "disjoint": None if held_out is None else not share_prompts(batch, held_out),
                "default_stack": model.default_stack,
                # what a head does is the reverse of what zeroing it does; of another edit that is not known
                "sense": -getattr(search.metric, "sense", 1) if edit == "zero" else 0,
            }
        ),
    )


def _candidates(model: Model, candidates: Any, stack: str | None) -> tuple[Head, ...]:
    if candidates is None:
        found = [Head(*head) for head in model.heads(stack)]
    else:
        found = [Head.parse(head) for head in candidates]
    named = tuple(head._replace(stack=None) if head.stack == model.default_stack else head for head in found)
    if not named:
        raise BadInput("candidates=[] names no head; leave it out for all heads.")
    refuse_strange_heads(named, model)
    return named


def _check_numbers(rounds: int, per_round: int, patience: int | None, n_candidates: int) -> None:
    for name, value in (("rounds", rounds), ("per_round", per_round), ("patience", patience)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise BadInput(f"{name}={value!r}: expected an int of at least 1.")
    if per_round > n_candidates:
        raise BadInput(f"per_round={per_round}, but there are {n_candidates} candidates; choose fewer.")


def _edits_of(edit: str | HeadEdit, candidates: tuple[Head, ...]) -> EditsOf:
    if isinstance(edit, str):
        if edit != "zero":
            raise BadInput(f"{unknown(edit, ('zero',), 'edit')} Or give a function from a head to its edit.")
        return lambda heads: [zero(place_of(*item)) for item in by_layer(heads).items()]
    if not callable(edit):
        raise BadInput(f"edit={edit!r}: expected 'zero' or a function from a head to its edit.")
    made: dict[Head, list[Edit]] = {}
    for head in candidates:
        found = edit(head)
        made[head] = [found] if isinstance(found, Edit) else list(found)
        if not made[head] or not all(isinstance(one, Edit) for one in made[head]):
            raise BadInput(f"edit: for {head} the function gave {found!r}; expected an edit, or a list of edits.")
    return lambda heads: [one for head in sorted(heads, key=candidates.index) for one in made[head]]


@dataclass
class _Log:
    """What a search found so far."""

    added: list[tuple[Head, ...]] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)
    reached: list[np.ndarray] = field(default_factory=list)
    tested: list[np.ndarray] = field(default_factory=list)
    best: float = 0.0
    since_best: int = 0


@dataclass(frozen=True)
class _Search:
    """What every round of a search needs."""

    model: Model
    batch: Batch
    metric: Metric
    edits_of: EditsOf
    sign: int
    per_round: int
    screened: int | None
    batch_size: int | None
    progress: Callable[[int], Any] | None

    def run(
        self, candidates: tuple[Head, ...], rounds: int, judge: tuple[Batch, Metric] | None, patience: int | None
    ) -> _Log:
        """Round after round, until there are enough, no candidate is left, or patience is at its end."""
        log = _Log()
        while len(log.added) < rounds and (len(log.added) + 1) * self.per_round <= len(candidates):
            taken = [head for each in log.added for head in each]
            table = self.table(candidates, taken)
            new = self.best(candidates, table)
            log.added.append(new)
            log.tables.append(table)
            log.reached.append(self.reached(candidates, table, [*taken, *new], new))
            if judge is not None:
                log.tested.append(self.effects([[*taken, *new]], *judge)[0])
            score = self.sign * float((log.tested if judge is not None else log.reached)[-1].mean())
            log.since_best, log.best = (0, score) if score > log.best else (log.since_best + 1, log.best)
            if patience is not None and log.since_best >= patience:
                break
        return log

    def effects(self, sets: Sequence[Sequence[Head]], batch: Batch, metric: Metric) -> Float[np.ndarray, "set prompt"]:
        """The change of the metric with each set edited."""
        variants = [self.edits_of(one) for one in sets]
        swept = sweep(self.model, batch, variants, metric, batch_size=self.batch_size, progress=self.progress)
        if swept.values.ndim != 2:  # noqa: PLR2004 - [variant, batch]
            raise BadInput(f"The metric gives {list(swept.values.shape[2:])} numbers per prompt; a search needs one.")
        return swept.effects.detach().to(torch.float64).cpu().numpy()

    def table(self, candidates: Sequence[Head], taken: Sequence[Head]) -> Float[np.ndarray, "head prompt"]:
        """The effect of ``taken`` and each candidate; NaN where it is taken already, or was screened out."""
        left = [place for place, head in enumerate(candidates) if head not in set(taken)]
        if self.screened is not None and self.screened < len(left):
            edits = [self.edits_of([candidates[place]]) for place in left]
            slopes = edit_slopes(self.model, self.batch, edits, self.metric, base=self.edits_of(taken)).mean(1)
            left = sorted(left[place] for place in np.argsort(-self.sign * slopes, kind="stable")[: self.screened])
        table = np.full((len(candidates), len(self.batch)), np.nan)
        table[left] = self.effects([[*taken, candidates[place]] for place in left], self.batch, self.metric)
        return table

    def best(self, candidates: Sequence[Head], table: np.ndarray) -> tuple[Head, ...]:
        """The ``per_round`` best heads of a table, the best first."""
        means = self.sign * table.mean(1)
        order = np.argsort(np.where(np.isnan(means), np.inf, -means), kind="stable")
        return tuple(candidates[place] for place in order[: self.per_round])

    def reached(
        self, candidates: Sequence[Head], table: np.ndarray, heads: Sequence[Head], new: tuple[Head, ...]
    ) -> Float[np.ndarray, " prompt"]:
        """The effect of all heads chosen so far."""
        if len(new) == 1:
            return table[candidates.index(new[0])]
        return self.effects([heads], self.batch, self.metric)[0]
