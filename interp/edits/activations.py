"""Edits of activations: zero, mean, resample, noise, patch, gate, scale, add, and a caller's own function.

"Zeroing a head" is ambiguous in the literature; here ``zero(At(Site.Z))`` sets z to 0 (removal, the projection's bias
stays), ``mean`` sets it to a mean, :func:`interp.edits.uniform` makes it attend evenly, and ``zero(At(Site.Q))`` zeroes
the query. Results name the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.address import At, Head, Site
from interp.edits.base import Context, Edit, Phase, Preparation, Value, address, make
from interp.edits.groups import columns_of
from interp.edits.random import counter_normal
from interp.errors import BadInput

_VECTORS = tuple(site for site in Site if site not in (Site.SCORES, Site.PATTERN))


def zero(at: At | Site | str, *, phase: Phase = "both") -> Edit:
    """An edit that sets the tensor at ``at`` to 0.

    At ``Site.Z`` this removes a head: what it writes becomes the projection's bias alone. Off-distribution; see
    :func:`mean` and :func:`resample`. At ``Site.SCORES`` visible scores become 0, blocked ones stay blocked.

    Example:
        >>> zero(At(Site.Z, layer=9, heads=(6, 9)))
        zero(At(Site.Z, layer=9, heads=(6, 9)))
    """
    where = address(at, None, "zero")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        blank = torch.zeros_like(x)
        return torch.where(torch.isneginf(x), x, blank) if ctx.at.site is Site.SCORES else blank

    return make("zero", where, apply, phase=phase)


def gate(at: At | Site | str, value: Any, *, axes: str | None = None, phase: Phase = "both") -> Edit:
    """An edit that multiplies the tensor at ``at`` by a factor in [0, 1]; 1 is bit-exactly neutral.

    Args:
        at: usually ``At(Site.Z)``.
        value: a scalar, ``[head]`` at one layer, ``[layer, head]`` at several, ``[batch, layer, head]``, or any tensor
            with ``axes``. May require gradients.
        axes: names of the value's axes.
        phase: rows it applies to in generation.

    Raises:
        BadInput: a factor outside [0, 1] (use :func:`scale`), or axes that do not fit.

    Example:
        >>> gate(At(Site.Z, layer=0), [0.0, 1.0])
        gate(At(Site.Z, layer=0))
    """
    where = address(at, None, "gate")
    factor = Value.of(value, axes, where, "gate's value")
    low, high = float(factor.data.detach().min()), float(factor.data.detach().max())
    if low < 0 or high > 1:
        raise BadInput(f"gate: factors from {low:g} to {high:g} were given; a gate lies in [0, 1]. Use interp.scale.")
    return make("gate", where, _multiply(factor), phase=phase, values=(factor,))


def scale(
    at: At | Site | str | None = None,
    by: Any = None,
    *,
    heads: Iterable[Head | str | Sequence[int]] | None = None,
    axes: str | None = None,
    phase: Phase = "both",
) -> Edit:
    """An edit that multiplies the tensor at ``at`` (or z of ``heads``) by ``by``; 1 is bit-exactly neutral.

    Args:
        at: the address; leave out when ``heads`` is given.
        by: the factor: a scalar, or a tensor as in :func:`gate`.
        heads: heads of one stack, in any layers, whose z is scaled by the scalar ``by``.
        axes: names of the value's axes.
        phase: rows it applies to in generation.

    Example:
        >>> scale(heads=[Head(16, 19)], by=2.0)
        scale(At(Site.Z, layer=16, heads=(19,)))
    """
    if by is None:
        raise BadInput("scale: by= is missing; give the factor, for example by=2.0.")
    if (at is None) == (heads is None):
        raise BadInput("scale: give either an address or heads=, not both and not neither.")
    where = list(_by_layer(heads)) if heads is not None else [address(at, None, "scale")]  # type: ignore[arg-type]
    factor = Value.of(by, axes, where[0], "scale's by")
    if heads is not None and factor.axes:
        raise BadInput("scale(heads=...): by= must be one number; with a factor per head give an address and axes=.")
    return make("scale", where, _multiply(factor), phase=phase, values=(factor,))


def _by_layer(heads: Iterable[Any]) -> Iterable[At]:
    layers: dict[tuple[str | None, int], list[int]] = {}
    for item in heads:
        head = Head.parse(item)
        layers.setdefault((head.stack, head.layer), []).append(head.index)
    if not layers:
        raise BadInput("scale: heads=[] names no head.")
    return [At(Site.Z, layer, heads=tuple(indices), stack=stack) for (stack, layer), indices in layers.items()]


def _multiply(factor: Value) -> Callable[[Tensor, Context], Tensor]:
    def apply(x: Tensor, ctx: Context) -> Tensor:
        product = x * factor.over(x, ctx)
        # a blocked score stays blocked: -inf times 0 or a negative number is not a score
        return torch.where(torch.isneginf(x), x, product) if ctx.at.site is Site.SCORES else product

    return apply


def add(at: At | Site | str, vector: Any, *, axes: str | None = None, by: float = 1.0, phase: Phase = "both") -> Edit:
    """An edit that adds ``by * vector`` to the tensor at ``at`` (steering); ``by=0`` is neutral.

    Args:
        at: the address.
        vector: a scalar or a tensor with ``axes``, for example ``axes="d_model"`` at a residual site.
        axes: names of the vector's axes.
        by: strength.
        phase: rows it applies to in generation.

    Example:
        >>> add(At(Site.RESID_POST, layer=0), torch.ones(4), axes="d_model", by=2.0)
        add(At(Site.RESID_POST, layer=0), by=2.0)
    """
    where = address(at, _VECTORS, "add")
    value = Value.of(vector, axes, where, "add's vector")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        return x + by * value.over(x, ctx)

    return make("add", where, apply, phase=phase, values=(value,), settings={"by": by})


def noise(at: At | Site | str, *, std: float, seed: int = 0, phase: Phase = "both") -> Edit:
    """An edit that adds Gaussian noise of standard deviation ``std``; 0 is neutral.

    Each number depends on (seed, stack, site, layer, head, position among the prompt's own tokens, the prompt's
    content,
    channel) alone, so that cached and uncached generation, any padding, any batch order and any batch size draw the
    same; two equal prompts draw the same as well.

    Example:
        >>> noise(At(Site.Z), std=0.1)
        noise(At(Site.Z), std=0.1, seed=0)
    """
    where = address(at, _VECTORS, "noise")
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 <= std < math.inf:
        raise BadInput(f"noise: std={std!r}, expected a finite number of at least 0.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise BadInput(f"noise: seed={seed!r}, expected an int of at most 64 bits.")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        device = x.device
        parts = [torch.tensor(part, device=device) for part in (seed, *ctx.seed_parts, ctx.layer)]
        prompts, positions = _prompt_keys(ctx, device), _own_positions(ctx, device)
        parts.append(prompts.view(-1, *[1] * (x.ndim - 1)))
        parts.append(positions.view(*positions.shape, *[1] * (x.ndim - 2)))
        if ctx.at.site.per_head:
            heads = ctx.at.heads if ctx.at.heads is not None else range(x.shape[2])
            parts.append(torch.tensor(list(heads), device=device).view(1, 1, -1, 1))
        parts.append(torch.arange(x.shape[-1], device=device))
        return x + std * counter_normal(parts).to(x.dtype)

    return make("noise", where, apply, phase=phase, settings={"std": std, "seed": seed})


def _prompt_keys(ctx: Context, device: torch.device) -> Int[Tensor, " batch"]:
    """A number per prompt that depends on its content, its index where there is no batch."""
    prompts = ctx.prompts.to(device)
    return prompts if ctx.batch is None else ctx.batch.content_keys.to(device)[prompts]


def _own_positions(ctx: Context, device: torch.device) -> Int[Tensor, "batch pos"]:
    """``[batch or 1, pos]`` positions of this call's rows, counted over each prompt's own tokens."""
    rows = ctx.rows.to(device)
    mask = ctx.batch.row_mask(ctx.at.stack) if ctx.batch is not None else None
    if mask is None or bool(mask.all()):
        return rows[None]
    before = (~mask).cumsum(-1).to(device)  # padding up to each column; none is added after the prompt
    return (rows[None] - before[:, rows.clamp(max=mask.shape[1] - 1)])[ctx.prompts.to(device)]


def patch(at: At | Site | str, source: Any, *, source_at: At | Site | str | None = None, phase: Phase = "both") -> Edit:
    """An edit that replaces the tensor at ``at`` by another run's.

    Args:
        at: where to put it; with ``pos`` only those positions, with ``heads`` only those heads.
        source: a ``Run`` that has read the address, a ``Batch`` (an unedited run of it is made), or a tensor in the
            shape of ``run[source_at]``.
        source_at: where to take it from (another layer, stack or position), ``at`` by default.
        phase: rows it applies to in generation.

    Raises:
        BadInput: source and target have another length, batch or width.

    Example:
        >>> patch(At(Site.Z, layer=0, heads=(1,)), torch.zeros(1, 4, 1, 2))
        patch(At(Site.Z, layer=0, heads=(1,)))
    """
    where = address(at, None, "patch")
    origin = address(source_at, None, "patch") if source_at is not None else where

    def prepare(run: Preparation) -> Edit:
        tensor = _source_tensor(run, source, origin, where)
        return _replace("patch", where, tensor, phase)

    return make("patch", where, None, phase=phase, prepare=prepare)


def _source_tensor(run: Preparation, source: Any, origin: At, where: At) -> Tensor:
    if isinstance(source, Tensor):
        return source
    if hasattr(source, "inputs") and hasattr(source, "mask"):  # a Batch
        if origin.pos is None:
            same_length(run.batch, source, "patch")
        return run.read(source, origin)
    try:
        tensor = source[origin]
    except (TypeError, IndexError) as error:
        raise BadInput(f"patch: source is a {type(source).__name__}; expected a Run, a Batch or a tensor.") from error
    if origin.pos is None and getattr(source, "batch", None) is not None:
        same_length(run.batch, source.batch, "patch")
    return tensor


def same_length(target: Any, source: Any, name: str, drawn: Tensor | None = None) -> None:
    """Refuse two batches whose prompts differ in number or in length; of ``source`` only the prompts ``drawn``."""
    if target is None:
        return
    mine, theirs = target.mask.sum(-1).tolist(), source.mask.sum(-1).tolist()
    theirs = theirs if drawn is None else [theirs[prompt] for prompt in drawn.tolist()]
    if len(theirs) not in (1, len(mine)):
        raise BadInput(f"{name}: {len(theirs)} source prompts for {len(mine)} prompts; expected as many, or one.")
    if target.mask.shape[-1] != source.mask.shape[-1] or any(
        a != b for a, b in zip(mine, theirs * (len(mine) // len(theirs)), strict=True)
    ):
        raise BadInput(
            f"{name}: clean and corrupted prompts have unequal lengths ({mine} and {theirs} tokens, padded to "
            f"{target.mask.shape[-1]} and {source.mask.shape[-1]}). Use prompts of equal length, or name the positions "
            "with pos= and source_at=."
        )


def _replace(name: str, where: At, tensor: Tensor, phase: Phase, *, by_column: bool = False) -> Edit:
    """An edit that puts ``tensor`` (in the shape of ``run[where]``, or with one entry per column) at ``where``."""
    axes = where.site.axes if isinstance(where.layer, int) else ("layer", *where.site.axes)
    if tensor.ndim != len(axes):
        raise BadInput(
            f"{name}: a tensor of shape {list(tensor.shape)} for {where}, expected the axes {' '.join(axes)} "
            f"(the shape of run[{where!r}])."
        )
    value = Value(tensor, axes, f"{name}'s source")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        return spread(value.along(x, ctx), x, ctx, by_column=by_column)

    held = tensor.shape[axes.index("pos" if "pos" in axes else "query")]
    return make(name, where, apply, phase=phase, values=(value,), prompt_only=where.pos is None and held > 1)


def spread(value: Tensor, x: Tensor, ctx: Context, *, by_column: bool = False) -> Tensor:
    """``value`` over every row of ``x``: rows that it does not hold keep ``x``'s own numbers.

    ``value`` holds either every row of the prompt (cut to the rows of this call), one row for all, or only the
    positions that the address names, in their order (never so with ``by_column``).
    """
    axis = ctx.at.site.axes.index("pos" if "pos" in ctx.at.site.axes else "query")
    held, rows = value.shape[axis], ctx.rows.to(x.device)
    if held == 1:
        return value.expand_as(x)
    columns = None if by_column else _addressed(ctx, held, x.device)
    if columns is not None:
        return _scatter(value, x, columns, rows, axis)
    inside = rows < held
    picked = value.index_select(axis, rows.clamp(max=held - 1)).expand_as(x)
    if bool(inside.all()):
        return picked
    shape = [1] * x.ndim
    shape[axis] = -1
    return torch.where(inside.view(shape), picked, x)


def _addressed(ctx: Context, held: int, device: torch.device) -> Tensor | None:
    """``[batch or 1, held]`` the columns addressed, ``None`` where they are not ``held`` in each prompt."""
    pos = ctx.at.pos
    if pos is None or ctx.batch is None:
        return None
    if isinstance(pos, Tensor):
        return pos.to(device) if pos.shape[1] == held else None
    mask = ctx.batch.row_mask(ctx.at.stack)
    member = columns_of(pos, ctx.batch, int(ctx.rows.max()) + 1, device, mask=mask)
    return member.nonzero()[:, 1].view(-1, held) if bool((member.sum(-1) == held).all()) else None


def _scatter(value: Tensor, x: Tensor, columns: Tensor, rows: Tensor, axis: int) -> Tensor:
    moved, source = x.movedim(axis, 1), value.movedim(axis, 1)
    match = rows[None, :, None] == columns[:, None, :]  # [batch, rows, k]
    if match.shape[0] not in (1, moved.shape[0]):
        match = match.repeat_interleave(moved.shape[0] // match.shape[0], dim=0)
    which = match.float().argmax(-1).expand(moved.shape[0], -1)
    source = source.expand(moved.shape[0], *source.shape[1:2], *moved.shape[2:])
    index = which.view(*which.shape, *[1] * (moved.ndim - 2)).expand(-1, -1, *moved.shape[2:])
    picked = torch.gather(source, 1, index)
    hit = match.any(-1).expand(moved.shape[0], -1).view(moved.shape[0], -1, *[1] * (moved.ndim - 2))
    return torch.where(hit, picked, moved).movedim(1, axis)


def mean(at: At | Site | str, reference: Any = None, *, positions: bool | None = None, phase: Phase = "both") -> Edit:
    """An edit that replaces the tensor at ``at`` by its mean over a reference set.

    Args:
        at: any activation site; usually ``At(Site.Z)``.
        reference: a ``Batch`` (an unedited run of it is made). Without one each prompt gets the mean over the *other*
            prompts of the batch ("mean-self").
        positions: ``True`` one mean per position (every prompt must have the same length), ``False`` one mean over
            positions, BOS and padding left out; by default per position exactly where all lengths agree.
        phase: rows it applies to in generation.

    Raises:
        BadInput: fewer than two prompts without a reference, or unequal lengths with ``positions=True``.

    Example:
        >>> mean(At(Site.Z, layer=0))
        mean-self(At(Site.Z, layer=0), positions=None)
    """
    where = address(at, _VECTORS, "mean")
    name = "mean" if reference is not None else "mean-self"

    def prepare(run: Preparation) -> Edit:
        source = reference if reference is not None else run.batch
        if source is None or (reference is None and len(source) < 2):  # noqa: PLR2004 - one prompt has no others
            raise BadInput("mean: one prompt has no others to average over; give reference= a Batch.")
        lengths = set(source.mask.sum(-1).tolist()) | (set(run.batch.mask.sum(-1).tolist()) if run.batch else set())
        aligned = len(lengths) == 1 and bool(source.mask.all()) and (run.batch is None or bool(run.batch.mask.all()))
        if positions and not aligned:
            raise BadInput(f"mean: positions=True needs prompts of one length, got lengths {sorted(lengths)}.")
        by_position = aligned if positions is None else positions
        tensor = run.read(source, where.with_(pos=None))
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        batch_axis = 0 if isinstance(where.layer, int) else 1
        averaged = _average(tensor, batch_axis, None if by_position else content(source), reference is None)
        return _replace(name, where, averaged, phase, by_column=True)

    return make(name, where, None, phase=phase, prepare=prepare, settings={"positions": positions})


def content(batch: Any) -> Tensor:
    """``[batch, pos]`` True at tokens that are neither padding nor a prompt's first BOS."""
    kept = batch.mask.clone()
    if batch.ids is not None and batch.bos is not None:
        first = (batch.mask.cumsum(-1) == 1) & batch.mask
        kept &= ~(first & (batch.ids == batch.bos))
    return kept


