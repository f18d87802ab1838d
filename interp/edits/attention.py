"""Edits of the attention map: before the softmax (knockout, sharpen, boost) and after it (uniform, set_pattern,
freeze_pattern, to_identity, redistribute).

They need a family whose attention goes through the registered attention function; elsewhere they are refused. A row
that an edit leaves without a visible key attends to nothing: its pattern and its z are 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.edits.activations import same_length, spread
from interp.edits.base import Context, Edit, Phase, Preparation, Value, address, make
from interp.edits.groups import Group, columns_of
from interp.errors import BadInput

_PATTERN = (Site.PATTERN,)


def _pattern_address(at: At | Site | str, name: str) -> At:
    where = At.parse(at)
    if where.site is Site.Z:  # a head named by its output means its map here
        where = where.with_(site=Site.PATTERN)
    return address(where, _PATTERN, name)


def _keys(group: Group, x: Tensor, ctx: Context) -> Bool[Tensor, "batch 1 1 key"]:
    assert ctx.keys is not None
    width = int(ctx.keys.max()) + 1
    member = columns_of(group, ctx.batch, width, x.device, mask=_key_mask(ctx))
    return _per_row(member, x)[:, ctx.keys.to(x.device)][:, None, None, :]


def _key_mask(ctx: Context) -> Tensor | None:
    return ctx.batch.key_mask(ctx.at.stack) if ctx.batch is not None else None


def _own_mask(ctx: Context) -> Tensor | None:
    return ctx.batch.row_mask(ctx.at.stack) if ctx.batch is not None else None


def _per_row(member: Tensor, x: Tensor) -> Tensor:
    if member.shape[0] not in (1, x.shape[0]):
        member = member.repeat_interleave(x.shape[0] // member.shape[0], dim=0)
    return member


def knockout(
    queries: Group,
    keys: Group,
    *,
    layers: int | Iterable[int] | None = None,
    heads: int | Iterable[int] | None = None,
    stack: str | None = None,
    phase: Phase = "both",
) -> Edit:
    """An edit that forbids attention from ``queries`` to ``keys``: those scores become minus infinity.

    Args:
        queries: the rows: ``None`` all, an int or slice over each prompt's own tokens, a span's name, a BoolTensor
            ``[batch, pos]``, or a LongTensor ``[batch, k]`` of columns.
        keys: the columns, in the same forms.
        layers: a window of layers, ``None`` for all.
        heads: which heads, ``None`` for all.
        stack: which stack.
        phase: rows it applies to in generation.

    The rest of the row is renormalised by the softmax. A row without any key left is 0, and so is its z.
    Attention knockout (Geva et al., 2023).

    Example:
        >>> knockout(-1, slice(0, 2), layers=range(3, 5))
        knockout(At(Site.SCORES, layer=(3, 4)), queries=-1, keys=slice(0, 2, None))
    """
    where = At(Site.SCORES, layers, heads=heads, stack=stack)

    def apply(x: Tensor, ctx: Context) -> Tensor:
        width = int(ctx.rows.max()) + 1
        member = _per_row(columns_of(queries, ctx.batch, width, x.device, mask=_own_mask(ctx)), x)
        blocked = member[:, ctx.rows.to(x.device)][:, None, :, None] & _keys(keys, x, ctx)
        return x.masked_fill(blocked, -torch.inf)

    return make(
        "knockout",
        where,
        apply,
        phase=phase,
        rows=(queries,),
        groups=(keys,),
        settings={"queries": queries, "keys": keys},
    )


def sharpen(at: At | Site | str, temperature: Any, *, axes: str | None = None, phase: Phase = "both") -> Edit:
    """An edit that divides the scores at ``at`` by ``temperature`` (below 1 sharpens, above 1 flattens, 1 is neutral).

    Args:
        at: ``At(Site.SCORES, ...)`` (``PATTERN`` or ``Z`` name the same head).
        temperature: a positive scalar, or a tensor per head as in :func:`interp.gate`.

    Example:
        >>> sharpen(At(Site.SCORES, layer=0), 0.5)
        sharpen(At(Site.SCORES, layer=0))
    """
    where = At.parse(at)
    if where.site in (Site.PATTERN, Site.Z):
        where = where.with_(site=Site.SCORES)
    where = address(where, (Site.SCORES,), "sharpen")
    value = Value.of(temperature, axes, where, "sharpen's temperature")
    if not bool((value.data.detach() > 0).all()):
        raise BadInput("sharpen: temperature must be positive.")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        return x / value.over(x, ctx)

    return make("sharpen", where, apply, phase=phase, values=(value,))


def boost(at: At | Site | str, keys: Group, by: Any, *, axes: str | None = None, phase: Phase = "both") -> Edit:
    """An edit that adds ``by`` to the scores of ``keys`` before the softmax; 0 is neutral, blocked keys stay blocked.

    Args:
        at: ``At(Site.SCORES, ...)`` (``PATTERN`` or ``Z`` name the same head); its ``pos`` chooses the rows.
        keys: the columns, as in :func:`knockout`.
        by: what is added, in nats; a scalar or a tensor per head.

    Example:
        >>> boost(At(Site.SCORES, layer=0), 0, by=2.0)
        boost(At(Site.SCORES, layer=0), keys=0)
    """
    where = At.parse(at)
    if where.site in (Site.PATTERN, Site.Z):
        where = where.with_(site=Site.SCORES)
    where = address(where, (Site.SCORES,), "boost")
    value = Value.of(by, axes, where, "boost's by")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        return torch.where(_keys(keys, x, ctx), x + value.over(x, ctx), x)

    return make("boost", where, apply, phase=phase, values=(value,), groups=(keys,), settings={"keys": keys})


def uniform(at: At | Site | str = Site.PATTERN, *, phase: Phase = "both") -> Edit:
    """An edit that makes each row attend evenly to its visible keys: 1/n each.

    With sink logits the row sums to 1 all the same, and the sink gets nothing.

    Example:
        >>> uniform(At(Site.PATTERN, layer=0))
        uniform(At(Site.PATTERN, layer=0))
    """
    where = _pattern_address(at, "uniform")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        assert ctx.visible is not None
        visible = ctx.visible.expand_as(x)
        return (visible / visible.sum(-1, keepdim=True).clamp(min=1)).to(x.dtype)  # counts are exact in float32

    return make("uniform", where, apply, phase=phase)


def set_pattern(at: At | Site | str, value: Any, *, axes: str | None = None, phase: Phase = "both") -> Edit:
    """An edit that replaces the attention pattern by ``value``.

    Args:
        at: ``At(Site.PATTERN, ...)``.
        value: in the shape of ``run[at]``, or with ``axes`` such as ``"query key"`` or ``"head query key"``. Used as
            given: rows may sum to less than one, and nothing is renormalised.
        axes: names of the value's axes.

    Raises:
        BadInput: negative entries, NaN, or a shape without named axes that is not the address's own.

    Example:
        >>> set_pattern(At(Site.PATTERN, layer=0), torch.eye(4), axes="query key")
        set_pattern(At(Site.PATTERN, layer=0))
    """
    return _hold("set_pattern", _pattern_address(at, "set_pattern"), value, axes, phase)


def _hold(name: str, where: At, value: Any, axes: str | None, phase: Phase, *, by_column: bool = False) -> Edit:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    own = where.site.axes if isinstance(where.layer, int) else ("layer", *where.site.axes)
    names = " ".join(own) if axes is None and tensor.ndim == len(own) else axes
    pattern = Value.of(tensor, names, where, f"{name}'s value")
    if bool((pattern.data.detach() < 0).any()):
        raise BadInput(f"{name}: negative entries are not attention.")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        return _cut_keys(pattern.along(x, ctx), x, ctx, by_column=by_column)

    return make(name, where, apply, phase=phase, values=(pattern,), prompt_only=where.pos is None)


def _cut_keys(value: Tensor, x: Tensor, ctx: Context, *, by_column: bool) -> Tensor:
    """``value`` over the rows and keys of this call; keys beyond those it holds get 0 in the rows it holds."""
    assert ctx.keys is not None
    held, keys = value.shape[-1], ctx.keys.to(x.device)
    if held == 1:
        value = value.expand(*value.shape[:-1], x.shape[-1])
    else:
        inside = keys < held
        value = value.index_select(-1, keys.clamp(max=held - 1)) * inside.to(value.dtype)
    whole = spread(value, x, ctx, by_column=by_column)
    if ctx.row_mask is None:
        return whole
    real = _per_row(ctx.row_mask.to(x.device), x)[:, None, :, None]
    return torch.where(real, whole, x)  # what was read at a padded row is 0 by convention, not what ran


def freeze_pattern(at: At | Site | str = Site.PATTERN, source: Any = None, *, phase: Phase = "both") -> Edit:
    """An edit that holds the attention pattern at ``at`` at that of an unedited run.

    Args:
        at: ``At(Site.PATTERN, ...)``, all heads of all layers by default.
        source: a ``Batch`` or ``Run`` to take the patterns from; by default the batch itself, run unedited.

    What edits change then travels through values alone (pattern-preserving ablation, Olsson et al., 2022).

    Example:
        >>> freeze_pattern()
        freeze_pattern(At(Site.PATTERN))
    """
    where = _pattern_address(at, "freeze_pattern")

    def prepare(run: Preparation) -> Edit:
        if source is None or (hasattr(source, "inputs") and hasattr(source, "mask")):
            donor = source if source is not None else run.batch
            same_length(run.batch, donor, "freeze_pattern")
            tensor = run.read(donor, where.with_(pos=None))
        else:
            tensor = source[where.with_(pos=None)]
        return _hold("freeze_pattern", where, tensor, None, phase, by_column=True)

    return make("freeze_pattern", where, None, phase=phase, prepare=prepare, prompt_only=where.pos is None)


def to_identity(at: At | Site | str, strength: Any, *, axes: str | None = None, phase: Phase = "both") -> Edit:
    """An edit that blends the pattern with the identity map: ``(1 - s) A + s I``; strength 0 is neutral.

    Args:
        at: ``At(Site.PATTERN, ...)``; self-attention only.
        strength: in [0, 1]; a scalar or a tensor per head as in :func:`interp.gate`.

    Example:
        >>> to_identity(At(Site.PATTERN, layer=0), 0.5)
        to_identity(At(Site.PATTERN, layer=0))
    """
    where = _pattern_address(at, "to_identity")
    if (where.stack or "").startswith("cross"):
        raise BadInput("to_identity: cross-attention has no identity map (its queries are not its keys).")
    value = Value.of(strength, axes, where, "to_identity's strength")
    if float(value.data.detach().min()) < 0 or float(value.data.detach().max()) > 1:
        raise BadInput("to_identity: strength lies in [0, 1].")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        assert ctx.keys is not None
        share = value.over(x, ctx)
        same = (ctx.rows.to(x.device)[:, None] == ctx.keys.to(x.device)[None, :]).to(x.dtype)
        return (1 - share) * x + share * same

    return make("to_identity", where, apply, phase=phase, values=(value,))


def redistribute(at: At | Site | str, keys: Group, budget: float, to: Group = None, *, phase: Phase = "both") -> Edit:
    """An edit that takes the share ``budget`` of the mass on ``keys`` and gives it to ``to``; row sums stay.

    Args:
        at: ``At(Site.PATTERN, ...)``; its ``pos`` chooses the rows.
        keys: the columns that give, as in :func:`knockout`.
        budget: share of their mass that is moved, in [0, 1]; 0 is neutral.
        to: the columns that receive, in proportion to what they have; by default every other visible key.
        phase: rows it applies to in generation.

    See :func:`redistribute_mass` for the formula.

    Example:
        >>> redistribute(At(Site.PATTERN), keys=0, budget=0.5)
        redistribute(At(Site.PATTERN), keys=0, budget=0.5)
    """
    where = _pattern_address(at, "redistribute")
    if not 0 <= budget <= 1:
        raise BadInput(f"redistribute: budget={budget!r}, expected a share in [0, 1].")

    def apply(x: Tensor, ctx: Context) -> Tensor:
        giving = _keys(keys, x, ctx)
        receiving = _keys(to, x, ctx) & ~giving
        return redistribute_mass(x, giving, receiving, budget)

    return make("redistribute", where, apply, phase=phase, groups=(keys, to), settings={"keys": keys, "budget": budget})


def redistribute_mass(
    pattern: Float[Tensor, "batch head query key"],
    giving: Bool[Tensor, "#batch 1 1 key"],
    receiving: Bool[Tensor, "#batch 1 1 key"],
    budget: float,
) -> Float[Tensor, "batch head query key"]:
    """The pattern with ``budget`` of the mass on ``giving`` moved to ``receiving`` in proportion to their mass.

    With G and R the masses on the two groups: ``A'_j = (1 - b) A_j`` on giving keys, ``A'_j = A_j (1 + b G / R)`` on
    receiving keys. Rows with R = 0 stay as they are, since nobody could receive. Row sums and the ratios among the
    receiving keys are kept (visual attention redistribution, Kang et al., ICLR 2025).

    Example:
        >>> a = torch.tensor([[[[0.5, 0.3, 0.2]]]])
        >>> g = torch.tensor([[[[True, False, False]]]])
        >>> redistribute_mass(a, g, ~g, 1.0)
        tensor([[[[0.0000, 0.6000, 0.4000]]]])
    """
    mass_giving = (pattern * giving).float().sum(-1, keepdim=True)
    mass_receiving = (pattern * receiving).float().sum(-1, keepdim=True)
    possible = mass_receiving > 0
    growth = 1 + budget * mass_giving / mass_receiving.where(possible, torch.ones_like(mass_receiving))
    moved = torch.where(
        giving, pattern * (1 - budget), torch.where(receiving, pattern * growth.to(pattern.dtype), pattern)
    )
    return torch.where(possible, moved, pattern)
