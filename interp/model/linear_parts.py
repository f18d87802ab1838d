"""The linear part of a module, found by calling it: the matrix of a projection, the gain of a norm.

Nothing is known here about a module's class. A projection that is a plain ``nn.Linear`` or ``Conv1D`` is read as it
stands; everything else (quantised, adapted, offloaded) is shown an identity, and must answer like a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import Unsupported

_LARGE = 64.0  # of a norm's test input: an eps that it does not tell is nothing beside 64^2
_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")
_ROWS = 256  # of the identity that are shown at once
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest entry
_NEAR_COARSE = 5e-2  # bfloat16 and float16


@dataclass(frozen=True, eq=False)
class Affine:
    """``x -> x weight + bias``.

    Attributes:
        weight: ``[in, out]`` float64.
        bias: ``[out]`` float64.
    """

    weight: Float[Tensor, "in out"]
    bias: Float[Tensor, " out"]


@dataclass(frozen=True, eq=False)
class Gain:
    """What a norm (or a layer scale) does to its input besides dividing by the input's own scale.

    Attributes:
        factor: what each entry is multiplied by, in the shape of the input.
        bias: what is added.
        centred: whether the mean of the last axis is taken off first, as LayerNorm does.
        scaled: whether it divides by the scale of its input at all.
    """

    factor: Tensor
    bias: Tensor
    centred: bool
    scaled: bool


@dataclass(frozen=True, eq=False)
class Scaling:
    """A norm whose gain is read whenever it is asked for, since training and loading change it.

    Attributes:
        module: the norm.
        like: of the shape, dtype and device of its input (one number, expanded).
    """

    module: nn.Module
    like: Tensor

    @staticmethod
    def of(module: nn.Module, x: Tensor) -> Scaling | None:
        """The norm ``module``, which was given ``x``; None where it is no norm."""
        made = Scaling(module, x.new_zeros(()).expand(x.shape))
        return None if norm_gain(module, made.like) is None else made

    def gain(self) -> Gain:
        """What it multiplies its input by now.

        Raises:
            Unsupported: it is no norm any more.
        """
        found = norm_gain(self.module, self.like)
        if found is None:
            raise Unsupported(
                f"A {type(self.module).__name__} that stood for a norm when the model was probed answers like none now "
                "(NaN or infinity among its parameters, or another forward). Load the model anew."
            )
        return found


def nearness(dtype: torch.dtype) -> float:
    """How far two computations of one number may differ in ``dtype``, relative to the largest."""
    return _NEAR.get(dtype, _NEAR_COARSE)


def affine_map(module: nn.Module, width: int, like: Tensor) -> Affine | None:
    """The matrix and bias of a module that is affine in its one input; None where it is not.

    Args:
        module: a projection, whatever it is wrapped in.
        width: of its input.
        like: a tensor of the dtype and device that it takes.

    Example:
        >>> double = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(double.weight, 2.0)
        >>> affine_map(double, 2, torch.zeros(1)).weight.tolist()
        [[2.0], [2.0]]
    """
    with torch.no_grad():
        found = _stored(module, width)
        found = _shown(module, width, like) if found is None else found
        return found if found is not None and _agrees(module, found, width, like) else None


def is_affine(module: nn.Module, x: Tensor) -> bool:
    """Whether ``module`` is affine in its one input ``x [..., in]``, by its values at mixtures of random rows."""
    with torch.no_grad():
        first, second = _random_rows(2, x.shape[-1], x)
        try:
            mixed = module.forward(0.6 * first - 1.3 * second)
            parts = 0.6 * module.forward(first) - 1.3 * module.forward(second)
            parts = parts + 1.7 * module.forward(torch.zeros_like(first))
        except Exception:  # a module that wants more than one tensor, or other axes
            return False
        if not isinstance(mixed, Tensor) or mixed.shape != parts.shape or mixed.shape[:-1] != first.shape[:-1]:
            return False
        return _close(mixed, parts, x.dtype)


def norm_gain(module: nn.Module, x: Tensor) -> Gain | None:
    """What a norm multiplies its input by, entry by entry; None where the module is no such thing.

    Its input is replaced by one of mean 0 and known root mean square, for which LayerNorm and RMSNorm give
    ``factor * x / rms(x) + bias``; an input with a mean then tells the two (and a plain multiplication) apart.

    Args:
        module: the norm.
        x: an input that it was given, for its shape.

    Example:
        >>> gain = norm_gain(nn.LayerNorm(4), torch.ones(1, 4))
        >>> [round(factor, 4) for factor in gain.factor[0].tolist()], gain.centred
        ([1.0, 1.0, 1.0, 1.0], True)
    """
    width = x.shape[-1]
    if width < 2:  # noqa: PLR2004 - one entry has no spread
        return None
    with torch.no_grad():
        flat = _LARGE * _without_mean(width).to(x.device, x.dtype).expand(x.shape).contiguous()
        crooked = _LARGE * (_random_rows(1, width, x)[0, :1] + 0.5).expand(x.shape).contiguous()
        try:
            nothing, answer, other = (module.forward(each) for each in (torch.zeros_like(flat), flat, crooked))
        except Exception:  # a module that wants more than one tensor
            return None
        if not isinstance(answer, Tensor) or answer.shape != x.shape:
            return None
        bias, moved, found = nothing.double(), answer.double() - nothing.double(), other.double() - nothing.double()
        plain = moved / flat.double()
        eps = _eps(module)
        factor = plain * _root(flat.double(), eps)
        wide = crooked.double()
        centred = wide - wide.mean(-1, keepdim=True)
        for made, kind in (
            (plain * wide, Gain(plain, bias, centred=False, scaled=False)),
            (factor * wide / _root(wide, eps), Gain(factor, bias, centred=False, scaled=True)),
            (factor * centred / _root(centred, eps), Gain(factor, bias, centred=True, scaled=True)),
        ):
            if _close(made, found, x.dtype):
                return kind
    return None


def _root(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _eps(module: nn.Module) -> float:
    """What the norm adds under the root; 0 where it does not say, which is next to nothing beside the test input."""
    for part in module.modules():
        for name in _EPS_NAMES:
            if isinstance(found := getattr(part, name, None), int | float):
                return float(found)
    return 0.0


def _stored(module: nn.Module, width: int) -> Affine | None:
    """The matrix of a plain ``nn.Linear`` or ``Conv1D``."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.device.type == "meta" or weight.ndim != 2:  # noqa: PLR2004 - a matrix
        return None
    if type(module) is nn.Linear:
        matrix = weight.detach().T
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        matrix = weight.detach()
    else:
        return None
    if matrix.shape[0] != width:
        return None
    made = matrix.double()
    return Affine(made, made.new_zeros(made.shape[1]) if bias is None else bias.detach().double())


