"""What is measured: rows of attention, explanations, tokens that attention hides, other weights, tokens taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float

import interp
from circuits.experiments.explanation.comparing import Comparison, compared_rows
from circuits.experiments.explanation.config import ExplanationConfig
from circuits.experiments.opening import open_model
from circuits.experiments.pieces import Pieces
from circuits.experiments.trace_text.measuring import metric_of
from circuits.experiments.trace_text.prompts import Prompts, counted_sources, prompts_of
from circuits.experiments.tracing.rows import Rows, Tracer
from circuits.outcome import Workplace
from circuits.progress import Progress
from circuits.units import Arrays, fingerprint_of
from interp.errors import HeadscopeError
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.audits.adversarial import Search
from interp.scores.audits.attribution_agreement import compared
from interp.tracing import METHODS
from interp.tracing.protocols.removal_curves import RemovalCurves, removal_curves

if TYPE_CHECKING:
    from interp.model.handle import Model
    from interp.model.run import Metric

MEAN, MAXIMUM, VALUE_AWARE = "attention, mean", "attention, maximum", "value-aware"
MATTER, RANDOM = "tokens that matter", "random tokens"


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        model: what reads the prompts.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        prompts: the prompts.
        pooled: whether the answer is the mean over all tokens.
        metric: what is explained.
        metric_name: its name.
    """

    model: Model
    about: dict[str, Any]
    config: ExplanationConfig
    pieces: Pieces
    progress: Progress
    prompts: Prompts
    pooled: bool
    metric: Metric
    metric_name: str

    @property
    def tracer(self) -> Tracer:
        """What traces are made with."""
        return Tracer(
            self.model,
            self.prompts.parts(self.config.batch_size),
            self.pieces,
            self.progress,
            self.metric,
            seed=self.config.seed,
            metric_name=self.metric_name,
            fold="mean" if self.pooled else "read",
        )

    def first(self, count: int) -> Prompts:
        """The first prompts."""
        return self.prompts.select(range(min(count, len(self.prompts))))


def explanation_job(config: ExplanationConfig, place: Workplace, version: str) -> Job:
    """The run that the settings ask for, with its model loaded and its prompts made.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts that cannot be made.
    """
    opened = open_model(config, place)
    drawn = prompts_of(opened.model, config)
    metric, name = metric_of(drawn, config)
    pieces = Pieces(place.units, version, opened.fingerprint, config.batch_size, config.seed)
    return Job(drawn.model, opened.about, config, pieces, place.progress, drawn.prompts, drawn.pooled, metric, name)


def comparison_of(job: Job) -> tuple[Comparison | None, dict[str, str]]:
    """Attention beside explanations, and what could not be done; None where nothing is left to compare."""
    config, refused = job.config, {}
    wanted = {MEAN: ("raw", {"heads": "mean"}), MAXIMUM: ("raw", {"heads": "max"})}
    wanted |= {name: (name, config.options.get(name, {})) for name in config.traced}
    attention = _rows_of(job, wanted, refused)
    own = {name: (name, config.options.get(name, {})) for name in config.explanations}
    explanations = _rows_of(job, own, refused)
    signed = [name for name in explanations if METHODS[name].signed]
    numbers = {name: rows.values for name, rows in explanations.items()}
    if config.value_aware:
        try:
            numbers[VALUE_AWARE] = value_aware(job)
            signed.append(VALUE_AWARE)
        except HeadscopeError as error:
            refused[VALUE_AWARE] = " ".join(str(error).split())
    if not attention or not numbers:
        return None, refused
    counted = counted_sources(job.model, job.prompts, special=config.special)
    rows = {name: one.values for name, one in attention.items()}
    return compared_rows(rows, numbers, signed, counted, top=config.top, confidence=config.confidence), refused


def _rows_of(job: Job, wanted: Mapping[str, tuple[str, Mapping[str, Any]]], refused: dict[str, str]) -> dict[str, Rows]:
    found = {}
    for label, (method, options) in wanted.items():
        try:
            found[label] = job.tracer.rows(method, options)
        except HeadscopeError as error:
            refused[label] = " ".join(str(error).split())
    return found


