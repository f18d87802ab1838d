"""The q, k and v of an attention that bypasses the interface: the operands of its own products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})
_ADDED = frozenset({torch.baddbmm, Tensor.baddbmm})
_AXES = 4  # batch, head, pos, d_head


class Operands(TorchFunctionMode):
    """Records the operands of every batched product, in order, as ``(query, key, value)`` of one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.fused: tuple[Tensor, Tensor, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            parts = [*args, *(named[name] for name in ("query", "key", "value") if name in named)]
            self.fused = (parts[0], parts[1], parts[2])
        elif func in _PRODUCTS:
            parts = [*args, *(named[name] for name in ("other", "mat2") if name in named)]
            self.pairs.append((parts[0], parts[1]))
        elif func in _ADDED:
            parts = [*args[1:], *(named[name] for name in ("batch1", "batch2") if name in named)]
            self.pairs.append((parts[0], parts[1]))
        return func(*args, **named)

    def vectors(self, batch: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """q, k, v ``[batch, pos, head, d_head]``; None where the products are not those of one attention."""
        if self.fused is not None:
            q, k, v = self.fused
        elif len(self.pairs) >= 2:  # noqa: PLR2004 - scores and mixture
            (q, turned), (_, v) = self.pairs[0], self.pairs[-1]
            k = turned.transpose(-1, -2)
        else:
            return None
        made = [_headed(each, batch) for each in (q, k, v)]
        return None if any(each is None for each in made) else (made[0], made[1], made[2])  # type: ignore[return-value]


def _headed(x: Tensor, batch: int) -> Tensor | None:
    if x.ndim == _AXES - 1 and x.shape[0] % batch == 0:  # heads of all prompts one after the other
        x = x.reshape(batch, -1, *x.shape[1:])
    return x.detach().transpose(1, 2) if x.ndim == _AXES and x.shape[0] == batch else None


@contextmanager
def recording_operands(attention: nn.Module, calls: list[Operands]) -> Iterator[None]:
    """Inside, every call of ``attention`` appends what it multiplied to ``calls``."""
    open_modes: list[Operands] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        mode = Operands()
        mode.__enter__()
        open_modes.append(mode)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode = open_modes.pop()
        mode.__exit__(None, None, None)
        calls.append(mode)

    first = attention.register_forward_pre_hook(enter, with_kwargs=True)
    last = attention.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        while open_modes:
            open_modes.pop().__exit__(None, None, None)
        last.remove()
        first.remove()
