"""The registered attention function: where q, k, v, scores and patterns are seen and edited.

transformers looks an attention function up by the config's name on every call. Two names are registered, one that
delegates to sdpa (with sdpa's mask) and one that delegates to the architecture's own eager function (with eager's
mask). Idle, each is its delegate, bit for bit. A layer whose scores or pattern are edited runs the architecture's own
eager function, inside which the softmax is caught: its input is the scores, its output the pattern. So a soft-cap, sink
logits or a position bias stay the architecture's own arithmetic. A layer that is only read keeps its fast kernel for
the output, and the rows asked for are computed beside it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.errors import Unsupported

SDPA = "headscope_sdpa"
EAGER = "headscope_eager"
BASES = {"sdpa": SDPA, "eager": EAGER}
SLOT = "_headscope_taps"
_SOFTMAXES = frozenset({F.softmax, torch.softmax, Tensor.softmax})


@runtime_checkable
class AttentionTap(Protocol):
    """What a session wants of one attention module."""

    def vectors(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v ``[batch, head, pos, d_head]`` after the session's reads and edits."""
        ...

    @property
    def eager(self) -> bool:
        """Whether the layer must run the architecture's eager function."""
        ...

    @property
    def on_path(self) -> bool:
        """Whether what the tap returns must lie on the path to the output, for gradients."""
        ...

    def rows(self) -> Iterator[Tensor | None]:
        """The query rows ``[batch, k]`` of each map to be read beside the fast kernel, ``None`` for all rows."""
        ...

    def look(self, call: AttentionCall) -> None:
        """Read what is wanted of the maps of a call whose output the fast kernel has made."""
        ...

    def scores(self, scores: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """The scores ``[batch, head, query, key]`` (blocked = -inf) after reads and edits."""
        ...

    def pattern(self, pattern: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """The pattern ``[batch, head, query, key]`` after reads and edits."""
        ...


def register() -> None:
    """Make both names known to transformers (idempotent; there is no way to unregister, and idle they do nothing)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    AttentionInterface.register(SDPA, sdpa_attention)
    AttentionMaskInterface.register(SDPA, sdpa_mask)
    AttentionInterface.register(EAGER, eager_attention)
    AttentionMaskInterface.register(EAGER, eager_mask)


def sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """sdpa's ``(output, None)``, or what the taps on ``module`` make of it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    delegate = ALL_ATTENTION_FUNCTIONS["sdpa"]  # fetched per call: others may have replaced it
    taps = module.__dict__.get(SLOT)
    if not taps:
        return delegate(module, query, key, value, attention_mask, **kwargs)
    return _tapped(taps, delegate, True, module, query, key, value, attention_mask, kwargs)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The architecture's own eager ``(output, weights)``, or what the taps on ``module`` make of it."""
    taps = module.__dict__.get(SLOT)
    if not taps:
        return own_eager(module)(module, query, key, value, attention_mask, **kwargs)
    return _tapped(taps, None, False, module, query, key, value, attention_mask, kwargs)


def own_eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The eager attention function of the file that defines ``module``'s class.

    Raises:
        Unsupported: the file has none.
    """
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise Unsupported(
        f"{type(module).__module__} has no eager_attention_forward, so the scores and patterns of "
        f"{type(module).__name__} cannot be reached; read and edit Site.Z instead."
    )


@contextmanager
def attached(module: nn.Module, tap: AttentionTap) -> Iterator[None]:
    """Hang ``tap`` on ``module`` for the duration; several taps apply in the order they were hung."""
    module.__dict__.setdefault(SLOT, []).append(tap)
    try:
        yield
    finally:
        taps = module.__dict__[SLOT]
        taps.remove(tap)
        if not taps:
            del module.__dict__[SLOT]


def _tapped(
    taps: list[AttentionTap],
    fast: Callable[..., tuple[Tensor, Tensor | None]] | None,
    boolean: bool,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    for tap in taps:
        query, key, value = tap.vectors(query, key, value)
    own = own_eager(module)
    if fast is None or any(tap.eager for tap in taps):
        additive = _additive(mask, module, query, key, kwargs) if boolean else mask
        visible = _visible(additive, query, key)
        with _CatchSoftmax(taps, module, visible, key.shape[2]):
            return own(module, query, key, value, additive, **kwargs)
    output = fast(module, query, key, value, mask, **kwargs)
    call = AttentionCall(own, module, query, key, value, mask, kwargs)
    for tap in taps:
        tap.look(call)
    return output


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of an attention function, whose maps can be computed a few rows at a time.

    Attributes:
        own: the architecture's own eager function.
        module: the attention module.
        query: ``[batch, head, query, d_head]``.
        key, value: ``[batch, kv head, key, d_head]``.
        mask: as sdpa takes it: True where a query sees a key, or additive, or ``None``.
        kwargs: the other keywords of the call.
    """

    own: Callable[..., Any]
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: Mapping[str, Any]

    def show(self, tap: AttentionTap, rows: Tensor | None) -> None:
        """Show ``tap`` the maps of ``rows [batch, k]`` (all for ``None``), by the architecture's own arithmetic."""
        kwargs, query = dict(self.kwargs), self.query
        additive = _additive(self.mask, self.module, query, self.key, kwargs, rows)
        if rows is not None:
            query = pick_rows(query, rows)
            bias = kwargs.get("position_bias")
            if isinstance(bias, Tensor):
                kwargs["position_bias"] = pick_rows(bias, rows)
        visible = _visible(additive, query, self.key)
        catch = _CatchSoftmax([tap], self.module, visible, self.key.shape[2], rows=rows, stop=True)
        try:
            with catch:
                self.own(self.module, query, self.key, self.value, additive, **kwargs)
        except _Seen:
            pass

    def in_float32(self) -> AttentionCall:
        """The same call with q, k, v (and what is added to the scores) in float32."""
        if self.query.dtype == torch.float32:
            return self
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:
            lowest = mask <= torch.finfo(mask.dtype).min / 2
            mask = mask.float().masked_fill(lowest, torch.finfo(torch.float32).min)
        kwargs = {
            name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.kwargs.items()
        }
        q, k, v = (tensor.float() for tensor in (self.query, self.key, self.value))
        return replace(self, query=q, key=k, value=v, mask=mask, kwargs=kwargs)

    @property
    def causal(self) -> bool:
        """Whether the call is causal by a flag, without a mask that says it."""
        return self.mask is None and self.query.shape[2] > 1 and _causal_flag(self.module, self.kwargs)


def _causal_flag(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    causal = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def pick_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """``tensor [batch or 1, head or 1, query, ...]`` at ``rows [batch, k]`` of its query axis."""
    rows = rows.to(tensor.device)
    if bool((rows == rows[:1]).all()):
        return tensor.index_select(2, rows[0])
    tensor = tensor.expand(rows.shape[0], *tensor.shape[1:])
    index = rows[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return torch.gather(tensor, 2, index)


def _additive(
    mask: Tensor | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    kwargs: Mapping[str, Any],
    rows: Tensor | None = None,
) -> Tensor | None:
    """The eager mask (0 or the dtype's minimum) for ``rows`` that says what sdpa's mask and ``is_causal`` say."""
    if mask is None:
        if query.shape[2] == 1 or not _causal_flag(module, kwargs):
            return None
        wanted = torch.arange(query.shape[2], device=query.device)[None] if rows is None else rows.to(query.device)
        keys = torch.arange(key.shape[2], device=query.device)
        mask = (wanted[:, :, None] >= keys)[:, None]  # sdpa's is_causal is aligned at the upper left
    elif rows is not None:
        mask = pick_rows(mask, rows)
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def _visible(additive: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """``[batch or 1, head or 1, query, key]`` True where the additive mask lets a query see a key."""
    if additive is None:
        return torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return additive[..., : key.shape[2]] > torch.finfo(additive.dtype).min / 2


class _Seen(Exception):
    """The maps have been shown; the rest of the eager function is not needed."""


class _CatchSoftmax(TorchFunctionMode):
    """Shows the input and output of the first softmax inside the block to the taps, and puts back what they return.

    A column beyond ``n_keys`` is a sink logit: the taps see the keys alone, the sink stays as it was. Where the
    architecture shifts a row before its softmax (as with sinks), the taps see the scores before the shift.
    """

    def __init__(
        self,
        taps: list[AttentionTap],
        module: nn.Module,
        visible: Tensor,
        n_keys: int,
        *,
        rows: Tensor | None = None,
        stop: bool = False,
    ) -> None:
        super().__init__()
        self.taps, self.module, self.visible, self.n_keys = taps, module, visible, n_keys
        self.rows, self.stop, self.done = rows, stop, False
        self.on_path = any(tap.on_path for tap in taps)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _SOFTMAXES or self.done:
            return func(*args, **kwargs)
        self.done = True
        raw = args[0] if args else kwargs.pop("input")
        edited = self._scores(raw)
        pattern = self._pattern(func(edited, *args[1:], **kwargs), None if edited is raw else edited)
        if self.stop:
            raise _Seen
        return pattern

    def _scores(self, raw: Tensor) -> Tensor:
        keys = raw[..., : self.n_keys]
        shift = self._shift(raw)
        unshifted = keys if shift is None else keys - shift
        before = unshifted.masked_fill(~self.visible, -torch.inf)
        after = before
        for tap in self.taps:
            after = tap.scores(after, self.visible, self.rows)
        if after is before and not self.on_path:
            return raw
        # entries that no edit changed keep the architecture's own numbers, so that a neutral edit is exact
        moved = after if shift is None else after + shift
        untouched = (after == before) | (torch.isneginf(after) & ~self.visible)
        merged = torch.where(untouched, keys, moved)
        if self.on_path:  # the value stays as it is, the gradient goes through what the taps saw
            through = after - after.detach()
            merged = torch.where(torch.isneginf(after), merged, merged.detach() + through)
        return torch.cat([merged, raw[..., self.n_keys :]], dim=-1) if raw.shape[-1] > self.n_keys else merged

    def _shift(self, raw: Tensor) -> Tensor | None:
        sinks = getattr(self.module, "sinks", None)
        if raw.shape[-1] != self.n_keys + 1 or not isinstance(sinks, Tensor) or sinks.numel() != raw.shape[1]:
            return None
        # a shift of the whole row moves no pattern, so that no gradient may pass through it
        return (raw[..., -1:] - sinks.view(1, -1, 1, 1).to(raw.dtype)).detach()

    def _pattern(self, pattern: Tensor, blank: Tensor | None) -> Tensor:
        keys = pattern[..., : self.n_keys]
        if blank is not None:  # scores were edited: a row that lost its last key attends to nothing
            open_keys = (blank[..., : self.n_keys] > torch.finfo(blank.dtype).min / 2) & self.visible
            lost = self.visible.any(-1, keepdim=True) & ~open_keys.any(-1, keepdim=True)
            keys = torch.where(lost, torch.zeros_like(keys), keys)
        after = keys
        for tap in self.taps:
            after = tap.pattern(after, self.visible, self.rows)
        if after is keys and blank is None and not self.on_path:
            return pattern
        return torch.cat([after, pattern[..., self.n_keys :]], dim=-1) if pattern.shape[-1] > self.n_keys else after


class WatchBypass(TorchFunctionMode):
    """Shows the maps of an attention that bypasses the interface: those of its softmax, or of its sdpa call.

    Reading alone: what the module computes stays as it is.
    """

    def __init__(self, tap: AttentionTap, dtype: torch.dtype) -> None:
        super().__init__()
        self.tap, self.dtype, self.done = tap, dtype, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not self.done and func in _SOFTMAXES:
            self.done = True
            scores = args[0] if args else kwargs.pop("input")
            if self.tap.on_path:
                return self._through(scores, lambda raw: func(raw, *args[1:], **kwargs))
            pattern = func(scores, *args[1:], **kwargs)
            self._show(scores, pattern)
            return pattern
        if not self.done and func is F.scaled_dot_product_attention:
            self.done = True
            output = func(*args, **kwargs)
            scores = _sdpa_scores(*args, **kwargs)
            self._show(scores, torch.softmax(scores.float(), dim=-1).to(scores.dtype))
            return output
        return func(*args, **kwargs)

    def _through(self, scores: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
        """The same pattern, bit for bit, with what the tap is shown lying on the path to it, for gradients."""
        visible = scores > torch.finfo(self.dtype).min / 2
        shown = self.tap.scores(scores.masked_fill(~visible, -torch.inf), visible, None)
        return self.tap.pattern(softmax(torch.where(visible, shown, scores)), visible, None)

    def _show(self, scores: Tensor, pattern: Tensor) -> None:
        visible = scores > torch.finfo(self.dtype).min / 2
        for rows in self.tap.rows():
            shown = [scores, visible, pattern]
            if rows is not None:
                shown = [pick_rows(tensor, rows) for tensor in shown]
            self.tap.scores(shown[0].masked_fill(~shown[1], -torch.inf), shown[1], rows)
            self.tap.pattern(shown[2], shown[1], rows)


def _sdpa_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The scores that ``scaled_dot_product_attention`` takes its softmax of (its documented definition)."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    lowest = torch.finfo(scores.dtype).min
    if is_causal:
        rows = torch.arange(scores.shape[-2], device=scores.device)
        keys = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill(rows[:, None] < keys[None, :], lowest)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, lowest) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores
