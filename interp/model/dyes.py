"""One layer's projections, norms and residual in a forward whose projections give random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.model.linear_parts import Gain, is_affine, norm_gain
from interp.model.scopes import hidden_among, removing
from interp.model.stacks import Layer


class MarkedNorm(NamedTuple):
    """A norm inside an attention: it passed its input on, with the sign of some prompts turned as its mark."""

    x: Tensor
    gain: Gain
    signs: Float[Tensor, " row"]


@dataclass(eq=False)
class LayerDyes:
    """What one layer did in a dyed forward.

    Attributes:
        layer: the layer.
        block: its block.
        writer: the module whose output attention adds to the residual.
        rows: prompts of the forward.
        roots: the tensors that the attention was given, the hidden states first.
        inputs, outputs: of every projection inside the attention; the outputs are the dyes.
        norms: module -> what it was given and how it marked it, of the norms inside the attention.
        residual: what the block was given.
        raw: the output projection's output.
        written: what attention adds to the residual.
        beside: (module, input, output) of the other modules of the block that keep the shape of their one input.
    """

    layer: Layer
    block: nn.Module
    writer: nn.Module
    rows: int
    roots: list[Tensor] = field(default_factory=list)
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    norms: dict[nn.Module, MarkedNorm] = field(default_factory=dict)
    residual: Tensor | None = None
    raw: Tensor | None = None
    written: Tensor | None = None
    beside: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)
    trying: bool = False
    kinds: dict[nn.Module, Any] = field(default_factory=dict)


@contextmanager
def dyed(dyes: LayerDyes) -> Iterator[None]:
    """Inside, the layer's projections give random numbers and its inner norms mark their input; all is recorded."""
    layer, draw = dyes.layer, torch.Generator().manual_seed(dyes.layer.index)
    outside = {id(module) for module in layer.out.modules()}
    inside = [module for module in layer.attention.modules() if module is not layer.attention]
    inside = [module for module in inside if id(module) not in outside]
    within = {id(module) for module in layer.attention.modules()} | outside

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first, _ = hidden_among(args, kwargs)
        others = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each is not first]
        same = [each for each in others if each.is_floating_point() and each.ndim == first.ndim]
        dyes.roots = [first.detach().clone(), *(each.detach().clone() for each in same)]

    def projected(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = _only(args, kwargs)
        if dyes.trying or x is None or not isinstance(output, Tensor) or not _has_state(module):
            return None
        kind = _kind(dyes, module, x)
        if kind == "affine":
            dyes.inputs[module] = x.detach().clone()
            dyes.outputs[module] = torch.randn(output.shape, generator=draw).to(output.device, output.dtype)
            return dyes.outputs[module].clone()
        if isinstance(kind, Gain):
            signs = torch.randn(dyes.rows, generator=draw).sign().to(x.device, x.dtype)
            dyes.norms[module] = MarkedNorm(x.detach().clone(), kind, signs)
            return (x.reshape(dyes.rows, -1) * signs[:, None]).reshape(x.shape)
        return None

    def passed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = _only(args, kwargs)
        if x is not None and isinstance(output, Tensor) and output.shape == x.shape:
            dyes.beside.append((module, x.detach().clone(), output.detach().clone()))

    with ExitStack() as guard:
        guard.enter_context(removing(layer.attention.register_forward_pre_hook(entered, with_kwargs=True)))
        for module in inside:
            guard.enter_context(removing(module.register_forward_hook(projected, with_kwargs=True)))
        for module in dyes.block.modules():
            if id(module) not in within and module is not dyes.block:
                guard.enter_context(removing(module.register_forward_hook(passed, with_kwargs=True)))
        guard.enter_context(_ends(dyes))
        yield


@contextmanager
def _ends(dyes: LayerDyes) -> Iterator[None]:
    """Record what the block was given, what its output projection gave, and what was added to the residual."""

    def began(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        dyes.residual = hidden_among(args, kwargs)[0].detach().clone()

    def gave(module: nn.Module, args: Any, output: Any) -> None:
        dyes.raw = _first(output)

    def wrote(module: nn.Module, args: Any, output: Any) -> None:
        dyes.written = _first(output)

    with ExitStack() as guard:
        guard.enter_context(removing(dyes.block.register_forward_pre_hook(began, with_kwargs=True)))
        guard.enter_context(removing(dyes.layer.out.register_forward_hook(gave)))
        guard.enter_context(removing(dyes.writer.register_forward_hook(wrote)))
        yield


def _kind(dyes: LayerDyes, module: nn.Module, x: Tensor) -> Any:
    if module not in dyes.kinds:
        dyes.trying = True
        try:
            dyes.kinds[module] = "affine" if is_affine(module, x) else norm_gain(module, x)
        finally:
            dyes.trying = False
    return dyes.kinds[module]


def _only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    return given[0] if len(given) == 1 and given[0].is_floating_point() and given[0].ndim > 1 else None


def _has_state(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _first(output: Any) -> Tensor | None:
    found = output[0] if isinstance(output, tuple) else output
    return found.detach().clone() if isinstance(found, Tensor) else None
