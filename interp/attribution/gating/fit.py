"""``fit_gates``: causal head gating, three fits of one gate per head, all seeds in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.attribution.gating.descent import Descent, Objective, Slopes, Trace, descend, logits_of
from interp.attribution.gating.gates import Gates
from interp.attribution.gating.history import History
from interp.attribution.gating.likelihood import Likelihood
from interp.attribution.gating.settings import Checkpointing, Precision, Regulariser, Settings, rate_at, seeds_of
from interp.attribution.gating.state import Store, fingerprint, keep, resume
from interp.attribution.gating.targets import Targets, generator_of, minibatch
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model

KEPT = 50  # how many times the gates themselves are kept along a fit


@dataclass(frozen=True, eq=False)
class Moment:
    """What a caller's ``early_stop`` sees after an update.

    Attributes:
        fit: ``"warm"``, or ``"signed"`` (both signs at once, those of lambda > 0 first).
        update: how many updates were made.
        loss: ``[update, mask]`` so far.
        gates: ``[mask, layer, head]`` now.
    """

    fit: str
    update: int
    loss: np.ndarray
    gates: np.ndarray


EarlyStop = Callable[[Moment], bool]


def fit_gates(
    model: Model,
    batch: Batch,
    seeds: int | Sequence[int] = 10,
    *,
    updates: int = 500,
    batch_size: int = 64,
    lam: float = 0.1,
    schedule: Literal["paper", "code"] = "paper",
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
) -> Gates:
    """Gates of every head of ``model`` on next-token prediction over ``batch``: causal head gating.

    ``z[l, h] <- G[l, h] z[l, h]`` at every position before the output projection (its bias is not gated), ``G =
    sigmoid(theta)``, and ``theta`` goes down ``NLL - lambda mean over heads of clip(theta, -4, 4)``; the NLL is
    averaged over the targets of a prompt, then over prompts. Three fits: ``lambda = 0`` from random gates, then
    ``+lam`` (gates go to 1 unless the head interferes) and ``-lam`` (to 0 unless it is needed), both from where the
    first ended, with fresh Adam each. Nam, Conklin, Yang, Griffiths, Cohen and Leslie, Causal Head Gating, 2025 (arXiv
    2505.13737). The mean over heads follows the authors' code; the paper writes the sum (``regulariser="sum"``). Every
    seed is a fit of its own: its gradient is clipped alone, and nothing of it reaches the others; they share the
    minibatches.

    Args:
        model: the handle; any causal or encoder-decoder model. Its weights are frozen meanwhile.
        batch: the prompts. Targets are the tokens of the span ``"loss"``, else every real token but the first.
        seeds: how many random starts, from 0, or a list of them.
        updates: of each of the three fits.
        batch_size: prompts of one update, drawn anew for each (from ``seed``, fit and update alone).
        lam: weight of the regulariser.
        schedule: ``"paper"``: learning rate 0.1 to 0.01 without regulariser, 0.5 to 0.1 with; ``"code"``: 1 throughout.
        regulariser: over heads, ``"mean"`` or ``"sum"``.
        clip: logits beyond it are not pulled any further.
        grad_clip: the largest norm of one seed's gradient, ``None`` for no bound.
        early_stop: called after each update with a :class:`Moment`; ``True`` ends that fit. Never used unless given.
        stack: whose heads, the default stack for ``None``.
        seed: of the starting gates and the minibatches.
        init: an array or tensor ``[seed, layer, head]`` of starting gates in [0, 1], instead of random ones.
        progress: called with the number of updates just made; a whole fit makes ``2 * updates``, as both signs are
            fitted at once.
        checkpointing: compute each block again in the backward pass; ``"auto"`` where memory asks for it.
        precision: ``"model"``; ``"bfloat16"`` runs the forward under autocast, which is faster where there is hardware
            for it.
        rows: the most rows (prompts times masks) of one forward; what fits into memory for ``None``.
        store: where the state is kept, so that a fit that was killed goes on and ends the same (see ``gating.state``).
        keep_every: updates between two such states.

    Raises:
        BadInput: prompts without a target, gates of another shape, settings that cannot be.
        Unsupported: a model that does not predict the next token.
        NotFinite: the loss is NaN or infinite.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 5, 3, 4, 5]], spans={"loss": range(5, 7)})
        >>> gates = interp.fit_gates(model, batch, seeds=2, updates=60)
        >>> gates.taxonomy().set_index("label").role.to_dict()["L1.H0"]
        'facilitation'
    """
    settings = Settings(updates, batch_size, lam, schedule, regulariser, clip, grad_clip, seed)
    listed = seeds_of(seeds)
    if isinstance(keep_every, bool) or not isinstance(keep_every, int) or keep_every < 1:
        raise BadInput(f"keep_every={keep_every!r}: expected a whole number of at least 1.")
    targets = Targets.of(model, batch)
    chosen = model.stack(stack)
    likelihood = Likelihood(
        model, targets, stack=chosen.name, checkpointing=checkpointing, precision=precision, rows=rows
    )
    start = logits_of(starting_gates(listed, likelihood.exists, seed=seed, init=init))
    made_from = fingerprint(
        asdict(settings), listed, chosen.name, precision, batch.content_keys.tolist(), targets.columns.tolist(),
        start.tolist(),
    )  # fmt: skip
    fitting = Fitting(settings, early_stop, progress, store, keep_every, made_from)
    with likelihood:
        by_gate = sampled(likelihood, settings, targets)
        objective = Objective(torch.zeros(len(listed)), likelihood.exists, regulariser, clip)
        warm, warm_trace = fitting.fit("warm", start, objective, by_gate("warm"), settings.rates.warm)
        signs = torch.tensor([lam] * len(listed) + [-lam] * len(listed))
        objective = Objective(signs, likelihood.exists, regulariser, clip)
        both = torch.cat([warm.theta, warm.theta])
        signed, trace = fitting.fit("signed", both, objective, by_gate("signed"), settings.rates.signed)
    plus, minus = range(len(listed)), range(len(listed), 2 * len(listed))
    ends = [with_gaps(gates, likelihood.exists) for gates in (*signed.gates.chunk(2), warm.gates)]
    return Gates(
        *ends,
        seeds=listed,
        history=History.of({"warm": (warm_trace, plus), "retain": (trace, plus), "remove": (trace, minus)}),
        stack=chosen.name,
        default_stack=model.default_stack,
        prompt_keys=batch.content_keys.numpy(),
        metadata={
            "method": "causal head gating",
            "source": "Nam et al., 2025 (arXiv 2505.13737)",
            "model": model.name,
            "prompts": len(batch),
            **asdict(settings),
            "precision": precision,
            "notes": likelihood.notes,
        },
    )


@dataclass(frozen=True, eq=False)
class Fitting:
    """What fits of one job have in common: settings, and who is told."""

    settings: Settings
    early_stop: EarlyStop | None
    progress: Callable[[int], Any] | None
    store: Store | None
    keep_every: int
    made_from: str

    def fit(
        self, name: str, start: Tensor, objective: Objective, slopes: Slopes, rates: tuple[float, float]
    ) -> tuple[Descent, Trace]:
        """One fit from the logits ``start``, or from where it was left."""
        settings = self.settings
        descent, trace = resume(self.store, name, self.made_from, start)
        if self.progress is not None and descent.updates:
            self.progress(descent.updates)

        def after(descent: Descent, trace: Trace) -> bool:
            stop = self.early_stop is not None and bool(self.early_stop(_moment(name, descent, trace)))
            if self.store is not None and (stop or descent.updates % self.keep_every == 0):
                keep(self.store, name, self.made_from, descent, trace)
            if self.progress is not None:
                self.progress(1)
            return stop

        if trace.loss and self.early_stop is not None and self.early_stop(_moment(name, descent, trace)):
            return descent, trace  # it had been stopped before it was left
        trace = descend(
            descent,
            slopes,
            objective,
            lambda update: rate_at(rates, update, settings.updates),
            updates=settings.updates,
            grad_clip=settings.grad_clip,
            trace=trace,
            keep_every=max(1, settings.updates // KEPT),
            after=after,
        )
        if self.store is not None:
            keep(self.store, name, self.made_from, descent, trace)
        return descent, trace


def _moment(name: str, descent: Descent, trace: Trace) -> Moment:
    return Moment(name, descent.updates, torch.stack(trace.loss).numpy(), descent.gates.numpy())


def sampled(likelihood: Likelihood, settings: Settings, targets: Targets) -> Callable[[str], Slopes]:
    """Name of a fit -> the loss and slopes of the minibatch of each of its updates."""

    def of(fit: str) -> Slopes:
        def slopes(gates: Tensor, update: int) -> tuple[Tensor, Tensor]:
            prompts = minibatch(len(targets), settings.batch_size, settings.seed, fit, update)
            nll, by_gate = likelihood(gates, prompts)
            return nll.mean(1), by_gate

        return slopes

    return of


def starting_gates(
    seeds: Sequence[int], exists: Bool[Tensor, "layer head"], *, seed: int = 0, init: Any = None
) -> Float[Tensor, "seed layer head"]:
    """Gates drawn from U(0, 1), each seed's from (``seed``, its own number) alone; or ``init``, checked.

    Raises:
        BadInput: ``init`` of another shape, or not in [0, 1].
    """
    shape = (len(seeds), *exists.shape)
    if init is None:
        return torch.stack([torch.rand(exists.shape, generator=generator_of("init", seed, own)) for own in seeds])
    try:
        given = torch.as_tensor(init, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"init={init!r}: expected gates [seed, layer, head] ({error}).") from None
    if given.shape != shape:
        raise BadInput(f"init has shape {list(given.shape)}; expected [seed, layer, head] = {list(shape)}.")
    inside = (given >= 0) & (given <= 1)
    if not bool(inside[:, exists].all()):
        raise BadInput("init holds numbers outside [0, 1] (or NaN); a gate lies between 0 and 1.")
    return torch.where(exists, given, torch.full_like(given, 0.5))


def with_gaps(gates: Float[Tensor, "seed layer head"], exists: Bool[Tensor, "layer head"]) -> np.ndarray:
    """The gates as an array with NaN where no head is."""
    return torch.where(exists, gates, torch.full_like(gates, torch.nan)).numpy()
