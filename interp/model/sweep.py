"""``sweep``: one metric under many variants of a batch, each variant with edits of its own.

A variant is a list of edits; its value is by definition ``metric(run(model, batch, edits=variant).logits, batch)``.
Several variants share a forward as copies of the batch, and a forward leaves out what the edits cannot change: blocks
below the first edited one, the attention of a block in which only z is edited, columns left of every edited one, and
in the last block everything but the columns that the metric reads. What may be left out is licensed by trying it on
the model; see :mod:`interp.model.licence`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import Site
from interp.edits.base import Edit
from interp.edits.groups import columns_of
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import output_embeddings
from interp.model.licence import Licence, keeps_every_key, licence_of
from interp.model.plan import Plan
from interp.model.recording import BlockId, record
from interp.model.replay import Suffix, replay
from interp.model.run import Logits, Metric, SharedPreparation, check_edits, logits_columns, prepared_edits, run
from interp.model.session import Copies, Session

_TOKENS_CPU, _TOKENS = 1024, 65536  # of all copies in one forward, where the caller names no batch size
_MOST_TOKENS = 2**16  # of one copy in one forward: longer batches run some prompts at a time
_LOGITS = 2**27  # numbers in the logits of one forward
_LATE = frozenset(
    {Site.RESULT, Site.ATTN_RAW, Site.ATTN_OUT, Site.RESID_MID, Site.RESID_CROSS, Site.MLP_OUT, Site.RESID_POST}
)


@dataclass(frozen=True, eq=False)
class Swept:
    """A metric under variants.

    Attributes:
        values: ``[variant, batch]`` the metric with the variant's edits in force.
        unedited: ``[variant, batch]`` the metric of the unedited batch through the same kernels as the variant's run.
        notes: what was done another way than planned, in sentences.
    """

    values: Float[Tensor, "variant batch *k"]
    unedited: Float[Tensor, "variant batch *k"]
    notes: tuple[str, ...] = ()

    @property
    def effects(self) -> Float[Tensor, "variant batch *k"]:
        """``values - unedited``, ``[variant, batch]``."""
        return self.values - self.unedited


def sweep(
    model: Model,
    batch: Batch,
    variants: Sequence[Sequence[Edit]],
    metric: Metric,
    *,
    logits: Logits | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Swept:
    """``[variant, batch]`` the metric of ``batch`` under each variant, with its unedited value.

    Equal, to rounding, to ``metric(run(model, batch, edits=variant).logits, batch)`` for each variant in turn, and
    several times faster: give all variants in one call.

    Args:
        model: the handle.
        batch: the prompts.
        variants: one list of edits each.
        metric: ``(logits, batch) -> [batch]``, or ``[batch, k]`` for several numbers of one forward. It is called with
            some of the prompts (``batch.select``) where not all fit into one forward.
        logits: which positions are unembedded, as in :func:`interp.run`; what the metric declares by default.
        batch_size: prompts in one forward, copies counted; chosen by the size of the prompts by default. Halved where
            memory does not suffice, which a note says.
        progress: called with the number of variants finished.

    Raises:
        BadInput: an edit, address or metric that cannot be.

    Example:
        >>> import interp
        >>> from interp import At, Site
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)])
        >>> each = [[interp.zero(At(Site.Z, layer=layer, heads=(0,)))] for layer in (0, 1)]
        >>> interp.sweep(model, batch, each, interp.logit_difference).effects.round().tolist()
        [[-10.0], [-10.0]]
    """
    if not isinstance(batch, Batch):
        raise BadInput(
            f"sweep: the batch is a {type(batch).__name__}; expected what interp.encode(model, ...) returns."
        )
    if not callable(metric):
        raise BadInput(f"sweep: the metric is {metric!r}; expected a function (logits, batch) -> [batch].")
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"sweep: batch_size={batch_size}; expected at least 1.")
    if not variants:
        raise BadInput("sweep: no variant was given; give one list of edits for each.")
    columns = logits_for(metric, model) if logits is None else logits
    return _Sweep(model, batch, metric, columns, batch_size, progress).of(variants)


@dataclass(frozen=True, eq=False)
class _Variant:
    """One variant, with what of a forward it needs."""

    number: int
    edits: tuple[Edit, ...]
    eager: frozenset[tuple[str, int]]
    start: int
    from_z: bool
    changed: tuple[int, int] | None
    column: int
    narrow: bool

    @property
    def group(self) -> tuple[Any, ...]:
        """Variants of one group may share a forward."""
        return (self.start, self.from_z, self.changed or (-1, -1), self.column, self.narrow, sorted(self.eager))


@dataclass(frozen=True, eq=False)
class _Prepared:
    """The edits of one variant, with the functions that unedited runs of the whole batch gave them."""

    edits: tuple[Edit, ...]
    eager: frozenset[tuple[str, int]]
    plan: Plan

    @property
    def at_columns(self) -> bool:
        """Whether it edits chosen columns."""
        return any(at.pos is not None for edit in self.edits for at in edit.at)


@dataclass(eq=False)
class _Sweep:
    """One call of :func:`sweep`: prepares every variant on the whole batch, and runs the prompts part by part."""

    model: Model
    batch: Batch
    metric: Metric
    logits: Logits
    batch_size: int | None
    progress: Callable[[int], Any] | None

    def of(self, variants: Sequence[Sequence[Edit]]) -> Swept:
        positions = logits_columns(self.model, self.batch, self.logits)
        preparation = SharedPreparation(self.model, self.batch)
        prepared = [self._prepared(edits, preparation) for edits in variants]
        licence = licence_of(self.model, self.batch, positions)
        if not licence.copies:
            return self._one_by_one(prepared, licence)
        parts: list[Swept] = []
        split = self._split(prepared)
        self.done, self.all = 0, len(split)
        for rows in split:
            batch = self.batch if rows is None else self.batch.select(rows)
            columns = positions if positions is None or rows is None else positions[rows]
            part = _Part(self.model, self.batch, self.metric, self.batch_size, licence, batch, rows, columns)
            parts.append(part.of(prepared, self._told))
        notes = dict.fromkeys(note for part in parts for note in part.notes)
        values, unedited = ([getattr(part, name) for part in parts] for name in ("values", "unedited"))
        return Swept(torch.cat(values, dim=1), torch.cat(unedited, dim=1), tuple(notes))

    def _prepared(self, declared: Sequence[Edit], preparation: SharedPreparation) -> _Prepared:
        check_edits(declared)
        plan = Plan(self.model, self.batch, declared)
        edits, eager = prepared_edits(self.model, self.batch, declared, plan.eager, preparation)
        return _Prepared(tuple(edits), frozenset(eager), plan)

    def _split(self, prepared: Sequence[_Prepared]) -> list[Tensor | None]:
        """The prompts of each part, ``None`` for all: as many as one forward takes."""
        most = self.batch_size or _MOST_TOKENS // self.batch.width
        most = max(1, most // (1 + needs_own_baseline(self.model)))
        between = any(edit.name == "custom" for variant in prepared for edit in variant.edits)
        if len(self.batch) <= most or between:  # a caller's own edit may look at all prompts at once
            return [None]
        return list(torch.arange(len(self.batch)).split(most))

    def _told(self, count: int) -> None:
        """Tell the caller of ``count`` variants finished for one part: of all parts together they are fewer."""
        before, self.done = self.done // self.all, self.done + count
        if self.progress is not None and self.done // self.all > before:
            self.progress(self.done // self.all - before)

    def _one_by_one(self, prepared: Sequence[_Prepared], licence: Licence) -> Swept:
        baselines: dict[frozenset[tuple[str, int]], Tensor] = {}
        values, unedited = [], []
        for variant in prepared:
            edited = run(self.model, self.batch, edits=variant.edits, logits=self.logits)
            if variant.eager not in baselines:
                plain = run(self.model, self.batch, logits=self.logits, kernels=dict.fromkeys(variant.eager, "eager"))
                baselines[variant.eager] = metric_values(self.metric, plain.logits, self.batch)
            values.append(metric_values(self.metric, edited.logits, self.batch))
            unedited.append(baselines[variant.eager])
            if self.progress is not None:
                self.progress(1)
        return Swept(torch.stack(values), torch.stack(unedited), licence.notes)


@dataclass(eq=False)
class _Part:
    """The sweep of some prompts.

    Attributes:
        whole: the batch that edits are made for.
        batch: the prompts that run.
        rows: which of the whole batch they are, ``None`` for all.
        positions: ``[batch, k]`` columns that are unembedded, ``None`` for all.
    """

    model: Model
    whole: Batch
    metric: Metric
    batch_size: int | None
    licence: Licence
    batch: Batch
    rows: Tensor | None
    positions: Tensor | None
    notes: list[str] = field(default_factory=list)

    def of(self, prepared: Sequence[_Prepared], told: Callable[[int], None]) -> Swept:
        self.notes += self.licence.notes
        keys = self.licence.prefix and any(variant.at_columns for variant in prepared)
        self.recording = record(self.model, self.batch, self.positions, cache=keys)
        if not self.recording.complete:
            self.licence = Licence(copies=True)
        self.baselines = {frozenset[tuple[str, int]](): self._measured(self.recording.logits)}
        planned = [self._planned(number, variant) for number, variant in enumerate(prepared)]
        values: list[Tensor | None] = [None] * len(prepared)
        unedited: list[Tensor | None] = [None] * len(prepared)
        for chunk in self._chunks(sorted(planned, key=lambda variant: (variant.group, variant.number))):
            for variant, (value, base) in zip(chunk, self._forward(chunk), strict=True):
                values[variant.number], unedited[variant.number] = value, base
            told(len(chunk))
        return Swept(_stack(values), _stack(unedited), tuple(dict.fromkeys(self.notes)))

    # ---- planning ---------------------------------------------------------------------------------------------------

    def _planned(self, number: int, variant: _Prepared) -> _Variant:
        edits, eager, plan = variant.edits, variant.eager, variant.plan
        order = {place: position for position, place in enumerate(self.recording.order)}
        places = {self._place(name, layer) for name, _, layer in plan.wishes}
        if not self.licence.replay or not places <= order.keys():
            return _Variant(number, edits, eager, 0, False, None, 0, False)
        start = min((order[place] for place in places), default=len(order))
        first = self.recording.order[start] if start < len(order) else None
        here = {(name, site) for name, site, layer in plan.wishes if self._place(name, layer) == first}
        from_z = first in self.licence.from_z and first is not None and here == {(first.stack, Site.Z)}
        last = self.recording.order[-1]
        late = any(self._place(name, layer) == last and site in _LATE for name, site, layer in plan.wishes)
        changed, column = self._columns(edits) if first is not None else (None, 0)
        if any(self._place(name, layer) != first for name, _, layer in plan.wishes):
            changed = None
        # a block whose z is edited at some columns goes on with them; the last one goes on with what is read
        narrow = self.licence.narrow and not late
        held = from_z and first is not None and self.licence.narrow
        return _Variant(number, edits, eager, start, from_z, changed if held else None, column, narrow)

    def _place(self, stack: str, layer: int) -> BlockId:
        found = self.model.stacks[stack]
        if not found.cross:
            return BlockId(stack, layer)
        own = next(
            name for name, other in self.model.stacks.items() if not other.cross and other.blocks == found.blocks
        )
        return BlockId(own, layer)

    def _columns(self, edits: tuple[Edit, ...]) -> tuple[tuple[int, int] | None, int]:
        """``((first, last) column edited, first column that must run)``; ``(None, 0)`` where any column may change."""
        ends: list[tuple[int, int]] = []
        for edit in edits:
            for at in edit.at:
                stack = self.model.stacks[self.model.default_stack if at.stack is None else at.stack]
                by_row = at.site in (Site.Z, Site.Q) or not (at.site.inside_attention or at.site is Site.RESULT)
                if at.pos is None or not by_row or stack.name != self.model.default_stack:
                    return None, 0
                mask = self.whole.row_mask(stack.name)
                if mask is None:
                    return None, 0
                columns = columns_of(at.pos, self.whole, mask.shape[1], mask.device, mask=mask).any(0).nonzero()
                if len(columns):
                    ends.append((int(columns.min()), int(columns.max())))
        if not ends:
            return None, 0
        changed = min(first for first, _ in ends), max(last for _, last in ends)
        if not self.licence.prefix or self.positions is None or not keeps_every_key(self.recording):
            return changed, 0
        return changed, min(changed[0], int(self.positions.min()))

    # ---- running ----------------------------------------------------------------------------------------------------

    def _chunks(self, planned: Sequence[_Variant]) -> Iterator[list[_Variant]]:
        """Variants that share a forward: of one group, as many as fit, and about as many in each forward."""
        for _, members in itertools.groupby(planned, key=lambda variant: variant.group):
            group = list(members)
            while group:
                forwards = math.ceil(len(group) / self._copies(group[0]))
                size = math.ceil(len(group) / forwards)
                yield group[:size]
                group = group[size:]

    def _copies(self, variant: _Variant) -> int:
        if self.batch_size is not None:
            return max(1, self.batch_size // len(self.batch) - needs_own_baseline(self.model))
        fits = tokens_at_once(self.model) // (len(self.batch) * max(1, self.batch.width - variant.column))
        logits = self.recording.logits
        if logits is not None and self.positions is None:
            fits = min(fits, _LOGITS // max(1, logits.numel()))
        return max(1, fits)

    def _forward(self, chunk: Sequence[_Variant]) -> list[tuple[Tensor, Tensor]]:
        try:
            return self._together(chunk)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(chunk) == 1 or not out_of_memory(error):
                raise
        half = len(chunk) // 2
        self.batch_size = half * len(self.batch)
        self.notes.append(f"Memory did not suffice: the sweep went on with {self.batch_size} prompts per forward.")
        accelerator: Any = getattr(torch, self.model.device.type, None)
        if hasattr(accelerator, "empty_cache"):
            accelerator.empty_cache()
        return [*self._forward(chunk[:half]), *self._forward(chunk[half:])]

    def _together(self, chunk: Sequence[_Variant]) -> list[tuple[Tensor, Tensor]]:
        own = needs_own_baseline(self.model)
        first, copies = chunk[0], len(chunk) + own
        edits = [edit for variant in chunk for edit in variant.edits]
        owners = [copy for copy, variant in enumerate(chunk) for _ in variant.edits]
        suffix = Suffix(first.start, copies, first.from_z, first.changed, first.column, self.positions, first.narrow)
        session = Session(
            self.model, self.whole, edits, eager=sorted(first.eager), copies=Copies(copies, owners, self.rows)
        )
        with session:
            logits = replay(self.model, self.recording, suffix)
        session.check_fired()
        assert logits is not None, "the licence was tried with logits"
        parts = logits.split(len(logits) // copies)
        base = self._measured(parts[-1]) if own else self._baseline(first.eager)
        return [(self._measured(part), base) for part in parts[: len(chunk)]]

    def _measured(self, logits: Tensor | None) -> Tensor:
        return metric_values(self.metric, logits, self.batch, self.rows)

    def _baseline(self, eager: frozenset[tuple[str, int]]) -> Tensor:
        if eager not in self.baselines:
            columns = "all" if self.positions is None else self.positions
            plain = run(self.model, self.batch, logits=columns, kernels=dict.fromkeys(eager, "eager"))
            self.baselines[eager] = self._measured(plain.logits)
        return self.baselines[eager]


def needs_own_baseline(model: Model) -> bool:
    """Whether an unedited copy runs in every forward: the rounding of half precision depends on the rows beside it."""
    return model.dtype not in (torch.float32, torch.float64)


def _stack(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([part for part in parts if part is not None])


def tokens_at_once(model: Model) -> int:
    """Tokens of all copies in one forward, where the caller names no batch size."""
    return _TOKENS_CPU if model.device.type == "cpu" else _TOKENS


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice."""
    words = str(error).lower()  # accelerators of all makes, and the CPU
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in words or "can't allocate memory" in words