def _average(tensor: Tensor, batch_axis: int, kept: Tensor | None, leave_one_out: bool) -> Tensor:
    """Mean over the batch axis (and over the kept positions), with that axis kept; leave-one-out on request."""
    n = tensor.shape[batch_axis]
    if kept is None:
        total = tensor.sum(batch_axis, keepdim=True)
        return (total - tensor) / (n - 1) if leave_one_out else total / n
    weight = kept.to(tensor.device, tensor.dtype)
    shape = [1] * tensor.ndim
    shape[batch_axis], shape[batch_axis + 1] = weight.shape
    weight = weight.view(shape)
    sums = (tensor * weight).sum(batch_axis + 1, keepdim=True)
    counts = weight.sum(batch_axis + 1, keepdim=True)
    total, count = sums.sum(batch_axis, keepdim=True), counts.sum(batch_axis, keepdim=True)
    if leave_one_out:
        return (total - sums) / (count - counts)
    return total / count


def resample(at: At | Site | str, source: Any = None, *, seed: int = 0, phase: Phase = "both") -> Edit:
    """An edit that replaces each prompt's tensor at ``at`` by that of another prompt, drawn once per ``seed``.

    Args:
        at: any activation site.
        source: a ``Batch`` to draw from, of the same length; by default the batch itself, never the prompt's own.
        seed: which draw.
        phase: rows it applies to in generation.

    Example:
        >>> resample(At(Site.Z), seed=3)
        resample(At(Site.Z), seed=3)
    """
    where = address(at, _VECTORS, "resample")

    def prepare(run: Preparation) -> Edit:
        donors = source if source is not None else run.batch
        if donors is None or (source is None and len(donors) < 2):  # noqa: PLR2004 - one prompt has no others
            raise BadInput("resample: one prompt has no other to draw from; give source= a Batch.")
        n = len(run.batch)
        generator = torch.Generator().manual_seed(seed)
        if source is None:
            order = torch.randperm(n, generator=generator)
            drawn = torch.empty(n, dtype=torch.long)
            drawn[order] = order.roll(1)  # one cycle: nobody draws its own
        else:
            drawn = torch.randint(len(donors), (n,), generator=generator)
        if where.pos is None:
            same_length(run.batch, donors, "resample", drawn)
        tensor = run.read(donors, where)
        picked = tensor.index_select(0 if isinstance(where.layer, int) else 1, drawn.to(tensor.device))
        return _replace("resample", where, picked, phase)

    return make("resample", where, None, phase=phase, prepare=prepare, settings={"seed": seed})


