"""``fit_contrastive_gates``: gates that keep a task in one format and lose it in another."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.gating.descent import Objective, Slopes, logits_of
from interp.attribution.gating.fit import EarlyStop, Fitting, starting_gates, with_gaps
from interp.attribution.gating.history import History
from interp.attribution.gating.likelihood import Likelihood
from interp.attribution.gating.settings import Checkpointing, Precision, Regulariser, Settings, seeds_of
from interp.attribution.gating.state import Store, fingerprint
from interp.attribution.gating.targets import Targets, minibatch
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.results import HeadScores
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

_KIND = "contrastive gates"
FLOOR = -5.0  # nats: forgetting is not rewarded any further


@dataclass(frozen=True, eq=False, repr=False)
class ContrastiveGates:
    """Gates that keep one format of a task and lose another; made by :func:`interp.fit_contrastive_gates`.

    Attributes:
        values: ``[seed, layer, head]`` in [0, 1], NaN where no head is.
        seeds: the seed of each.
        history: losses and gates along the fit.
        stack, default_stack: whose heads, and those that print without a prefix.
        metadata: how they were made.
    """

    values: Float[np.ndarray, "seed layer head"]
    seeds: tuple[int, ...]
    history: History
    stack: str = "text"
    default_stack: str = "text"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gates(self) -> HeadScores:
        """The gates themselves, one sample per seed: 1 where the head is kept."""
        return self._table("contrastive gate", self.values)

    @property
    def closed(self) -> HeadScores:
        """One minus the gates: near 1 where losing the head spares the retained format and hurts the other."""
        return self._table("closed by contrast", 1 - self.values)

    def _table(self, name: str, values: np.ndarray) -> HeadScores:
        return HeadScores.from_array(
            values,
            name=name,
            quantity="gate",
            sense=0,
            sample_axis="seed",
            stack=self.stack,
            default_stack=self.default_stack,
            exists=np.asarray(np.isfinite(self.values).all(axis=0)),
            metadata={**self.metadata, "seeds": list(self.seeds)},
        )

    def plot(self, what: Literal["gates", "closed", "history"] = "gates", *, title: str = "") -> go.Figure:
        """A heatmap of the gates or of one minus the gates, or the losses along the fit."""
        from interp.attribution.gating.figures import history_curves
        from interp.names import lookup

        tables = {"gates": lambda: self.gates.plot(title=title), "closed": lambda: self.closed.plot(title=title)}
        figures = tables | {"history": lambda: history_curves(self.history, title=title)}
        return lookup(what, figures, "figure of contrastive gates")()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that now holds the gates and their history; see ``open``."""
        arrays = {"values": self.values}
        arrays |= {f"history.{name}": array for name, array in self.history.arrays().items()}
        about = {name: getattr(self, name) for name in ("seeds", "stack", "default_stack", "metadata")}
        return write_arrays(path, arrays, kind=_KIND, metadata={**about, "fits": self.history.fits})

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ContrastiveGates:
        """The gates that ``save`` wrote to ``path``.

        Raises:
            BadInput: the file is not there, is damaged, or is something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        history = {name.removeprefix("history."): arrays.pop(name) for name in list(arrays) if "." in name}
        made = History(tuple(about.pop("fits")), **history)
        return cls(**arrays, seeds=tuple(about.pop("seeds")), history=made, **about)

    def __repr__(self) -> str:
        layers, heads = self.values.shape[1:]
        shut = int((np.nan_to_num(self.values, nan=1.0).mean(0) < 0.5).sum())  # noqa: PLR2004 - more shut than open
        return f"ContrastiveGates({self.stack} {layers}x{heads} heads, {len(self.seeds)} seeds: {shut} closed)"


def fit_contrastive_gates(
    model: Model,
    retain: Batch,
    forget: Batch,
    seeds: int | Sequence[int] = 10,
    *,
    items: tuple[Sequence[object], Sequence[object]] | None = None,
    updates: int = 500,
    batch_size: int = 64,
    lam: float = -0.1,
    regulariser: Regulariser = "mean",
    clip: float = 4.0,
    grad_clip: float | None = 1.0,
    early_stop: EarlyStop | None = None,
    stack: str | None = None,
    seed: int = 0,
    init: Any = None,
    progress: Callable[[int], Any] | None = None,
    checkpointing: Checkpointing = "auto",
    precision: Precision = "model",
    rows: int | None = None,
    store: Store | None = None,
    keep_every: int = 50,
) -> ContrastiveGates:
    """Gates that keep the targets of ``retain`` likely and make those of ``forget`` unlikely, in one fit.

    ``loss = -logp_R + clamp(logp_F - stopgrad(logp_R), min=-5) - lam * mean over heads of clip(theta, -4, 4)``, each
    ``logp`` the mean log-probability of the targets of a prompt, averaged over the minibatch; learning rate 0.1 to
    0.01, no fit before it. Nam et al., 2025 (arXiv 2505.13737). The paper disagrees with itself about the sign of
    ``lam``: the text of its Equation 2 has it positive (gates are pulled open), its appendix sets -0.1 (pulled shut).
    The appendix, which lists what was run, is followed. That the difference is bounded at 5 is the paper's; where the
    gradient stops is not given there.

    Args:
        model: the handle.
        retain: prompts in the format that is kept; targets as in :func:`interp.fit_gates`.
        forget: the same items in the format that is lost, prompt by prompt.
        seeds, updates, batch_size, regulariser, clip, grad_clip, early_stop, stack, seed, init: see
            :func:`interp.fit_gates`; a minibatch holds the same items of both.
        items: names of the items of ``retain`` and of ``forget``, which must be the same one by one.
        lam: weight of the regulariser; negative pulls gates to 0.
        progress, checkpointing, precision, rows, store, keep_every: see :func:`interp.fit_gates`.

    Raises:
        BadInput: sets that do not pair, prompts without a target, settings that cannot be.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> kept = interp.encode(model, [[0, 3, 4, 5, 3, 4]], spans={"loss": range(5, 6)})
        >>> lost = interp.encode(model, [[0, 3, 4, 5, 6, 7]], spans={"loss": range(5, 6)})
        >>> interp.fit_contrastive_gates(model, kept, lost, seeds=2, updates=5).gates.samples.shape
        (2, 2, 2)
    """
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not math.isfinite(lam):
        raise BadInput(f"lam={lam!r}: expected a finite number; negative pulls gates to 0, positive to 1.")
    settings = Settings(updates, batch_size, 1.0, "paper", regulariser, clip, grad_clip, seed)
    listed = seeds_of(seeds)
    kept, lost = Targets.of(model, retain), Targets.of(model, forget)
    check_pairs(retain, forget, items)
    chosen = model.stack(stack)
    likelihood = Likelihood(model, kept, stack=chosen.name, checkpointing=checkpointing, precision=precision, rows=rows)
    start = logits_of(starting_gates(listed, likelihood.exists, seed=seed, init=init))
    settings = replace(settings, lam=1.0)
    made_from = fingerprint(
        asdict(settings), lam, listed, chosen.name, precision, retain.content_keys.tolist(),
        forget.content_keys.tolist(), kept.columns.tolist(), lost.columns.tolist(), start.tolist(),
    )  # fmt: skip
    fitting = Fitting(settings, early_stop, progress, store, keep_every, made_from)
    with likelihood:
        objective = Objective(torch.full((len(listed),), float(lam)), likelihood.exists, regulariser, clip)
        slopes = contrast(likelihood, kept, lost, settings)
        descent, trace = fitting.fit("contrastive", start, objective, slopes, settings.rates.warm)
    return ContrastiveGates(
        with_gaps(descent.gates, likelihood.exists),
        seeds=listed,
        history=History.of({"contrastive": (trace, range(len(listed)))}),
        stack=chosen.name,
        default_stack=model.default_stack,
        metadata=plain_json(
            {
                "method": "contrastive causal head gating",
                "source": "Nam et al., 2025 (arXiv 2505.13737)",
                "model": model.name,
                "pairs": len(retain),
                **asdict(settings),
                "lam": lam,
                "precision": precision,
                "notes": likelihood.notes,
            }
        ),
    )


def contrast(likelihood: Likelihood, kept: Targets, lost: Targets, settings: Settings) -> Slopes:
    """``-logp_R + clamp(logp_F - stopgrad(logp_R), min=-5)`` of each mask, and its slope by each gate."""

    def slopes(gates: Tensor, update: int) -> tuple[Tensor, Tensor]:
        items = minibatch(len(kept), settings.batch_size, settings.seed, "contrastive", update)
        kept_nll, kept_slope = likelihood(gates, items, kept)
        lost_nll, lost_slope = likelihood(gates, items, lost)
        difference = kept_nll.mean(1) - lost_nll.mean(1)  # logp_F - logp_R
        pulled = (difference >= FLOOR)[:, None, None]
        return kept_nll.mean(1) + difference.clamp(min=FLOOR), kept_slope - pulled * lost_slope

    return slopes


def check_pairs(retain: Batch, forget: Batch, items: tuple[Sequence[object], Sequence[object]] | None = None) -> None:
    """Refuse sets whose prompts are not the same items one by one.

    Raises:
        BadInput: with the counts, or the first items that differ.
    """
    if len(retain) != len(forget):
        raise BadInput(
            f"The contrastive sets do not pair: {len(retain)} prompts to retain and {len(forget)} to forget; give each "
            "item once in either format, in the same order."
        )
    if items is None:
        return
    if len(items) != 2 or any(len(names) != len(retain) for names in items):  # noqa: PLR2004 - retain, forget
        raise BadInput(f"items: expected two lists of {len(retain)} names, one for each set.")
    wrong = [place for place, (one, other) in enumerate(zip(*items, strict=True)) if one != other]
    if wrong:
        first = wrong[0]
        raise BadInput(
            f"The contrastive sets do not pair: prompt {first} is item {items[0][first]!r} in one and "
            f"{items[1][first]!r} in the other ({len(wrong)} of {len(retain)} differ); bring both into one order."
        )