def logits_for(metric: Metric, model: Model) -> Literal["answers", "all"]:
    """The positions that ``metric`` declares; all without, and where the model has no unembedding per position."""
    reads_answers = getattr(metric, "positions", None) == "answers"
    return "answers" if reads_answers and output_embeddings(model) is not None else "all"


def metric_values(metric: Metric, logits: Tensor | None, batch: Batch, rows: Tensor | None = None) -> Tensor:
    """``[batch]`` (or ``[batch, k]``) what ``metric`` makes of the logits, in float32 at least.

    Messages number prompts by ``rows``.

    Raises:
        BadInput: a scalar, another number of prompts, or NaN.
    """
    name = getattr(metric, "__name__", repr(metric))
    if logits is None:
        raise BadInput(f"metric {name}: the model gives no logits; load it with its head.")
    values = metric(logits, batch)
    if not isinstance(values, Tensor) or values.ndim == 0 or values.shape[0] != len(batch):
        came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise BadInput(f"metric {name}: it gave {came}, expected one number per prompt, a tensor [{len(batch)}].")
    wrong = ~torch.isfinite(values).reshape(len(batch), -1).all(1)
    if bool(wrong.any()):
        numbers = torch.arange(len(batch)) if rows is None else rows
        raise BadInput(f"metric {name}: NaN or infinity for the prompts {numbers[wrong.cpu()].tolist()}.")
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))  # True and False are 1 and 0
