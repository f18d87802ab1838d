"""Addresses: which site, which layers, which heads, which positions, in which stack.

Axes everywhere, in this order: ``batch layer head query key pos d_model d_head vocab``
(``query``/``key`` inside attention, ``pos`` elsewhere).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple

import torch

from interp.errors import BadAddress
from interp.names import unknown


class Site(enum.Enum):
    """A place in a transformer block where a tensor can be read or edited."""

    RESID_PRE = "resid_pre"  # [batch, pos, d_model], the block's input
    RESID_MID = "resid_mid"  # after attention was added; refused for parallel blocks
    RESID_CROSS = "resid_cross"  # after cross-attention was added; decoders with cross-attention
    RESID_POST = "resid_post"  # the block's output
    ATTN_RAW = "attn_raw"  # the output projection's output = sum over heads of RESULT, plus bias
    ATTN_OUT = "attn_out"  # what attention really adds to the residual stream
    MLP_OUT = "mlp_out"  # what the MLP really adds to the residual stream
    Q = "q"  # [batch, pos, head, d_head], after RoPE and qk-norm
    K = "k"  # [batch, pos, kv head, d_head], after RoPE and qk-norm
    V = "v"  # [batch, pos, kv head, d_head]
    SCORES = "scores"  # [batch, head, query, key], after scale, bias, soft-cap and mask; blocked = -inf
    PATTERN = "pattern"  # [batch, head, query, key], after softmax; padded rows are 0
    Z = "z"  # [batch, pos, head, d_head], the input of the output projection
    RESULT = "result"  # [batch, pos, head, d_model], z W_O per head

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of this site's tensor at one layer."""
        return _AXES[self]

    @property
    def per_head(self) -> bool:
        """Whether the site has a head axis."""
        return "head" in _AXES[self]

    @property
    def inside_attention(self) -> bool:
        """Whether the site exists only inside the attention function (q, k, v, scores, pattern)."""
        return self in _INSIDE

    def __repr__(self) -> str:
        return f"Site.{self.name}"


_RESID = ("batch", "pos", "d_model")
_HEADED = ("batch", "pos", "head", "d_head")
_MAP = ("batch", "head", "query", "key")
_AXES: dict[Site, tuple[str, ...]] = {
    Site.RESID_PRE: _RESID,
    Site.RESID_MID: _RESID,
    Site.RESID_CROSS: _RESID,
    Site.RESID_POST: _RESID,
    Site.ATTN_RAW: _RESID,
    Site.ATTN_OUT: _RESID,
    Site.MLP_OUT: _RESID,
    Site.Q: _HEADED,
    Site.K: _HEADED,
    Site.V: _HEADED,
    Site.Z: _HEADED,
    Site.RESULT: ("batch", "pos", "head", "d_model"),
    Site.SCORES: _MAP,
    Site.PATTERN: _MAP,
}
_INSIDE = frozenset({Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN})


class Head(NamedTuple):
    """One attention head: ``Head(layer, index, stack)``; prints as ``L5.H3`` (``vision.L5.H3`` off the default).

    ``stack`` is ``None`` for the default stack, the one that makes the logits.
    """

    layer: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    stack: str | None = None

    def __str__(self) -> str:
        prefix = f"{self.stack}." if self.stack else ""
        return f"{prefix}L{self.layer}.H{self.index}"

    @classmethod
    def parse(cls, value: Head | str | Sequence[int]) -> Head:
        """The head that ``value`` names: ``Head``, ``(5, 3)``, ``"5.3"``, ``"L5H3"``, ``"L5.H3"``, ``"a5.h3"``,
        ``"vision.L5.H3"`` or ``"vision/L5H3"``.

        Raises:
            BadAddress: the text is not one of these forms.

        Example:
            >>> str(Head.parse("a5.h3")), Head.parse((5, 3)) == Head.parse("L5H3")
            ('L5.H3', True)
        """
        if isinstance(value, Head):
            return value
        if isinstance(value, str):
            match = _HEAD.fullmatch(value.strip())
            if match:
                return cls(int(match["layer"]), int(match["head"]), match["stack"])
        elif (
            isinstance(value, Sequence)
            and len(value) == 2  # noqa: PLR2004 - (layer, head)
            and all(map(_is_int, value))
        ):
            return cls(int(value[0]), int(value[1]))
        raise BadAddress(
            f"{value!r} is not a head. Write Head(5, 3), (5, 3), '5.3', 'L5H3', 'L5.H3', 'a5.h3' or 'vision.L5.H3'"
            + (" (a float cannot tell 5.1 from 5.10; use text)." if isinstance(value, float) else ".")
        )


