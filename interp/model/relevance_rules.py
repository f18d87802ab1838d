"""Rules by which relevance passes back through the operations of a model, in place of their gradients.

The relevance of an entry is the entry times what autograd carries to it, ``R(x) = x * g(x)``. Whatever is linear in one
way alone (adding a constant, moving, masking, pooling) then passes relevance in proportion to what each entry
contributes, by its own derivative. The operations that need a rule of their own get one here; their values stay what
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ENTRYWISE = frozenset(
    "gelu silu relu relu6 leaky_relu elu selu celu mish softplus softsign logsigmoid hardtanh hardswish hardsigmoid "
    "tanh sigmoid layer_norm rms_norm group_norm".split()
)
_MATRIX = 2  # axes


def over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is 0 where the denominator is."""
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / denominator)


class Entrywise(torch.autograd.Function):
    """An activation, or a norm whose mean and scale are held still: an entry's relevance stays on the entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, made: Tensor) -> Tensor:
        """``made``, what the operation gives for ``x``."""
        ctx.save_for_backward(x, made)
        return made.clone()  # blocks may add onto it in place

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """``g y / x``."""
        x, made = ctx.saved_tensors
        return over(slopes[0] * made, x), None


class PositiveProduct(torch.autograd.Function):
    """A matrix product with a constant, by the alpha-beta rule with alpha = 1: only positive contributions count.

    ``R_j = sum_i (x_j w_ji)+ / (sum_k (x_k w_ki)+) R_i``; what an output owes to the bias is its inputs' as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, made: Tensor) -> Tensor:
        """``made``, which is ``x @ weight`` (plus a bias)."""
        ctx.save_for_backward(x, weight, made)
        return made.clone()  # blocks may add onto it in place

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """What stands for the gradient at ``x``."""
        x, weight, made = ctx.saved_tensors
        high, low = x.clamp(min=0), x.clamp(max=0)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        share = over(slopes[0] * made, high @ up + low @ down)
        return torch.where(x > 0, share @ up.mT, torch.where(x < 0, share @ down.mT, torch.zeros_like(x))), None, None


class Sum(torch.autograd.Function):
    """A sum of two tensors of one shape: relevance is split in proportion to the size of what each adds."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, made: Tensor) -> Tensor:
        """``made``, which is the sum."""
        ctx.save_for_backward(first, second, made)
        return made.clone()  # blocks may add onto it in place

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        """What stands for the gradients at both."""
        first, second, made = ctx.saved_tensors
        share = over(slopes[0] * made, first.abs() + second.abs())
        return share * first.sign(), share * second.sign(), None


class RelevanceRules(TorchFunctionMode):
    """Inside, operations pass relevance on by rule; ``paused`` above 0, they pass gradients.

    Attributes:
        paused: how many modules with a rule of their own are running.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paused = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.paused or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _ENTRYWISE:
            return _entrywise(func, args, kwargs)
        rule = _RULES.get(name)
        return func(*args, **kwargs) if rule is None else rule(func, args, kwargs)


def _depends(*values: Any) -> bool:
    return all(isinstance(value, Tensor) and value.requires_grad for value in values)


def _entrywise(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if not args or not _depends(args[0]) or kwargs.get("inplace"):
        return func(*args, **kwargs)
    with torch.no_grad():
        made = func(*args, **kwargs)
    return Entrywise.apply(args[0], made)


def _product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Two factors that both depend on the inputs have half of the relevance each."""
    if len(args) != 2 or kwargs or not _depends(*args):  # noqa: PLR2004 - factors
        return func(*args, **kwargs)
    first, second = args
    return (func(first.detach(), second) + func(first, second.detach())) / 2  # twice the same number, halved: exact


def _matrix_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if len(args) == 2 and _depends(args[0]) and not _depends(args[1]) and not kwargs:  # noqa: PLR2004 - factors
        return _through(func, args[0], args[1], args, kwargs)
    return _product(func, args, kwargs)


def _linear(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    if not args or not _depends(args[0]) or not isinstance(weight, Tensor) or _depends(weight):
        return func(*args, **kwargs)
    return _through(func, args[0], weight.mT if weight.ndim == _MATRIX else weight, args, kwargs)


def _added_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if len(args) != 3 or kwargs or not _depends(args[1]) or _depends(args[2]):  # noqa: PLR2004 - bias, x, matrix
        return func(*args, **kwargs)
    return _through(func, args[1], args[2], args, kwargs)


def _through(func: Callable[..., Any], x: Tensor, weight: Tensor, args: Any, kwargs: Any) -> Any:
    alike = weight.ndim == _MATRIX or (weight.ndim == x.ndim and weight.shape[:-2] == x.shape[:-2])
    if not alike or weight.shape[-2] != x.shape[-1] or weight.dtype != x.dtype:
        return func(*args, **kwargs)
    with torch.no_grad():
        made = func(*args, **kwargs)
    return PositiveProduct.apply(x, weight.detach(), made)


def _sum(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if len(args) != 2 or kwargs or not _depends(*args) or args[0].shape != args[1].shape:  # noqa: PLR2004 - terms
        return func(*args, **kwargs)
    with torch.no_grad():
        made = func(*args)
    return Sum.apply(*args, made)


def _quotient(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A denominator is a scale, and held still."""
    if len(args) == 2 and _depends(args[1]):  # noqa: PLR2004 - numerator and denominator
        args = (args[0], args[1].detach())
    return func(*args, **kwargs)


def _held(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A softmax is held still: an attention map passes what it has on to the values it weighs."""
    made = func(*args, **kwargs)
    return made.detach() if isinstance(made, Tensor) else made


def _attention(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    still = tuple(value.detach() if index < 2 else value for index, value in enumerate(args))  # noqa: PLR2004 - q, k
    named = {key: value.detach() if key in ("query", "key") else value for key, value in kwargs.items()}
    return func(*still, **named)


_RULES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "linear": _linear,
        "addmm": _added_product,
        "softmax": _held,
        "scaled_dot_product_attention": _attention,
        **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), _matrix_product),
        **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), _product),
        **dict.fromkeys(("add", "__add__", "__radd__"), _sum),
        **dict.fromkeys(("div", "__truediv__", "true_divide", "divide"), _quotient),
    }
)
