"""``attention_by_relation``: the mean attention of relation classes pooled over prompts, with its permutation null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.address import Head
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.stacks import Stack
from interp.scores.ask import Ask
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.groups.groups import members_of
from interp.scores.groups.relations import (
    IGNORED,
    Relation,
    RelationSums,
    by_label,
    compared_classes,
    edges_of,
    label_codes,
    mean_by_class,
    relation_of,
)
from interp.scores.positions.position import ids_and_mask

DRAWS = 1000  # resamples of an interval


@dataclass(frozen=True, eq=False, repr=False)
class RelationAttention:
    """Attention summed over the pairs of relation classes, prompt by prompt.

    Attributes:
        classes: what the classes are.
        edges: distances at which strata begin, ``(0,)`` without strata.
        sums: ``[prompt, layer, head, stratum, class]`` attention; NaN where no head is.
        pairs: the same, how many visible pairs.
        rows: ``[prompt, layer, head]`` query rows that have a pair.
        null_sums, null_pairs, null_rows: the same with a leading axis ``draw``, under permuted labels (or rewired
            graphs); length 0 without.
        default_stack, stack: for names of heads.
        metadata: how it was made.
    """

    classes: tuple[str, ...]
    edges: tuple[int, ...]
    sums: Float[np.ndarray, "prompt layer head stratum cls"]
    pairs: Float[np.ndarray, "prompt layer head stratum cls"]
    rows: Float[np.ndarray, "prompt layer head"]
    null_sums: Float[np.ndarray, "draw prompt layer head stratum cls"]
    null_pairs: Float[np.ndarray, "draw prompt layer head stratum cls"]
    null_rows: Float[np.ndarray, "draw prompt layer head"]
    default_stack: str
    stack: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def means(self) -> Float[np.ndarray, "layer head cls"]:
        """The mean attention of a pair of each class: sum of sums over sum of counts, all prompts pooled."""
        return _means(self.sums.sum(0), self.pairs.sum(0), None)

    @property
    def mass(self) -> Float[np.ndarray, "layer head cls"]:
        """The attention of a row to all its keys of each class together, mean over the rows of all prompts."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums.sum((0, 3)) / self.rows.sum(0)[..., None]

    def log_ratio(
        self, first: str | None = None, second: str | None = None, *, epsilon: float = 0.0, matched: bool = False
    ) -> Float[np.ndarray, "layer head"]:
        """``log((M_first + epsilon) / (M_second + epsilon))`` of the pooled means, in nats.

        Args:
            first, second: the classes; the last two for None.
            epsilon: keeps it finite where a class gets nothing.
            matched: compare pairs of the same distance (needs strata).

        Raises:
            BadInput: an unknown class, or ``matched`` without strata.
        """
        return self._ratio(self.sums.sum(0), self.pairs.sum(0), self._two(first, second), epsilon, matched)

    def p(
        self, first: str | None = None, second: str | None = None, *, epsilon: float = 1e-9, matched: bool = False
    ) -> Float[np.ndarray, "layer head"]:
        """``[layer, head]`` share of null draws, the true one counted, whose log ratio is at least as large.

        ``p = (1 + #{null >= observed}) / (1 + draws)``. Under permuted labels the classes differ by chance alone.

        Raises:
            BadInput: made without draws.
        """
        if not len(self.null_sums):
            raise BadInput("p: there is no null; ask for one with attention_by_relation(..., draws=99).")
        two = self._two(first, second)
        found = self._ratio(self.sums.sum(0), self.pairs.sum(0), two, epsilon, matched)
        null = self._ratio(self.null_sums.sum(1), self.null_pairs.sum(1), two, epsilon, matched)
        beaten = (null >= found).sum(0)
        return np.where(np.isnan(found), np.nan, (1 + beaten) / (1 + len(null)))

    def table(
        self,
        first: str | None = None,
        second: str | None = None,
        *,
        matched: bool = False,
        epsilon: float = 1e-9,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> pd.DataFrame:
        """One row per head: pooled means of every class, the log ratio of two with its interval over prompts, and p.

        The interval is the percentile bootstrap over prompts of the pooled ratio; NaN with one prompt. ``p`` is there
        with a null.
        """
        two = self._two(first, second)
        ratio = self.log_ratio(first, second, epsilon=epsilon, matched=matched)
        low, high = self._ends(two, epsilon, matched, confidence, seed)
        p = self.p(first, second, epsilon=epsilon, matched=matched) if len(self.null_sums) else None
        rows = []
        for layer, head in np.argwhere(np.isfinite(self.rows).any(0)).tolist():
            own = None if self.stack == self.default_stack else self.stack
            row: dict[str, Any] = {"label": str(Head(layer, head, own)), "layer": layer, "head": head}
            row |= dict(zip(self.classes, self.means[layer, head].tolist(), strict=True))
            row |= {"log ratio": ratio[layer, head], "low": low[layer, head], "high": high[layer, head]}
            rows.append(row if p is None else {**row, "p": p[layer, head]})
        return pd.DataFrame(rows).sort_values("log ratio", ascending=False, kind="stable", ignore_index=True)

    def _two(self, first: str | None, second: str | None) -> tuple[int, int]:
        if (first is None) != (second is None):
            raise BadInput("Name both classes to compare, or none for the last two.")
        return compared_classes("this table", self.classes, None if first is None else [first, str(second)])

    def _ratio(
        self, sums: np.ndarray, pairs: np.ndarray, two: tuple[int, int], epsilon: float, matched: bool
    ) -> np.ndarray:
        if matched and len(self.edges) == 1:
            raise BadInput(
                "matched=True: this table has no strata; ask for attention_by_relation(stratify='distance')."
            )
        means = _means(sums, pairs, two if matched else None)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(means[..., two[0]] + epsilon) - np.log(means[..., two[1]] + epsilon)

    def _ends(
        self, two: tuple[int, int], epsilon: float, matched: bool, confidence: float, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.sums)
        blank = np.full(self.rows.shape[1:], np.nan)
        if n < 2:  # noqa: PLR2004 - one prompt has no spread
            return blank, blank
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        draws = np.stack(
            [
                self._ratio(
                    np.einsum("p,p...->...", weight, self.sums),
                    np.einsum("p,p...->...", weight, self.pairs),
                    two,
                    epsilon,
                    matched,
                )
                for weight in weights
            ]
        )
        finite = np.isfinite(draws).any(0)
        low, high = blank.copy(), blank.copy()
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        low[finite], high[finite] = np.nanquantile(draws[:, finite], ends, axis=0)
        return low, high

    def __repr__(self) -> str:
        n, layers, heads = self.rows.shape
        return f"RelationAttention({', '.join(self.classes)}; {n} prompts, {layers} layers x {heads} heads)"


def _means(sums: np.ndarray, pairs: np.ndarray, compared: tuple[int, int] | None) -> np.ndarray:
    return mean_by_class(torch.from_numpy(sums), torch.from_numpy(pairs), compared).numpy()


def attention_by_relation(
    model: Model,
    batch: Batch,
    labels: Any = None,
    *,
    relation: Any = None,
    classes: Sequence[str] | None = None,
    queries: Any = None,
    stratify: Any = None,
    draws: int = 0,
    seed: int = 0,
    stack: str | None = None,
    exclude_sinks: Sinks = None,
) -> RelationAttention:
    """The attention that goes between tokens of the same and of different labels, pooled over prompts, with its null.

    Args:
        model: the handle.
        batch: the prompts.
        labels, relation, classes, queries, stratify: as in the score ``relation_attention``.
        draws: how many times each prompt's labels are permuted among its labelled tokens (needs ``labels``).
        seed: of the permutations.
        stack: whose heads; the default stack for None.
        exclude_sinks: key columns to leave out; see :func:`interp.scores.dropping.dropped_columns`.

    ``M_r = sum A_ij / #{(i, j)}`` over the visible pairs of class r of all prompts (Li et al., 2023, "How Do
    Transformers Learn Topic Structure"). Permuting labels keeps their numbers and the tokens' places; with labels that
    follow the distance (syntax), match distances as well.

    Raises:
        BadInput: options that do not fit the prompts, or draws without labels.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4]]))
        >>> found = attention_by_relation(model, batch, torch.tensor([[-1, 0, 1, 1, 0, 1]]), draws=19)
        >>> found.classes, found.p().shape
        (('itself', 'same token', 'same label', 'different label'), (2, 2))
    """
    if draws < 0 or (draws and labels is None):
        raise BadInput(f"attention_by_relation: draws={draws} permutes labels; give labels=, and draws of 0 or more.")
    place = model.stack(stack)
    ask = Ask("attention_by_relation", model, batch, place, dropped_columns(exclude_sinks, batch, place), seed)
    relations = [relation_of(ask, labels=labels, relation=relation, classes=classes)]
    if draws:
        ids, mask = ids_and_mask(ask)
        relations += [by_label(ids, mask, codes) for codes in permuted(label_codes(ask, labels), draws, seed)]
    return gathered(ask, relations, queries, stratify)


def permuted(codes: Int[Tensor, "batch pos"], draws: int, seed: int) -> list[Int[Tensor, "batch pos"]]:
    """``draws`` times the labels of each prompt, permuted among its labelled tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(draws):
        drawn = codes.clone()
        for row in range(len(codes)):
            own = (codes[row] != IGNORED).nonzero()[:, 0]
            order = torch.randperm(len(own), generator=generator).to(own.device)
            drawn[row, own] = codes[row, own[order]]
        made.append(drawn)
    return made


def gathered(ask: Ask, relations: Sequence[Relation], queries: Any, stratify: Any) -> RelationAttention:
    """One forward, in which the first relation is summed, and the others as its null."""
    rows = None if queries is None else members_of(ask, queries, "queries", keys=False)[1].any(0)
    edges = edges_of(ask.name, stratify, ask.batch.width)
    reducer = RelationSums(ask, relations, rows, edges)
    ask.stream([reducer])
    sums, pairs = (_grid(kept, ask.stack) for kept in (reducer.sums, reducer.counts))
    numbers = _grid(reducer.numbers, ask.stack)
    return RelationAttention(
        classes=relations[0].classes,
        edges=edges or (0,),
        sums=sums[0],
        pairs=pairs[0],
        rows=numbers[0],
        null_sums=sums[1:],
        null_pairs=pairs[1:],
        null_rows=numbers[1:],
        default_stack=ask.model.default_stack,
        stack=ask.stack.name,
        metadata={"model": ask.model.name, "prompts": len(ask.batch)},
    )


def _grid(kept: dict[int, Tensor], stack: Stack) -> np.ndarray:
    """``[relation, prompt, layer, head, ...]``, NaN where no head is."""
    first = next(iter(kept.values()))
    widest = max(stack.n_heads(layer) for layer in range(stack.n_layers))
    made = np.full((*first.shape[:2], stack.n_layers, widest, *first.shape[3:]), np.nan)
    for layer, values in kept.items():
        made[:, :, layer, : values.shape[2]] = values.cpu().numpy()
    return made
