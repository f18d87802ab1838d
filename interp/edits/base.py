"""What an edit is: a pure tensor function at an address, with values whose axes are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput

Phase = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class Context:
    """What an edit's function may know about the place and moment it is applied at.

    Attributes:
        at: the address of the edit being applied; ``layer`` is the block index of this call.
        layers: the edit's layers in their order (a value with a layer axis is indexed by it).
        batch: the encoded prompts, ``None`` inside :func:`interp.edited` without a batch.
        step: 0 for the first forward, counting up during generation.
        rows: ``[pos]`` absolute columns of the rows of this call (key columns at K and V).
        keys: ``[key]`` absolute columns of the keys, ``None`` outside attention maps.
        row_mask: ``[batch, pos]`` True where a row is a real token, ``None`` where nothing is padded.
        visible: ``[batch, 1 or head, query, key]`` True where the mask lets the query see the key;
            ``None`` outside attention maps.
        decode: ``[pos]`` True for rows at or after the first generated token.
        prompts: ``[batch]`` which prompt each row of the batch belongs to (beams of one prompt share it).
        seed_parts: integers that tell this edit apart from others of its kind: stack, site, and how many of the same
            name come before it there.
        reads: what the edit's ``reads`` saw earlier in this forward, by address.
    """

    at: At
    layer: int
    layers: tuple[int, ...]
    batch: Any
    step: int
    rows: Tensor
    keys: Tensor | None
    row_mask: Tensor | None
    visible: Tensor | None
    decode: Tensor
    prompts: Tensor
    seed_parts: tuple[int, ...] = ()
    reads: Mapping[At, Tensor] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """``"prefill"``, ``"decode"``, or ``"both"`` where one call holds rows of both."""
        some, every = bool(self.decode.any()), bool(self.decode.all())
        return "decode" if every and len(self.decode) else "both" if some else "prefill"


# ``(x, ctx) -> tensor`` of the same shape; ``x`` holds the addressed heads and every row of the call
EditFunction = Callable[[Tensor, Context], Tensor]


@runtime_checkable
class Preparation(Protocol):
    """What ``Edit.prepare`` is given: the batch of the run, and a way to read an unedited run."""

    @property
    def batch(self) -> Any: ...

    def read(self, batch: Any, at: At) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor whose axes are named, to be laid along the axes of a site.

    Args:
        data: the numbers.
        axes: names among ``batch layer head query key pos d_model d_head``; without it only a scalar, ``[head]`` at
            one layer, ``[layer, head]`` at several and ``[batch, layer, head]`` are accepted. Never guessed.
        what: the argument's name, for messages.
    """

    data: Tensor
    axes: tuple[str, ...]
    what: str

    @classmethod
    def of(cls, data: Any, axes: str | Sequence[str] | None, at: At, what: str) -> Value:
        """The value ``data`` at ``at``.

        Raises:
            BadInput: the axes are missing and not one of the four accepted shapes, or do not fit the site.
        """
        try:
            tensor = data if isinstance(data, Tensor) else torch.as_tensor(data)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{what} is {data!r}; expected a number or a tensor ({error}).") from None
        if tensor.is_complex():
            raise BadInput(f"{what} is of {tensor.dtype}; expected real numbers.")
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        if not bool(torch.isfinite(tensor.detach()).all()):
            raise BadInput(f"{what} holds NaN or infinity; expected finite numbers.")
        if axes is None:
            names = _default_axes(tensor, at, what)
        else:
            names = tuple(axes.split()) if isinstance(axes, str) else tuple(axes)
            allowed = {*at.site.axes, "layer"}
            if len(names) != tensor.ndim or len(set(names)) != len(names) or not set(names) <= allowed:
                raise BadInput(
                    f"{what} has shape {list(tensor.shape)} and axes={' '.join(names)!r}: expected one distinct name "
                    f"per axis among {' '.join(a for a in ('layer', *at.site.axes))} at {at.site!r}."
                )
        if "layer" in names and isinstance(at.layer, int) and tensor.shape[names.index("layer")] != 1:
            raise BadInput(
                f"{what} has a layer axis of {tensor.shape[names.index('layer')]} but {at} is one layer; "
                "drop the axis, or address several layers."
            )
        return cls(tensor, names, what)

    def check(self, at: At, sizes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a value whose axes do not fit ``sizes`` (axis name -> lengths that fit, known before the run)."""
        for name, length in zip(self.axes, self.data.shape, strict=True):
            expected = sizes.get(name)
            if expected is not None and length not in expected:
                raise BadInput(
                    f"{self.what} has {length} along {name!r} at {at}, expected {' or '.join(map(str, expected))} "
                    f"(value axes {' '.join(self.axes)}, shape {list(self.data.shape)})."
                )

    def along(self, x: Tensor, ctx: Context) -> Tensor:
        """The value for this layer, broadcastable against ``x`` (axes of the site)."""
        data = self.data.to(device=x.device, dtype=x.dtype)
        axes = list(self.axes)
        if "layer" in axes:
            where = axes.index("layer")
            data = data.select(where, ctx.layers.index(ctx.layer) if data.shape[where] > 1 else 0)
            axes.pop(where)
        target = [axis for axis in ctx.at.site.axes if axis in axes]
        data = data.permute([axes.index(axis) for axis in target])
        for position, axis in enumerate(ctx.at.site.axes):
            if axis not in target:
                data = data.unsqueeze(position)
        if "batch" in axes and data.shape[0] not in (1, x.shape[0]):
            if x.shape[0] % data.shape[0]:
                raise BadInput(
                    f"{self.what} is for {data.shape[0]} prompts, but the model ran a batch of {x.shape[0]}."
                )
            data = data.repeat_interleave(x.shape[0] // data.shape[0], dim=0)  # beams, several returned sequences
        return data

    @property
    def by_position(self) -> bool:
        """Whether it holds one number per position, so that it says nothing about rows that come later."""
        along = zip(self.axes, self.data.shape, strict=True)
        return any(length > 1 for name, length in along if name in ("pos", "query", "key"))

    def over(self, x: Tensor, ctx: Context) -> Tensor:
        """The value for this layer and for the rows and keys of this call, broadcastable against ``x``.

        A value per position is looked up by absolute column; beyond its last one it repeats (no row there is edited).
        """
        made = self.along(x, ctx)
        for axis, name in enumerate(ctx.at.site.axes):
            columns = ctx.keys if name == "key" else ctx.rows if name in ("pos", "query") else None
            if columns is not None and made.shape[axis] > 1:
                made = made.index_select(axis, columns.to(made.device).clamp(max=made.shape[axis] - 1))
        return made


def _default_axes(tensor: Tensor, at: At, what: str) -> tuple[str, ...]:
    if tensor.ndim == 0:
        return ()
    if at.site.per_head:
        one = isinstance(at.layer, int) or (at.layers is not None and len(at.layers) == 1)
        if tensor.ndim == 1 and one:
            return ("head",)
        if tensor.ndim == 2 and not isinstance(at.layer, int):  # noqa: PLR2004 - [layer, head]
            return ("layer", "head")
        if tensor.ndim == 3:  # noqa: PLR2004 - [batch, layer, head]
            return ("batch", "layer", "head")
    raise BadInput(
        f"{what} of shape {list(tensor.shape)} at {at}: without axes= only a scalar, [head] at one layer, [layer, "
        f"head] at several and [batch, layer, head] are accepted. Name them, for example "
        f"axes='{' '.join(at.site.axes[-tensor.ndim :])}'."
    )


@dataclass(frozen=True, eq=False)
class Edit:
    """A pure tensor function at one or more addresses; made by the constructors of :mod:`interp.edits`.

    Attributes:
        name: the constructor's name.
        at: the addresses it applies to.
        function: ``(x, ctx) -> tensor`` of the same shape as ``x``.
        values: the tensors it uses, checked against the model and batch before any forward.
        reads: addresses that must have been seen earlier in the same forward; given as ``ctx.reads``.
        phase: rows it applies to in generation: ``"prefill"`` before the first generated token, ``"decode"`` from it.
        prepare: makes the final edit from what an unedited run shows; called once, before the run.
        prompt_only: it has no meaning for generated rows.
        rows: groups of positions that it looks up among the rows, checked before any forward.
        groups: groups of positions that it looks up among the keys, checked before any forward.
        settings: what its ``repr`` shows.
    """

    name: str
    at: tuple[At, ...]
    function: EditFunction | None = None
    values: tuple[Value, ...] = ()
    reads: tuple[At, ...] = ()
    phase: Phase = "both"
    prepare: Callable[[Preparation], Edit] | None = None
    prompt_only: bool = False
    rows: tuple[Any, ...] = ()
    groups: tuple[Any, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        where = ", ".join(map(repr, self.at))
        return f"{self.name}({where}{', ' if shown else ''}{shown})"

    def with_phase(self, phase: Phase) -> Edit:
        """A copy that applies to the rows of ``phase`` only."""
        return replace(self, phase=_phase(phase))


def _phase(phase: Any) -> Phase:
    if phase not in ("both", "prefill", "decode"):
        raise BadInput(f"phase={phase!r}: expected 'prefill', 'decode' or 'both'.")
    return phase


def address(at: At | Site | str, allowed: Sequence[Site] | None, name: str) -> At:
    """``at`` as an address, refused where ``name`` has no meaning at its site."""
    where = At.parse(at)
    if allowed is not None and where.site not in allowed:
        raise BadInput(
            f"{name} works at {', '.join(map(repr, allowed))}, not at {where.site!r}."
            + (" Use interp.set_pattern or interp.knockout for attention maps." if where.site is Site.PATTERN else "")
        )
    return where


def make(
    name: str, at: At | Sequence[At], function: EditFunction | None, *, phase: Phase = "both", **fields: Any
) -> Edit:
    """An edit called ``name`` at ``at``."""
    where = (at,) if isinstance(at, At) else tuple(at)
    fields.setdefault("prompt_only", any(value.by_position for value in fields.get("values", ())))
    return Edit(name, where, function, phase=_phase(phase), **fields)
