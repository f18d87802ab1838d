"""The attention basin: how much attention each place of a list gets, whatever stands there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model
from interp.results import CONFIDENCE, HeadScores
from interp.scores.dropping import Sinks
from interp.scores.groups.items import ITEM
from interp.scores.score import score
from interp.stats import Interval, bootstrap_means, mean_interval

TEMPLATE = "{items}\n\n{question}"
FEWEST_PLACES = 3  # with two there is no inside


@dataclass(frozen=True, eq=False)
class RotatedItems:
    """Prompts in which every item of a list stands once at every place.

    Attributes:
        batch: the prompts, with spans ``item 1`` ... ``item K``.
        probe: which list each prompt was made of; prompts of one list are resampled together.
        placed: ``[prompt, slot]`` the number of the item that stands there.
    """

    batch: Batch
    probe: tuple[int, ...]
    placed: np.ndarray


def rotated_items(
    model: Model,
    items: Sequence[Sequence[str]],
    questions: Sequence[str] | str = "",
    *,
    template: str = TEMPLATE,
    item: str = "{item}",
    separator: str = "\n\n",
    answers: Sequence[Any] | None = None,
    **encoding: Any,
) -> RotatedItems:
    """For every list of K items K prompts, each with the items moved on by one place: contents cancel out of the mean.

    Args:
        model: the handle.
        items: lists of texts, all of one length.
        questions: one per list, or one for all.
        template: the prompt, with ``{items}`` and ``{question}``.
        item: one item, with ``{item}`` and, where wanted, ``{number}`` (of the place, from 1).
        separator: between items; leave it out (``""``) to see whether the basin hangs on delimiters.
        answers: per list what the batch's answers should be, as in :func:`interp.encode`.
        **encoding: further keywords of :func:`interp.encode`.

    Raises:
        BadInput: fewer than two items, lists of different lengths, or a template without its places.

    Example:
        >>> import interp
        >>> model = interp.load("induction")
        >>> made = rotated_items(model, [["the cat", "a dog", "my hat"]], separator=" ", template="{items} {question}")
        >>> made.placed.tolist(), sorted(made.batch.spans)
        ([[0, 1, 2], [1, 2, 0], [2, 0, 1]], ['item 1', 'item 2', 'item 3'])
    """
    lengths = {len(row) for row in items}
    if len(lengths) != 1 or min(lengths) < 2:  # noqa: PLR2004 - places differ
        raise BadInput(f"rotated_items: lists of {sorted(lengths)} items; give lists of one length, of at least two.")
    asked = [questions] * len(items) if isinstance(questions, str) else list(questions)
    if len(asked) != len(items):
        raise BadInput(f"rotated_items: {len(asked)} questions for {len(items)} lists; give one each, or one for all.")
    if template.count("{items}") != 1 or "{item}" not in item:
        raise BadInput(f"rotated_items: template={template!r}, item={item!r}; expected {{items}} once, and {{item}}.")
    k = lengths.pop()
    texts, spans, probe, placed = [], {f"{ITEM}{slot + 1}": [] for slot in range(k)}, [], []
    for number, (contents, question) in enumerate(zip(items, asked, strict=True)):
        for turn in range(k):
            order = [(slot + turn) % k for slot in range(k)]
            text, edges = _prompt([contents[one] for one in order], question, template, item, separator)
            texts.append(text)
            for slot, edge in enumerate(edges):
                spans[f"{ITEM}{slot + 1}"].append(edge)
            probe.append(number)
            placed.append(order)
    repeated = None if answers is None else [answers[number] for number in probe]
    batch = encode(model, texts, spans=spans, answers=repeated, **encoding)
    return RotatedItems(batch, tuple(probe), np.array(placed))


def _prompt(
    contents: Sequence[str], question: str, template: str, item: str, separator: str
) -> tuple[str, list[tuple[int, int]]]:
    before, after = (part.replace("{question}", question) for part in template.split("{items}"))
    text, edges = before, []
    for slot, content in enumerate(contents):
        text += separator if slot else ""
        start = len(text)
        text += item.replace("{number}", str(slot + 1)).replace("{item}", content)
        edges.append((start, len(text)))
    return text + after, edges


@dataclass(frozen=True, eq=False, repr=False)
class AttentionBasin:
    """How attention to the items of a list is shared among their places.

    Attributes:
        scores: the shares of every head, per prompt, one bin per place.
        layers: the layers that the curve is the mean of.
        per_prompt: ``[prompt, slot]`` mean over the heads of these layers.
        cluster: which prompts are resampled together.
        metadata: how it was made.
    """

    scores: HeadScores
    layers: tuple[int, ...]
    per_prompt: Float[np.ndarray, "prompt slot"]
    cluster: tuple[Any, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def curve(self) -> Float[np.ndarray, " slot"]:
        """``b_k``: the mean over prompts and heads; sums to 1."""
        return self.per_prompt.mean(0)

    def depth(self, *, confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
        """How deep the inside lies below the ends, in multiples of the mean: 0 for a flat curve.

        ``((b_1 + b_K) / 2 - min of b_2 ... b_{K-1}) / mean b``, with its bootstrap interval over prompts
        (clusters). The place of the minimum is that of the whole curve.

        Raises:
            BadInput: fewer than three places.
        """
        curve = self.curve
        if len(curve) < FEWEST_PLACES:
            raise BadInput(f"depth: {len(curve)} places have no inside; give at least {FEWEST_PLACES} items.")
        lowest = 1 + int(curve[1:-1].argmin())
        own = (self.per_prompt[:, 0] + self.per_prompt[:, -1]) / 2 - self.per_prompt[:, lowest]
        return mean_interval(own * len(curve), confidence=confidence, seed=seed, cluster=self.cluster)

    def table(self, *, confidence: float = CONFIDENCE) -> pd.DataFrame:
        """One row per place: share of the attention, and its interval over prompts."""
        low, high = bootstrap_means(self.per_prompt, confidence=confidence, cluster=self.cluster)
        names = list(self.scores.positions or ())
        return pd.DataFrame({"place": names, "value": self.curve, "low": low, "high": high})

    def order(self, relevance: Sequence[float]) -> list[int]:
        """The item to put at each place: :func:`attention_rank` of this curve."""
        return attention_rank(self.curve, relevance)

    def __repr__(self) -> str:
        return f"AttentionBasin({np.round(self.curve, 3).tolist()}, layers {list(self.layers)})"


def attention_basin(
    model: Model,
    batch: Batch | RotatedItems,
    *,
    items: Any = None,
    queries: Any = None,
    layers: int | Sequence[int] | None = None,
    per_token: bool = False,
    cluster: Sequence[Any] | None = None,
    exclude_sinks: Sinks = None,
) -> AttentionBasin:
    """The share of attention that each place of a list gets, averaged over contents and heads, with its interval.

    ``b_k = mean over prompts and heads of sum_{j in item k} A_ij``, divided by its sum over k, of the first layer
    ("Attention Basin: Why Contextual Position
    Matters in Large Language Models", 2025).

    Args:
        model: the handle.
        batch: what :func:`rotated_items` made; or a batch whose contents change places over its prompts.
        items, queries, per_token: as in :func:`interp.scores.groups.items.item_attention`.
        layers: whose heads the curve averages; the first layer with attention for None.
        cluster: one label per prompt; the list that it was made of, for rotated items.
        exclude_sinks: key columns to leave out; see :func:`interp.scores.dropping.dropped_columns`.

    Raises:
        BadInput: a layer that is not there, or items that do not fit.

    Example:
        >>> import interp
        >>> model = interp.load("induction")
        >>> made = interp.rotated_items(model, [["the cat", "a dog", "my hat"]], "the", separator=" ")
        >>> round(float(interp.attention_basin(model, made).curve.sum()), 6)
        1.0
    """
    prompts, labels = (batch.batch, batch.probe) if isinstance(batch, RotatedItems) else (batch, None)
    options = {"items": items, "queries": queries, "per_token": per_token}
    found = score(model, prompts, {"item_attention": options}, exclude_sinks=exclude_sinks)["item_attention"]
    stack = model.stack()
    with_heads = [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]
    chosen = with_heads[:1] if layers is None else [layers] if isinstance(layers, int) else list(layers)
    wrong = [layer for layer in chosen if layer not in with_heads]
    if wrong or not chosen:
        raise BadInput(f"attention_basin: layers={layers!r}; expected some of {with_heads}.")
    own = found.samples[:, chosen]
    exists = found.exists[stack.name][chosen]
    per_prompt = np.nanmean(own[:, exists], axis=1)
    group = tuple(cluster) if cluster is not None else labels
    about = {"model": model.name, "per_token": per_token, "prompts": len(prompts)}
    return AttentionBasin(found, tuple(chosen), per_prompt, group, about)


def attention_rank(curve: Sequence[float] | np.ndarray, relevance: Sequence[float] | np.ndarray) -> list[int]:
    """For each place the number of the item to put there: the i-th most relevant at the i-th most attended place.

    Where the curve falls from the first place on this sorts the items by relevance. Ties keep their order.

    Args:
        curve: attention of each place.
        relevance: of each item.

    Raises:
        BadInput: another number of items than places, or NaN.

    Example:
        >>> attention_rank([0.5, 0.1, 0.4], [0.2, 0.9, 0.7])
        [1, 0, 2]
    """
    places, worth = np.asarray(curve, dtype=float), np.asarray(relevance, dtype=float)
    if places.ndim != 1 or places.shape != worth.shape or not (np.isfinite(places).all() and np.isfinite(worth).all()):
        raise BadInput(
            f"attention_rank: {places.shape} places and {worth.shape} items; give one finite number for each of both."
        )
    made = np.empty(len(places), dtype=int)
    made[np.argsort(-places, kind="stable")] = np.argsort(-worth, kind="stable")
    return made.tolist()
