"""Whether gates say what heads do: cumulative ablation on other prompts, and heads that mediate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats as scipy_stats
from torch import Tensor

from interp.address import At, Head, Site
from interp.attribution.aie import mediating_heads
from interp.attribution.gating.gates import ROLES, Gates
from interp.attribution.gating.targets import Targets
from interp.edits import gate
from interp.edits.base import Edit
from interp.errors import BadInput
from interp.metrics import loss
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.sweep import sweep
from interp.names import lookup
from interp.results import HeadScores
from interp.stats import mean_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class CumulativeAblation:
    """Log-probability of the targets while heads are removed one after the other, and while they are kept.

    Attributes:
        score: what the heads were sorted by, largest first.
        heads: in that order.
        retained: ``[step, batch]`` with the gates of the first ``step + 1`` heads at 1 and the others at ``G+``.
        ablated: ``[step, batch]`` with those at 0.
        seed: whose ``G+`` it is.
    """

    score: str
    heads: tuple[Head, ...]
    retained: Float[np.ndarray, "step batch"]
    ablated: Float[np.ndarray, "step batch"]
    seed: int

    @property
    def effects(self) -> Float[np.ndarray, "step batch"]:
        """``ablated - retained``: below 0 where the heads facilitate, near 0 where they do not matter."""
        return self.ablated - self.retained

    def table(self, *, confidence: float = 0.95) -> pd.DataFrame:
        """One row per step: the head added, the means, and the effect with its bootstrap interval over prompts."""
        several = self.effects.shape[1] > 1
        ends = [mean_interval(row, confidence=confidence) if several else None for row in self.effects]
        return pd.DataFrame(
            {
                "step": np.arange(1, len(self.heads) + 1),
                "label": [str(head) for head in self.heads],
                "retained": self.retained.mean(1),
                "ablated": self.ablated.mean(1),
                "effect": self.effects.mean(1),
                "low": [end.low if end else np.nan for end in ends],
                "high": [end.high if end else np.nan for end in ends],
            }
        )

    def plot(self, *, title: str = "") -> go.Figure:
        """The effect against the number of heads, with its interval over prompts."""
        from interp.show.curves import Line, Panel, curve_panels

        rows = self.table()
        band = (
            (rows["low"].to_numpy(), rows["high"].to_numpy())
            if bool(np.isfinite(rows["low"].to_numpy()).all())
            else (None, None)
        )
        line = Line(f"by {self.score}", rows["effect"].to_numpy(), *band)
        panel = Panel("change of log-probability", [line])
        return curve_panels(rows["step"].to_numpy(), [panel], x_name="heads removed", title=title)


def cumulative_ablation(
    model: Model,
    gates: Gates,
    batch: Batch,
    *,
    by: str = "facilitation",
    seed: int = 0,
    heads: int | None = None,
    same_prompts: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> CumulativeAblation:
    """What the targets of ``batch`` lose as heads are removed in the order of a score, in the context ``G+``.

    At step k the gates of the k foremost heads are set to 1 ("retained") and to 0 ("ablated"), all others stay at
    ``G+``; the effect is the difference of the mean log-probability of the targets. Facilitating heads first: it falls
    below 0; irrelevant ones: it stays near 0; interfering ones: it rises until they are used up. Nam et al., 2025
    (arXiv 2505.13737).

    Args:
        model: the handle.
        gates: fitted on other prompts; :func:`interp.split` gives two disjoint batches.
        batch: the prompts, with targets as in :func:`interp.fit_gates`.
        by: facilitation, irrelevance or interference.
        seed: place of the seed whose gates and score are used.
        heads: only the first so many, all for ``None``.
        same_prompts: allow prompts that the gates were fitted on; the result is then optimistic.
        batch_size: rows in one forward, chosen by :func:`interp.sweep` for ``None``.
        progress: called with the number of variants just finished.

    Raises:
        BadInput: prompts that the gates were fitted on, a seed that is not there, gates of another model.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> fitted, other = (interp.encode(model, [[0, a, b, c, a, b]], spans={"loss": range(5, 6)})
        ...                  for a, b, c in [(3, 4, 5), (6, 7, 8)])
        >>> gates = interp.fit_gates(model, fitted, seeds=1, updates=60)
        >>> found = cumulative_ablation(model, gates, other)
        >>> str(found.heads[0]) in ("L0.H0", "L1.H0"), bool(found.effects[-1, 0] < -1)
        (True, True)
    """
    lookup(by, dict.fromkeys(ROLES, 0), "score to sort by")
    Targets.of(model, batch)
    _check_seed(gates, seed)
    _check_disjoint(gates, batch, same_prompts)
    context = torch.from_numpy(np.array(gates.retain[seed], dtype=np.float32))
    stack = model.stack(gates.stack)
    widths = [stack.n_heads(layer) for layer in range(stack.n_layers)]
    if context.shape[0] != len(widths) or int(torch.isfinite(context).sum()) != sum(widths):
        raise BadInput(
            f"The gates are of {context.shape[0]} layers with {int(torch.isfinite(context).sum())} heads, stack "
            f"{stack.name!r} has {len(widths)} with {sum(widths)}; give the model that they were fitted on."
        )
    values = gates.score(by).samples[seed]
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None, kind="stable")[
        : min(heads or sum(widths), sum(widths))
    ]
    cells = [tuple(int(place) for place in np.unravel_index(index, values.shape)) for index in order]
    variants: list[list[Edit]] = []
    for factor in (1.0, 0.0):
        current = context.clone()
        for cell in cells:
            current[cell] = factor
            variants.append(_edits(current.clone(), widths, gates.stack))
    logprob = -sweep(model, batch, variants, loss, batch_size=batch_size, progress=progress).values.cpu().numpy()
    prefix = None if gates.stack == gates.default_stack else gates.stack
    named = tuple(Head(layer, head, prefix) for layer, head in cells)
    return CumulativeAblation(by, named, logprob[: len(cells)], logprob[len(cells) :], gates.seeds[seed])


def _edits(context: Tensor, widths: Sequence[int], stack: str) -> list[Edit]:
    if len(set(widths)) == 1:
        return [gate(At(Site.Z, stack=stack), context)]
    return [gate(At(Site.Z, layer, stack=stack), context[layer, :width]) for layer, width in enumerate(widths) if width]


def _check_seed(gates: Gates, seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < len(gates.seeds):
        raise BadInput(f"seed={seed!r}: expected a place among the {len(gates.seeds)} seeds of the gates.")


def _check_disjoint(gates: Gates, batch: Batch, same_prompts: bool) -> None:
    if same_prompts or gates.prompt_keys is None:
        return
    shared = np.isin(batch.content_keys.numpy(), gates.prompt_keys).nonzero()[0].tolist()
    if shared:
        raise BadInput(
            f"The gates were fitted on {len(shared)} of the {len(batch)} prompts (first {shared[:10]}), so the test "
            "would be optimistic. Fit on one part of interp.split(batch) and test on the other, or say "
            "same_prompts=True."
        )


@dataclass(frozen=True)
class MediationTest:
    """Whether the heads that mediate a task are those with high gates.

    Attributes:
        mediating: heads whose average indirect effect stands out.
        inside, outside: mean over those heads, and over the others, of the largest facilitation over seeds.
        t, df, p: Welch's test of the difference, two-sided; NaN with fewer than two heads on a side.
    """

    mediating: tuple[Head, ...]
    inside: float
    outside: float
    t: float
    df: float
    p: float

    def __str__(self) -> str:
        return (
            f"{len(self.mediating)} mediating heads: largest facilitation {self.inside:.2f}, others "
            f"{self.outside:.2f}; t({self.df:.2f}) = {self.t:.2f}, p = {self.p:.2g}"
        )


def mediation_test(gates: Gates, effects: HeadScores, *, deviations: float = 3.0) -> MediationTest:
    """Welch's t of the largest facilitation over seeds, heads that mediate against the others.

    A head mediates where its average indirect effect lies more than ``deviations`` standard deviations above the mean
    of all heads (Nam et al., 2025, with the effects of Todd et al., 2024).

    Args:
        gates: of the same model, fitted on the same task.
        effects: the average indirect effects, from :func:`interp.average_indirect_effect`.
        deviations: how far a head has to stand out.

    Raises:
        BadInput: tables of other shapes, or no head that stands out.

    Example:
        >>> import numpy as np
        >>> from interp.attribution.gating.history import History
        >>> none = History((), *[np.zeros((0, 0, 1))] * 4, np.zeros((0, 0, 1, 2, 8)), np.zeros(0, dtype=int))
        >>> remove = np.linspace(0, 0.3, 16).reshape(1, 2, 8)
        >>> remove[0, 1, 7] = 1.0
        >>> gates = Gates(np.ones((1, 2, 8)), remove, np.ones((1, 2, 8)), (0,), none)
        >>> aie = np.zeros((2, 8))
        >>> aie[1, 7] = 1.0
        >>> found = mediation_test(gates, HeadScores.from_array(aie, name="aie", sense=1))
        >>> [str(head) for head in found.mediating], found.inside
        (['L1.H7'], 1.0)
    """
    largest = gates.strongest().values
    if effects.values.shape != largest.shape:
        raise BadInput(
            f"The average indirect effects are {list(effects.values.shape)}, the gates {list(largest.shape)} [layer, "
            "head]; give tables of one stack of one model."
        )
    heads = tuple(mediating_heads(effects, deviations))
    if not heads:
        raise BadInput(
            f"No head's average indirect effect lies more than {deviations:g} standard deviations above the mean, so "
            "there is nothing to compare; lower deviations=."
        )
    chosen = np.zeros(largest.shape, dtype=bool)
    chosen[tuple(np.array([(head.layer, head.index) for head in heads]).T)] = True
    there = np.isfinite(largest)
    inside, outside = largest[chosen & there], largest[~chosen & there]
    t, df, p = (np.nan,) * 3
    if min(len(inside), len(outside)) > 1:
        found: Any = scipy_stats.ttest_ind(inside, outside, equal_var=False)
        t, df, p = float(found.statistic), float(found.df), float(found.pvalue)
    return MediationTest(heads, float(inside.mean()), float(outside.mean()), t, df, p)