def custom(
    at: At | Site | str,
    fn: Callable[[Tensor, Context], Tensor],
    *,
    reads: Iterable[At | Site | str] = (),
    phase: Phase = "both",
    name: str = "custom",
) -> Edit:
    """An edit made of the caller's own function.

    Args:
        at: the address.
        fn: ``fn(x, ctx) -> tensor`` of the shape and dtype of ``x``; see :class:`Context`.
        reads: addresses of single layers earlier in the forward; ``ctx.reads[address]`` holds what they saw.
        phase: rows it applies to in generation.
        name: how it is called in messages.

    Example:
        >>> custom(At(Site.Z, layer=1), lambda x, ctx: -x)
        custom(At(Site.Z, layer=1))
    """
    where = address(at, None, name)
    wanted = tuple(At.parse(item) for item in reads)
    for item in wanted:
        if not isinstance(item.layer, int):
            raise BadInput(f"{name}: reads={item} must name one layer, so that ctx.reads holds one tensor.")
        if item.pos is not None:
            raise BadInput(f"{name}: reads={item}: ctx.reads holds every row of the call; leave pos= out and slice it.")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        made = fn(x, ctx)
        if not isinstance(made, Tensor) or made.shape != x.shape or made.dtype != x.dtype:
            came = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise BadInput(f"{name} at {ctx.at} returned {came}, expected {x.dtype} {list(x.shape)}.")
        return made

    return make(name, where, apply, phase=phase, reads=wanted)
