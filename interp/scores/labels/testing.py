"""``Work``: the two tests of every type of head, with the claims of each task made once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.address import Head
from interp.attribution.claim_table import Claims
from interp.attribution.halves import Halves
from interp.errors import BadInput, HeadscopeError
from interp.metrics import logit_difference
from interp.model.batch import Batch
from interp.model.run import Metric
from interp.names import unknown
from interp.scores import SCORES
from interp.scores.labels.causes import Rule, agrees, task_claims
from interp.scores.labels.head_labels import NUMBERS, TRUTHS, WORDS
from interp.scores.labels.judging import judged
from interp.scores.labels.kinds import HeadTest, HeadType
from interp.scores.labels.reading import PatternReading, Setup, names_of
from interp.scores.score import score


@dataclass(frozen=True, eq=False)
class Work:
    """What the tests of all types share.

    Attributes:
        setup: what pattern tests are given.
        parts: the prompts given, in two halves; None without.
        method, rule, metric, level, margin, batch_size, progress: as in :func:`interp.label_heads`.
        causal: whether the stack sees no later token.
        found: (task, removal) -> its claims, or why there are none; each is made once.
        weights: name -> ``[layer, head]`` a score of weights; each is made once.
        notes: what the reader has to know.
    """

    setup: Setup
    parts: Halves | None
    method: str
    rule: Rule
    metric: Metric | str
    level: float
    margin: float
    batch_size: int | None
    progress: Callable[[int], Any] | None
    causal: bool
    found: dict[tuple[str, str], Claims | HeadscopeError] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def tested(self, kind: HeadType) -> pd.DataFrame:
        """One row per head: pattern, null, weights, effect, and whether both tests were passed.

        Raises:
            HeadscopeError: the type has no test, or what it needs is not there.
        """
        test = _test_of(kind, self.setup.given)
        self.claims(test)  # refuses before the pattern is read
        reading: PatternReading = _function(test.pattern)(replace(self.setup, name=kind.name))
        verdict = judged(reading, level=self.level, margin=self.margin, seed=self.setup.seed)
        if reading.about:
            self.notes.append(f"{kind.name}: {reading.about}")
        found = self.claims(test)
        effects = found.effects
        ends = effects.table().set_index(["layer", "head"])
        heads = self.setup.model.heads()
        cells = tuple(np.array([(head.layer, head.index) for head in heads]).T)
        causal = agrees(found, test.effect, self.rule, seed=self.setup.seed)
        grids = {
            **{name: getattr(verdict, name) for name in ("score", "low", "high", "null", "threshold", "rival")},
            "weight": self._weight(test.weight),
            "effect": effects.values,
            "p": found.adjusted,
            "p_largest": found.largest,
            "pattern": verdict.passes,
            "causal": causal,
            "labelled": verdict.passes & causal,
        }
        rows = {name: grid[cells] for name, grid in grids.items()}
        places = [(head.layer, head.index) for head in heads]
        rows |= {"effect_low": ends.loc[places, "low"].to_numpy(), "effect_high": ends.loc[places, "high"].to_numpy()}
        words = {
            "head": [str(_plain(head)) for head in heads],
            "label": kind.name,
            "stage": kind.stage,
            "place": "" if reading.places is None else reading.places[cells],
        }
        return pd.DataFrame({name: {**words, **rows}[name] for name in (*WORDS, *NUMBERS, *TRUTHS)})

    def claims(self, test: HeadTest) -> Claims:
        """The claims of the task that a test names.

        Raises:
            HeadscopeError: why there are none.
        """
        key = (test.task, test.removal)
        if key not in self.found:
            try:
                self.found[key] = self._claimed(test)
            except HeadscopeError as error:
                self.found[key] = error
        made = self.found[key]
        if isinstance(made, HeadscopeError):
            raise made
        return made

    def _claimed(self, test: HeadTest) -> Claims:
        setup = self.setup
        if test.task == "repeats" and not self.causal:
            raise BadInput("Its task is to say a repeated text again, and here tokens see later ones.")
        if test.task == "given" and self.parts is None:
            raise BadInput("Its task is that of the batch; give batch= with answers.")
        batch: Batch
        if test.task == "given" and self.parts is not None:
            batch, cluster, metric = self.parts.evaluation, self.parts.evaluation_cluster, self.metric
        else:
            batch, cluster, metric = setup.random.task(setup.n_prompts), None, logit_difference
        found = task_claims(
            setup.model,
            batch,
            test.removal,
            self.method,
            self.rule,
            metric=metric,
            cluster=cluster,
            level=self.level,
            seed=setup.seed,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        task = "the batch's answers" if test.task == "given" else "repeated text"
        self.notes.extend(f"Effects on {task}: {note}" for note in found.notes)
        return found

    def _weight(self, name: str) -> Float[np.ndarray, "layer head"]:
        """A score of weights, NaN where there is none or the model cannot give it."""
        stack = self.setup.model.stack(None)
        nothing = np.full((stack.n_layers, max(map(stack.n_heads, range(stack.n_layers)))), np.nan)
        if name and name in SCORES and name not in self.weights:
            batch = self.setup.given if self.setup.given is not None else self.setup.random.task(1)
            try:
                self.weights[name] = score(self.setup.model, batch, name)[name].values
            except HeadscopeError as error:
                self.weights[name] = nothing
                self.notes.append(f"The score of weights {name!r} is left out: {error}")
        found = self.weights.get(name, nothing)
        return found if found.shape == nothing.shape else nothing


def no_rows() -> pd.DataFrame:
    """A table of no tests."""
    return pd.DataFrame({name: [] for name in (*WORDS, *NUMBERS)} | {name: np.zeros(0, bool) for name in TRUTHS})


def _test_of(kind: HeadType, batch: Batch | None) -> HeadTest:
    if kind.test is None:
        raise BadInput(f"There is no test here; it would need {kind.missing}.")
    if kind.test.prompts != "given" and kind.test.task != "given":
        return kind.test
    if batch is None:
        raise BadInput("It is about the answers of a batch; give batch= with answers.")
    for name in kind.test.spans:
        if name not in batch.spans:
            raise BadInput(f"{unknown(name, batch.spans, 'span')} Name it with encode(..., spans={{{name!r}: ...}}).")
    if kind.test.more_spans and len(names_of(batch, kind.test.more_spans)) < 2:  # noqa: PLR2004 - a choice
        raise BadInput(
            f"The batch has no spans '{kind.test.more_spans} 0', '{kind.test.more_spans} 1' ...; name them with "
            "encode(..., spans={...})."
        )
    return kind.test


def _function(place: str) -> Callable[[Setup], PatternReading]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _plain(head: Head) -> Head:
    return Head(head.layer, head.index)