def value_aware(job: Job) -> Float[np.ndarray, "prompt token"]:
    """``w_j = sum over heads of A_ij <v_j, dm/dz_i>`` by each head's direct path, of all layers together."""
    parts = job.prompts.parts(job.config.batch_size)
    width, rows = max(map(len, job.prompts.ids)), []
    with job.progress.stage("Attention weighted by values", len(parts)) as done:
        for part in parts:

            def compute(part: Prompts = part) -> Arrays:
                ask = Ask("value_aware", job.model, part.batch(job.model), job.model.stack())
                whole = compared(ask, "value_aware", metric=job.metric).at("all")
                return {"weights": next(iter(whole.attribution.values()))[:, 0].cpu().numpy()}

            own = job.pieces.arrays("value-aware", fingerprint_of(part.fingerprint, job.metric_name), compute)
            rows.append(np.pad(own["weights"], [(0, 0), (0, width - own["weights"].shape[1])], constant_values=np.nan))
            done()
    return np.concatenate(rows)


def heads_of(job: Job) -> dict[str, HeadScores]:
    """Tau, overlap and sign disagreement of every head's row with explanations, by ``interp.posthoc_audit``."""
    references = ["gradient", "gradient_x_input"] + ([] if job.pooled else ["value_aware"])
    parts, found = job.prompts.parts(job.config.batch_size), {}
    with job.progress.stage("Heads against explanations", len(references)) as done:
        for name in references:
            try:
                tables = [_head_tables(job, part, name) for part in parts]
            except HeadscopeError:
                continue  # what is compared over all heads stands
            finally:
                done()
            found |= {label: HeadScores.concat([one[label] for one in tables]) for label in tables[0]}
    return found


def _head_tables(job: Job, part: Prompts, reference: str) -> dict[str, HeadScores]:
    kept: dict[str, HeadScores] = {}

    def made(label: str) -> HeadScores:
        if not kept:
            special = ~torch.from_numpy(counted_sources(job.model, part, special=job.config.special))
            batch = part.batch(job.model)
            audit = interp.posthoc_audit(
                job.model,
                batch,
                [reference],
                metric=job.metric,
                top=job.config.top,
                exclude_sinks=special & batch.mask.cpu(),
                seed=job.config.seed,
            )
            kept.update(audit.tables)
        return kept[label]

    labels = [f"{reference}: kendall", f"{reference}: top {job.config.top}"]
    labels += [f"{reference}: signs"] if reference != "gradient" else []
    made_of = fingerprint_of(part.fingerprint, job.metric_name, job.config.top, job.config.special)
    return {label: job.pieces.table(f"heads/{label}", made_of, lambda label=label: made(label)) for label in labels}


@dataclass(frozen=True, eq=False)
class Hidden:
    """What attention says of some tokens, and what the answer makes of them; ``[prompt]`` each.

    Attributes:
        mass: of the head that looks at them most.
        share: mean attention over all heads.
        effect: change of the answer (total variation) when no other token may look at them.
        value_effect: change when their values are 0.
        delete_effect: change when they are taken out.
        flagged: whether no head looks at them and the answer depends on them.
    """

    mass: np.ndarray
    share: np.ndarray
    effect: np.ndarray
    value_effect: np.ndarray
    delete_effect: np.ndarray
    flagged: np.ndarray

    @property
    def index(self) -> np.ndarray:
        """``[prompt]`` deception index, effect by mass."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.effect / self.mass


def hidden_of(job: Job, importance: np.ndarray, counted: np.ndarray) -> dict[str, Hidden] | None:
    """The audit of the tokens that matter most, and of as many random ones; None where it was not asked for.

    Args:
        job: the run.
        importance: ``[prompt, token]`` what says which tokens matter.
        counted: ``[prompt, token]`` the tokens to choose from.
    """
    prompts = job.first(job.config.audited)
    if not job.config.audited:
        return None
    sets = {MATTER: _foremost(importance, counted, job.config.top, prompts), RANDOM: None}
    draw = np.random.default_rng(job.config.seed)
    sets[RANDOM] = _foremost(draw.random(importance.shape), counted, job.config.top, prompts)
    found: dict[str, Hidden] = {}
    with job.progress.stage("Tokens that attention hides", len(sets)) as done:
        for name, members in sets.items():
            assert members is not None

            def compute(members: np.ndarray = members) -> Arrays:
                audit = interp.deception_audit(job.model, prompts.batch(job.model), torch.from_numpy(members))
                mass = audit.mass.samples.reshape(len(prompts), -1)
                return {
                    "mass": audit.largest_mass,
                    "share": np.nanmean(mass, axis=1),
                    "effect": audit.effect,
                    "value_effect": audit.value_effect,
                    "delete_effect": audit.delete_effect,
                    "flagged": audit.flagged,
                }

            made_of = fingerprint_of(prompts.fingerprint, members)
            found[name] = Hidden(**job.pieces.arrays(f"hidden/{name}", made_of, compute))
            done()
    return found


def _foremost(
    importance: np.ndarray, counted: np.ndarray, top: int, prompts: Prompts
) -> Bool[np.ndarray, "prompt token"]:
    """True at each prompt's foremost tokens, that where the answer is read left out."""
    width = max(map(len, prompts.ids))
    made = np.zeros((len(prompts), width), dtype=bool)
    for row, ids in enumerate(prompts.ids):
        read = len(ids) - 1 if prompts.read_at is None else prompts.read_at[row]
        free = counted[row, :width] & np.isfinite(importance[row, :width])
        free[read] = False
        order = np.argsort(-np.abs(np.where(free, importance[row, :width], 0)), kind="stable")
        made[row, [place for place in order if free[place]][:top]] = True
    return made


