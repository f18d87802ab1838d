"""Between two models of one shape: which heads became active, which fell silent, and whether that matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.address import Head
from interp.attribution.attribute import attribute
from interp.attribution.curve import metric_name
from interp.attribution.doses import FACTORS, Doses, head_doses
from interp.attribution.halves import halves, labels_of, share_prompts
from interp.attribution.head_sets import HeadSet, columns_of_heads, default_threshold, head_set
from interp.errors import BadInput
from interp.metrics import logit_difference, metric_for
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric
from interp.results import HeadScores
from interp.stats import bootstrap_means
from interp.tensor_file import plain_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CORRELATED = 3  # heads that a correlation needs


@dataclass(frozen=True, eq=False, repr=False)
class HeadChanges:
    """The active heads of two models side by side; prints a sentence. Made by ``interp.compare_heads``.

    Attributes:
        scores: the table of each model, the first and the second.
        sets: the active heads of each.
        doses: ``"gained"`` and ``"lost"`` -> what scaling those heads does, in the model where they are active.
        metadata: how the numbers were made.
    """

    scores: tuple[HeadScores, HeadScores]
    sets: tuple[HeadSet, HeadSet]
    doses: dict[str, Doses] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def gained(self) -> tuple[Head, ...]:
        """Heads active in the second model and not in the first."""
        return self._where(~self.sets[0].member & self.sets[1].member)

    @property
    def lost(self) -> tuple[Head, ...]:
        """Heads active in the first model and not in the second."""
        return self._where(self.sets[0].member & ~self.sets[1].member)

    @property
    def shared(self) -> tuple[Head, ...]:
        """Heads active in both."""
        return self._where(self.sets[0].member & self.sets[1].member)

    @property
    def jaccard(self) -> float:
        """Shared heads over heads active in either; 1 where no head is active in both models alike."""
        either = int((self.sets[0].member | self.sets[1].member).sum())
        return len(self.shared) / either if either else 1.0

    @property
    def weight_corr(self) -> float:
        """Pearson's correlation of the two tables' values over all heads; NaN where one of them is constant."""
        first, second = (each.values for each in self.sets)
        both = np.isfinite(first) & np.isfinite(second)
        first, second = first[both], second[both]
        if first.size < _CORRELATED or np.ptp(first) == 0 or np.ptp(second) == 0:
            return float("nan")
        return float(np.corrcoef(first, second)[0, 1])

    @property
    def change(self) -> HeadScores:
        """Second minus first, head by head, paired by sample where both tables have the same samples."""
        first, second = self.scores
        paired = first.sample_axis == second.sample_axis and first.samples.shape == second.samples.shape
        return HeadScores.from_array(
            second.samples - first.samples if paired else second.values - first.values,
            name=f"change of {second.name}",
            quantity=second.quantity,
            sense=second.sense,
            sample_axis=second.sample_axis if paired else None,
            stack=second.stacks[0],
            default_stack=second.default_stack,
            exists=second.exists[second.stacks[0]],
            cluster=second.cluster if paired else None,
        )

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per head: both values, their change with its interval, both supports, and what became of it."""
        heads, samples = columns_of_heads(self.change)
        low, high = bootstrap_means(samples, confidence=confidence, cluster=self.change.cluster)
        first, second = self.sets
        names = np.array(["", "lost", "gained", "shared"], dtype=object)
        return pd.DataFrame(
            {
                "label": [str(head) for head in heads],
                "stack": [head.stack or self.change.default_stack for head in heads],
                "layer": [head.layer for head in heads],
                "head": [head.index for head in heads],
                "first": first.values,
                "second": second.values,
                "change": second.values - first.values,
                "low": low,
                "high": high,
                "first_support": first.support,
                "second_support": second.support,
                "status": names[first.member + 2 * second.member],
            }
        )

    def dose_table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per group of heads and factor, as in ``Doses.table``; empty where nothing was gained or lost."""
        parts = []
        for name, doses in self.doses.items():
            rows = doses.table(confidence=confidence)
            rows.insert(0, "group", name)
            parts.append(rows)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def plot(self, *, title: str = "") -> go.Figure:
        """A plotly heatmap of the change of every head; heads gained or lost are outlined."""
        return self.change.plot(title=title, marked=[*self.gained, *self.lost])

    def __str__(self) -> str:
        def named(heads: tuple[Head, ...]) -> str:
            return ", ".join(map(str, heads)) or "none"

        return (
            f"Gained {named(self.gained)}; lost {named(self.lost)}; shared {named(self.shared)} "
            f"(Jaccard {self.jaccard:.2f}, threshold {self.sets[0].threshold:.3g})."
        )

    def __repr__(self) -> str:
        return f"HeadChanges({len(self.gained)} gained, {len(self.lost)} lost, {len(self.shared)} shared)"

    def _where(self, chosen: np.ndarray) -> tuple[Head, ...]:
        return tuple(head for head, inside in zip(self.sets[1].heads, chosen, strict=True) if inside)


def compare_heads(
    first: Model,
    second: Model,
    batch: Batch,
    *,
    method: str | tuple[HeadScores, HeadScores] = "zero",
    metric: Metric | str = logit_difference,
    threshold: float | None = None,
    by: str = "abs",
    confidence: float = 0.95,
    factors: Sequence[float] = FACTORS,
    random: int = 200,
    evaluation: Batch | None = None,
    stack: str | None = None,
    cluster: Sequence[object] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> HeadChanges:
    """Heads gained, lost and shared between two models of one shape, and what scaling the gained and lost ones does.

    Args:
        first, second: the models, such as two checkpoints of one training; heads are matched by layer and index, which
            means something only within one lineage.
        batch: the prompts, the same for both. One half finds the active heads and the other half tests them, where
            ``factors`` are given and ``evaluation`` is not.
        method: a method of ``interp.attribute``, or the tables of both models made elsewhere.
        metric: ``(logits, batch) -> [batch]``, or the name of a metric.
        threshold: a head is active where its mean value is at least this large in a share ``confidence`` of resampled
            prompts; a tenth of the largest value in either table by default.
        by: ``"abs"`` the size of the value; ``"helps"`` or ``"hurts"`` its size in that direction.
        confidence: see ``threshold``.
        factors: what the gained heads are multiplied by in the second model and the lost ones in the first; 0 ablates
            them; () leaves the test out.
        random: most random sets with as many heads in every layer to compare with.
        evaluation: the prompts that test, where they are not to be a half of ``batch``.
        stack: whose heads; the default stack for None.
        cluster: one label per prompt of ``batch``; those of one label go to the same half and are resampled together.
        batch_size, progress: as in ``interp.sweep``.
        seed: of the halves, the resampling and the random sets.
        **options: further arguments of ``interp.attribute``; a ``source`` is halved along with the batch.

    With C1 and C2 the active heads: gained ``C2 - C1``, lost ``C1 - C2``, jaccard ``|C1 & C2| / |C1 | C2|``. Emergent
    heads between checkpoints: "Thinking Sparks! Emergent Attention Heads in Reasoning Models During Post Training"
    (2025, arXiv 2509.25758), who take the heads of circuits found by edge attribution.

    Raises:
        BadInput: models of other shapes or vocabularies, or numbers that cannot be, before any forward pass.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3], [0, 5, 6, 5]], answers=[(4, 5), (6, 4)])
        >>> print(compare_heads(model, model, batch))
        Gained none; lost none; shared L0.H0, L1.H0 (Jaccard 1.00, threshold 1).
    """
    refuse_other_shape(first, second)
    labels = labels_of(batch, cluster)
    selection, tested, tested_labels = batch, evaluation, None
    if isinstance(method, str) and len(factors) and evaluation is None:
        split = halves(batch, cluster=cluster, seed=seed)
        selection, labels = split.selection, split.selection_cluster
        tested, tested_labels = split.evaluation, split.evaluation_cluster
        if isinstance(options.get("source"), Batch):
            options = {**options, "source": options["source"].select(split.selection_places)}
    elif evaluation is None and len(factors):
        tested, tested_labels = batch, labels
    if isinstance(method, str):
        settings: dict[str, Any] = {
            "metric": metric, "stack": stack, "cluster": labels, "batch_size": batch_size, "seed": seed,
            "progress": progress, **options,
        }  # fmt: skip
        scores = (attribute(first, selection, method, **settings), attribute(second, selection, method, **settings))
    else:
        scores = _checked_tables(method)
    limit = default_threshold(scores) if threshold is None else threshold
    sets = tuple(head_set(table, threshold=limit, by=by, confidence=confidence, seed=seed) for table in scores)
    about = {
        "method": method if isinstance(method, str) else scores[0].name,
        "metric": metric_name(metric),
        "models": [first.name, second.name],
        "by": by,
        "confidence": confidence,
        "seed": seed,
        "disjoint": not share_prompts(selection, tested) if isinstance(method, str) and tested is not None else None,
    }
    found = HeadChanges(scores, (sets[0], sets[1]), {}, plain_json(about))
    doses: dict[str, Doses] = {}
    for name, heads, model in (("gained", found.gained, second), ("lost", found.lost, first)):
        if heads and len(factors) and tested is not None:
            doses[name] = head_doses(
                model, tested, heads, metric_for(metric, model, tested), factors=factors, random=random, seed=seed,
                cluster=tested_labels, batch_size=batch_size, progress=progress,
            )  # fmt: skip
    return HeadChanges(scores, (sets[0], sets[1]), doses, found.metadata)


def shape_of(model: Model) -> dict[str, list[int]]:
    """Stack -> number of heads of each layer."""
    return {name: [each.n_heads(layer) for layer in range(each.n_layers)] for name, each in model.stacks.items()}


def refuse_other_shape(first: Model, second: Model) -> None:
    """Refuse two models whose heads or tokens cannot be matched.

    Raises:
        BadInput: another number of layers or heads, or another vocabulary.
    """
    shapes = shape_of(first), shape_of(second)
    if shapes[0] != shapes[1]:
        raise BadInput(
            f"{first.name!r} has the heads per layer {shapes[0]} and {second.name!r} has {shapes[1]}; heads can be "
            "matched by layer and index in models of one shape alone, such as checkpoints of one training."
        )
    tokenizers = first.tokenizer, second.tokenizer
    if all(hasattr(each, "get_vocab") for each in tokenizers):
        vocabularies = [each.get_vocab() for each in tokenizers]
        if vocabularies[0] != vocabularies[1]:
            raise BadInput(
                f"{first.name!r} and {second.name!r} have different vocabularies, so the same ids are other words to "
                "each; encode for both apart, and give the two tables as method=(first, second)."
            )


def _checked_tables(tables: Any) -> tuple[HeadScores, HeadScores]:
    if not (isinstance(tables, tuple | list) and len(tables) == 2 and all(isinstance(t, HeadScores) for t in tables)):  # noqa: PLR2004
        raise BadInput(f"method={tables!r}; expected a method's name, or the HeadScores of both models.")
    first, second = tables
    for name in ("name", "quantity", "sense", "unit", "stacks"):
        if getattr(first, name) != getattr(second, name):
            raise BadInput(
                f"The two tables differ in {name}: {getattr(first, name)!r} and {getattr(second, name)!r}; compare "
                "what was measured the same way."
            )
    if len(first.stacks) != 1 or not np.array_equal(first.exists[first.stacks[0]], second.exists[first.stacks[0]]):
        raise BadInput(
            "The two tables hold other heads, or several stacks; give tables of the same heads of one stack."
        )
    return first, second