_HEAD = re.compile(r"(?:(?P<stack>[a-z_]\w*)[./])?(?:[LlAa]?)(?P<layer>\d+)(?:\.[Hh]?|[Hh])(?P<head>\d+)")

Pos = Any  # None | int | slice | str (a span's name) | LongTensor [batch, k] of columns


@dataclass(frozen=True, eq=False)
class At:
    """An address: a site, and which layers, heads and positions of which stack; ``None`` means all.

    Args:
        site: the place in the block.
        layer: block index, a sequence of them, or ``None`` for every layer. An int gives no layer axis.
        heads: head indices (query heads; KV heads at ``Site.K`` and ``Site.V``), or ``None`` for every head.
        pos: which positions (query rows at SCORES and PATTERN): ``None`` all; an int or slice counts over each
            prompt's own tokens, padding left out, negative from the end; a span's name; or a LongTensor
            ``[batch, k]`` of columns of the padded batch.
        stack: ``"text"``, ``"vision"``, ``"encoder"``, ``"decoder"``, ``"cross"``, ...; ``None`` for the default.
    """

    site: Site
    layer: int | tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    pos: Pos = None
    stack: str | None = None

    def __init__(
        self,
        site: Site | str,
        layer: int | Iterable[int] | None = None,
        heads: int | Iterable[int] | None = None,
        pos: Pos = None,
        stack: str | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "site", _as_site(site))
        put(
            self,
            "layer",
            None if layer is None else _ints([layer], "layer")[0] if _is_int(layer) else _ints(layer, "layer"),
        )
        put(self, "heads", None if heads is None else _ints([heads] if _is_int(heads) else heads, "heads"))
        put(self, "pos", _as_pos(pos))
        put(self, "stack", stack)
        if self.heads is not None and not self.site.per_head:
            raise BadAddress(f"{self.site!r} has no head axis, so heads={self.heads} means nothing there; drop heads=.")
        if self.layer == () or self.heads == ():
            raise BadAddress(f"{self}: an empty list of layers or heads addresses nothing; leave it out for all.")

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The layers as a tuple, ``None`` for all."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    def with_(self, **changes: Any) -> At:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def _key(self) -> tuple[Any, ...]:
        pos = self.pos
        if isinstance(pos, slice):
            pos = ("slice", pos.start, pos.stop, pos.step)
        elif isinstance(pos, torch.Tensor):
            pos = ("tensor", tuple(pos.shape), tuple(pos.flatten().tolist()))
        return (self.site, self.layer, self.heads, pos, self.stack)

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, At) and self._key() == other._key()

    def __repr__(self) -> str:
        parts = [repr(self.site)]
        for name in ("layer", "heads", "pos", "stack"):
            value = getattr(self, name)
            if value is not None:
                shown = f"tensor{list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                parts.append(f"{name}={shown}")
        return f"At({', '.join(parts)})"

    @classmethod
    def parse(cls, value: At | Site | str) -> At:
        """The address that ``value`` names: an ``At``, a ``Site`` or a transformer-lens hook name.

        ``blocks.5.attn.hook_z`` is ``At(Site.Z, layer=5)``. ``hook_rot_q`` and ``hook_rot_k`` are ``Q`` and ``K``;
        ``hook_q`` and ``hook_k`` as well, on models without rotary embeddings (``run`` refuses them otherwise,
        because there they name the tensors before the rotation).

        Raises:
            BadAddress: not an address.

        Example:
            >>> At.parse("blocks.5.attn.hook_pattern")
            At(Site.PATTERN, layer=5)
        """
        if isinstance(value, At):
            return value
        if isinstance(value, Site):
            return cls(value)
        if isinstance(value, str):
            match = _HOOK_NAME.fullmatch(value)
            if match and match["hook"] in HOOK_SITES:
                cross = match["part"] == "cross_attn" or match["hook"] == "hook_cross_attn_out"
                stack = "cross" if cross else "vision" if match["vision"] else _HOOK_STACKS[match["prefix"] or ""]
                return cls(HOOK_SITES[match["hook"]], layer=int(match["layer"]), stack=stack)
            raise BadAddress(
                f"{value!r} is not an address. Write At(Site.Z, layer=5), or a hook name such as "
                f"'blocks.5.attn.hook_z'; known hooks: {', '.join(sorted(HOOK_SITES))}."
            )
        raise BadAddress(f"{value!r} is not an address; write At(Site.Z, layer=5).")