def _shown(module: nn.Module, width: int, like: Tensor) -> Affine | None:
    """What ``module`` answers to an identity, some rows at a time."""
    try:
        bias = module.forward(like.new_zeros(1, 1, width))[0, 0].double()
        rows = []
        for first in range(0, width, _ROWS):
            count = min(_ROWS, width - first)
            shown = like.new_zeros(1, count, width)
            shown[0, torch.arange(count), first + torch.arange(count)] = 1
            rows.append(module.forward(shown)[0].double() - bias)
    except Exception:  # not a map of rows
        return None
    return Affine(torch.cat(rows), bias)


def _agrees(module: nn.Module, found: Affine, width: int, like: Tensor) -> bool:
    rows = _random_rows(1, width, like)
    try:
        answer = module.forward(rows)
    except Exception:  # not a map of rows
        return False
    made = rows.double() @ found.weight + found.bias
    return answer.shape == made.shape and _close(answer, made, like.dtype)


def _random_rows(count: int, width: int, like: Tensor) -> Float[Tensor, "count 3 width"]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, width, generator=draw).to(like.device, like.dtype)


def _without_mean(width: int) -> Float[Tensor, " width"]:
    """Numbers without a zero among them whose sum is 0."""
    made = torch.ones(width)
    made[1::2] = -1
    if width % 2:
        made[-1] = -2
        made[-2] = 1
    return made


def _close(first: Tensor, second: Tensor, dtype: torch.dtype) -> bool:
    gap = (first.double() - second.double()).abs().max()
    return bool(gap <= nearness(dtype) * max(float(second.double().abs().max()), 1e-6))
