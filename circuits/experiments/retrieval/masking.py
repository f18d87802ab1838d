"""Answers without some heads: the top heads by score, and random sets that share none with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import interp
from circuits.experiments.retrieval.prompts import Prompts
from interp.address import Head
from interp.attribution.removal import removal
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.stats import matched_random_sets

SAME_LAYERS, LATER_LAYERS, ALL_LAYERS = "same layers", "later layers", "all layers"
CONTROLS = (SAME_LAYERS, LATER_LAYERS, ALL_LAYERS)
CONTROL_WORDS: Mapping[str, str] = MappingProxyType(
    {
        SAME_LAYERS: "as many other heads of each layer as the top heads have there",
        LATER_LAYERS: "heads below the threshold from all layers but the first",
        ALL_LAYERS: "heads below the threshold from all layers",
    }
)


@dataclass(frozen=True)
class HeadSets:
    """The sets that are masked.

    Attributes:
        chosen: count -> the top heads.
        random: (control, count) -> random sets, all without a head of ``chosen``; empty where there are too few heads.
    """

    chosen: Mapping[int, tuple[Head, ...]]
    random: Mapping[tuple[str, int], tuple[tuple[Head, ...], ...]]

    def every(self) -> list[tuple[Head, ...]]:
        """All different sets, the empty one first."""
        sets = [(), *self.chosen.values(), *(one for sets in self.random.values() for one in sets)]
        return [tuple(one) for one in dict.fromkeys(tuple(sorted(one)) for one in sets)]


def head_sets(
    order: Sequence[Head], over: Sequence[Head], widths: Sequence[int], *, counts: Sequence[int], draws: int, seed: int
) -> HeadSets:
    """The top heads and their controls.

    Args:
        order: all heads, the largest score first.
        over: those over the threshold, which the two wider controls never hold.
        widths: heads of each layer.
        counts: how many heads are masked together.
        draws: random sets for each control and count.
        seed: of the draws.

    Example:
        >>> order = [Head(1, 0), Head(1, 1), Head(0, 0), Head(0, 1)]
        >>> sets = head_sets(order, order[:1], [2, 2], counts=[1], draws=2, seed=0)
        >>> [str(head) for head in sets.chosen[1]], sets.random["same layers", 1]
        (['L1.H0'], ((Head(layer=1, index=1, stack=None),),))
    """
    chosen = {count: tuple(order[:count]) for count in counts if count <= len(order)}
    first = min(head.layer for head in order)
    random: dict[tuple[str, int], tuple[tuple[Head, ...], ...]] = {}
    for count, heads in chosen.items():
        matched = matched_random_sets(heads, widths, n_draws=draws, seed=seed, overlap=False)
        random[SAME_LAYERS, count] = matched.sets
        low = [head for head in sorted(order) if head not in set(over) | set(heads)]
        later = [head for head in low if head.layer > first]
        for name, pool in ((LATER_LAYERS, later), (ALL_LAYERS, low)):
            random[name, count] = _drawn(pool, count, draws, seed)
    return HeadSets(chosen, random)


def _drawn(pool: Sequence[Head], count: int, draws: int, seed: int) -> tuple[tuple[Head, ...], ...]:
    """Different sets of ``count`` heads, at most ``draws`` of them."""
    if len(pool) < count:
        return ()
    generator = np.random.default_rng([seed, count])
    found = dict.fromkeys(
        tuple(sorted(pool[place] for place in generator.choice(len(pool), count, replace=False)))
        for _ in range(20 * draws)
    )
    return tuple(found)[:draws]


def answers_without(
    model: Model,
    prompts: Prompts,
    sets: Sequence[Sequence[Head]],
    mask: str,
    reference: Prompts | None,
    done: Callable[[], None],
) -> Float[np.ndarray, "set prompt"]:
    """Share of the answer's tokens that are the most likely next token, teacher-forced, without each set of heads.

    Args:
        model: the handle.
        prompts: of one length.
        sets: heads that are masked together; the empty set is the model itself.
        mask: what a masked head's output becomes: ``"zero"``; ``"uniform"`` it attends evenly to what it sees, which
            is what a query of zeros makes of it; ``"mean"`` its mean over ``reference``.
        reference: for ``"mean"``.
        done: called after every set.
    """
    batch = prompts.batch(model)
    other = reference.batch(model) if reference is not None and mask == "mean" else None
    edits_of = removal(model, batch, model.heads(), replacement=mask, reference=other)
    rows, wanted = _answer_rows(batch)
    values = []
    for heads in sets:
        logits = interp.run(model, batch, edits=edits_of(list(heads)), logits=rows).logits
        assert logits is not None
        values.append((logits.argmax(-1) == wanted).double().mean(1).cpu().numpy())
        done()
    return np.stack(values)


def _answer_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """``[batch, k]`` the columns that predict the answer's tokens, and those tokens; answers of one length."""
    assert batch.ids is not None
    columns = torch.nonzero(batch.spans["answer"], as_tuple=True)[1].view(len(batch), -1)
    return columns - 1, batch.ids.gather(1, columns)