HOOK_SITES: dict[str, Site] = {
    "hook_resid_pre": Site.RESID_PRE,
    "hook_resid_mid": Site.RESID_MID,
    "hook_resid_mid2": Site.RESID_CROSS,
    "hook_resid_post": Site.RESID_POST,
    "hook_attn_out": Site.ATTN_OUT,
    "hook_cross_attn_out": Site.ATTN_OUT,
    "o.hook_out": Site.ATTN_RAW,
    "hook_mlp_out": Site.MLP_OUT,
    "hook_q": Site.Q,
    "hook_k": Site.K,
    "hook_rot_q": Site.Q,
    "hook_rot_k": Site.K,
    "hook_v": Site.V,
    "hook_attn_scores": Site.SCORES,
    "hook_pattern": Site.PATTERN,
    "hook_z": Site.Z,
    "hook_result": Site.RESULT,
}
_HOOK_NAME = re.compile(
    r"(?:(?P<prefix>encoder_|decoder_)?blocks|(?P<vision>vision_encoder\.encoder_layers))\.(?P<layer>\d+)\."
    r"(?:(?P<part>attn|self_attn|cross_attn)\.)?(?P<hook>(?:o\.)?hook_\w+)"
)
_HOOK_STACKS = {"": None, "encoder_": "encoder", "decoder_": "decoder"}


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _as_site(site: Site | str) -> Site:
    if isinstance(site, Site):
        return site
    try:
        return Site(str(site).lower())
    except ValueError:
        raise BadAddress(unknown(site, [s.value for s in Site], "site")) from None


def _ints(values: Any, field: str) -> tuple[int, ...]:
    try:
        items = tuple(values)
    except TypeError:
        items = (values,)
    if not all(_is_int(item) for item in items):
        raise BadAddress(f"{field}={values!r}: expected an int or a sequence of ints.")
    if len(set(items)) != len(items):
        raise BadAddress(f"{field}={values!r} names the same {field.rstrip('s')} twice.")
    return tuple(map(int, items))


def _as_pos(pos: Any) -> Pos:
    if pos is None or isinstance(pos, slice | str):
        return pos
    if _is_int(pos):
        return int(pos)
    if isinstance(pos, torch.Tensor):
        if pos.ndim != 2 or pos.is_floating_point() or pos.dtype == torch.bool:  # noqa: PLR2004 - [batch, k]
            raise BadAddress(f"pos: expected a LongTensor [batch, k] of columns, got {pos.dtype} {list(pos.shape)}.")
        return pos.long()
    raise BadAddress(f"pos={pos!r}: expected None, an int, a slice, a span's name or a LongTensor [batch, k].")