@dataclass(frozen=True, eq=False)
class Other:
    """The answer under other weights in the answer's row of all heads together; ``[prompt]`` each.

    Attributes:
        largest: the largest weight of a row, mean over heads.
        permuted: median change of the answer over random permutations.
        uniform: change under even weights.
        adversarial: largest divergence of weights that leave the answer as it is, up to ln 2.
        single: head -> mean change under permutation of its row alone.
    """

    largest: np.ndarray
    permuted: np.ndarray
    uniform: np.ndarray
    adversarial: np.ndarray
    single: HeadScores


def other_weights(job: Job) -> Other | None:
    """The standard battery, on some prompts; None where it was not asked for."""
    if not job.config.battery:
        return None
    prompts, config = job.first(job.config.battery), job.config
    search = Search(starts=config.starts, steps=config.steps)
    made_of = fingerprint_of(prompts.fingerprint, config.permutations, config.starts, config.steps)

    def together() -> Arrays:
        made = interp.attention_battery(
            job.model,
            prompts.batch(job.model),
            level="all",
            permutations=config.permutations,
            adversarial=search,
            leave_one_out=None,
            seed=config.seed,
        )
        assert made.adversarial is not None
        tables = {
            "largest": made.largest_weight,
            "permuted": made.permutation,
            "uniform": made.uniform,
            "adversarial": made.adversarial,
        }
        return {name: np.nanmean(own.samples.reshape(len(prompts), -1), axis=1) for name, own in tables.items()}

    def alone() -> HeadScores:
        made = interp.attention_battery(
            job.model,
            prompts.batch(job.model),
            permutations=config.permutations,
            adversarial=False,
            leave_one_out=None,
            seed=config.seed,
        )
        return made.permutation

    with job.progress.stage("Other weights", 2) as done:
        arrays = job.pieces.arrays("battery/all", made_of, together)
        done()
        single = job.pieces.table("battery/head", made_of, alone)
        done()
    return Other(**arrays, single=single)


def curves_of(job: Job, comparison: Comparison) -> RemovalCurves | None:
    """The metric as tokens are hidden in the order of each row and explanation; None where it was not asked for."""
    if not job.config.curves:
        return None
    prompts = job.first(job.config.curves)
    weights = {**comparison.attention, **comparison.explanations}
    width = max(map(len, prompts.ids))
    own = {name: np.ascontiguousarray(np.abs(rows[: len(prompts), :width])) for name, rows in weights.items()}
    made_of = fingerprint_of(
        prompts.fingerprint, job.config.shares, job.config.draws, job.metric_name, list(own), *own.values()
    )

    def compute() -> Arrays:
        made = removal_curves(
            job.model,
            prompts.batch(job.model),
            {name: torch.from_numpy(rows) for name, rows in own.items()},
            directions=["deletion"],
            shares=job.config.shares,
            draws=job.config.draws,
            metric=job.metric,
            seed=job.config.seed,
        )
        return {"values": np.stack(list(made.values["deletion"].values())), "random": made.random["deletion"]}

    with job.progress.stage("Hiding tokens", 1) as done:
        found = job.pieces.arrays("curves", made_of, compute)
        done()
    values = {"deletion": dict(zip(own, found["values"], strict=True))}
    return RemovalCurves(job.config.shares, values, {"deletion": found["random"]}, {"draws": job.config.draws})
