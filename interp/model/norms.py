"""Norms: the modules that divide the residual stream by its scale, and a way to hold that scale still.

A norm is ``f(x) = c(x) / s(x) * gain + shift`` with ``c`` linear. With the scale of another run it is linear in x:

    f_held(x) = f(0) + (f(x) - f(0)) * s(x) / s_held

Which scale a module divides by, ``sqrt(mean((x - mean x)^2) + eps)`` (LayerNorm) or ``sqrt(mean(x^2) + eps)``
(RMSNorm), is found by trying: the one that makes ``(f(x) - f(0)) s(x)`` linear. No weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import RunFailed, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.run import run
from interp.model.scopes import hooked_output, removing

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")
_EPS_TRIED = (1e-5, 1e-6, 1e-12, 1e-8, 0.0)
_ROUNDING = 60  # units of rounding, relative to the largest entry, within which a norm must be linear


def layer_scale(x: Tensor, eps: float) -> Float[Tensor, "... 1"]:
    """``sqrt(var(x) + eps)`` over the last axis, in float32 at least.

    Example:
        >>> layer_scale(torch.tensor([[1.0, 3.0]]), 0.0)
        tensor([[1.]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide.var(-1, keepdim=True, correction=0) + eps).sqrt()


def rms_scale(x: Tensor, eps: float) -> Float[Tensor, "... 1"]:
    """``sqrt(mean(x^2) + eps)`` over the last axis, in float32 at least.

    Example:
        >>> rms_scale(torch.tensor([[1.0, 7.0]]), 0.0)
        tensor([[5.]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide.square().mean(-1, keepdim=True) + eps).sqrt()


def no_scale(x: Tensor, eps: float) -> Float[Tensor, "... 1"]:
    """1 over the last axis: what a module divides by that is linear already."""
    return torch.ones_like(x[..., :1], dtype=torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Norm:
    """A module that divides by the scale of its input.

    Attributes:
        name: its path in the Hugging Face model.
        module: the module.
        divides_by: the scale it divides by, of ``(x, eps)``.
        eps: what is added under the root.
    """

    name: str
    module: nn.Module
    divides_by: Callable[[Tensor, float], Tensor]
    eps: float

    def scale(self, x: Tensor) -> Float[Tensor, "... 1"]:
        """What the norm divides ``x`` by, in float32 at least."""
        return self.divides_by(x, self.eps)

    def held(self, x: Tensor, scale: Float[Tensor, "... 1"], *, made: Tensor | None = None) -> Tensor:
        """What the norm gives for ``x`` when it divides by ``scale``; bit for bit its own where that is its own scale.

        Args:
            x: ``[..., d_model]``.
            scale: ``[..., 1]``, from :meth:`scale` of another input.
            made: what the module gives for ``x``, where that is known.
        """
        own = self.module.forward(x) if made is None else made  # not the call: hooks must not see this
        nothing = self.module.forward(torch.zeros_like(x[..., :1, :]))
        return own + ((own - nothing) * (self.scale(x) / scale - 1)).to(own.dtype)


def find_norms(model: Model) -> dict[str, nn.Module]:
    """Path -> module of every norm of the model that is not a part of an attention (norms of q and k stay live there).

    Example:
        >>> import interp
        >>> list(find_norms(interp.load("handmade")))[-2:]
        ['transformer.h.1.ln_2', 'transformer.ln_f']
    """
    attentions = {
        id(inner)
        for stack in model.stacks.values()
        for layer in stack.layers
        if layer
        for inner in layer.attention.modules()
    }
    return {
        name: module
        for name, module in model.hf.named_modules()
        if "norm" in type(module).__name__.lower() and not list(module.children()) and id(module) not in attentions
    }


def understood(name: str, module: nn.Module, x: Float[Tensor, "... d_model"]) -> Norm:
    """The norm that ``module`` is, by its behaviour on inputs like ``x``.

    Raises:
        Unsupported: none of the known scales makes it linear.
    """
    draw = torch.Generator().manual_seed(0)
    size = float(x.detach().float().std()) or 1.0
    rows = torch.randn(2, 3, x.shape[-1], generator=draw) * size + 2 * size * torch.tensor([1.0, -0.5]).view(2, 1, 1)
    first, second = rows.to(x.device, x.dtype)
    named = [float(eps) for key in _EPS_NAMES if isinstance(eps := getattr(module, key, None), int | float)]
    with torch.no_grad():
        for divides_by in (layer_scale, rms_scale, no_scale):
            for eps in (named or list(_EPS_TRIED)) if divides_by is not no_scale else [0.0]:
                norm = Norm(name, module, divides_by, eps)
                if _linear(norm, first, second):
                    return norm
    raise Unsupported(
        f"freeze='norms': the norm {name!r} ({type(module).__name__}) is not understood: neither dividing by the root "
        "mean square nor by the standard deviation makes it linear. Use freeze='none' or freeze='other_heads'."
    )


def _linear(norm: Norm, first: Tensor, second: Tensor) -> bool:
    """Whether the norm times its scale is linear on a mixture, and on inputs so small that eps counts."""
    nothing = norm.module.forward(torch.zeros_like(first))

    def unscaled(x: Tensor) -> Tensor:
        return (norm.module.forward(x) - nothing).float() * norm.scale(x)

    one = unscaled(first)
    pairs = [(unscaled(0.6 * first - 1.3 * second), 0.6 * one - 1.3 * unscaled(second))]
    factor = max(norm.eps, 1e-12) ** 0.5 / float(first.float().abs().max())
    if norm.divides_by is not no_scale and factor < 1:
        small = first * factor
        if float(small.float().abs().min()) > torch.finfo(first.dtype).tiny:
            pairs.append((unscaled(small), float(small.float().norm() / first.float().norm()) * one))
    near = _ROUNDING * max(torch.finfo(first.dtype).eps, torch.finfo(torch.float32).eps)  # some compute in float32
    return all(float((made - expected).abs().max()) <= near * float(expected.abs().max()) for made, expected in pairs)


@dataclass(eq=False)
class NormScales:
    """The scales by which the norms of an unedited run divided.

    Attributes:
        norms: path -> norm, of those that ran.
        scales: path -> the scale ``[batch, pos, 1]`` (or ``[rows, 1]``) of each call, in order.
        last: paths of the norms that ran after the last block of the default stack: the final norm.
    """

    norms: dict[str, Norm] = field(default_factory=dict)
    scales: dict[str, list[Tensor]] = field(default_factory=dict)
    last: tuple[str, ...] = ()


def record_norms(model: Model, batch: Batch, *, kernels: Mapping[tuple[str, int], str] | None = None) -> NormScales:
    """The scales of every norm in an unedited run of ``batch``.

    Args:
        model: the handle.
        batch: the prompts.
        kernels: another run's ``kernels``, as for :func:`interp.run`.

    Raises:
        Unsupported: a norm that is not understood, or a block in which none is found.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> record_norms(model, interp.encode(model, torch.tensor([[0, 3, 4, 3]]))).last
        ('transformer.ln_f',)
    """
    made = NormScales()
    order: list[str] = []

    def ran(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = _only_input(name, module, args, kwargs)
            if name not in made.norms:
                made.norms[name] = understood(name, module, x)
            made.scales.setdefault(name, []).append(made.norms[name].scale(x.detach()))
            order.append(name)

        return hook

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        order.clear()

    with ExitStack() as guard:
        for name, module in find_norms(model).items():
            guard.enter_context(removing(module.register_forward_hook(ran(name), with_kwargs=True)))
        guard.enter_context(removing(model.stack().blocks[-1].register_forward_hook(ended)))
        run(model, batch, logits=fewest_logits(model), kernels=kernels)
    made.last = tuple(dict.fromkeys(order))
    _check_blocks(model, made)
    return made


def _only_input(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if len(given) != 1:
        raise Unsupported(
            f"freeze='norms': the norm {name!r} ({type(module).__name__}) takes {len(given)} tensors; only norms of "
            "one input are understood. Use freeze='none' or freeze='other_heads'."
        )
    return given[0]


def _check_blocks(model: Model, made: NormScales) -> None:
    running = {id(norm.module) for norm in made.norms.values()}
    stack = model.stack()
    without = [
        index
        for index, block in enumerate(stack.blocks)
        if stack.layers[index] and not any(id(module) in running for module in block.modules())
    ]
    if without:
        raise Unsupported(
            f"freeze='norms': no norm was found in the blocks {without} of stack {stack.name!r} ({stack.model_type}); "
            "what they divide by cannot be held. Use freeze='none' or freeze='other_heads'."
        )


@contextmanager
def holding_norms(model: Model, scales: NormScales) -> Iterator[None]:
    """Every norm divides by the recorded scale of its prompt and position inside the block.

    The forwards inside may hold several copies of the recorded batch, one after the other. The model is as found
    afterwards.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> with holding_norms(model, record_norms(model, batch)):
        ...     held = interp.run(model, batch).logits
        >>> bool(torch.equal(held, interp.run(model, batch).logits))
        True
    """
    calls: dict[str, int] = {}

    def begin(module: nn.Module, args: Any) -> None:
        calls.clear()

    def held(norm: Norm) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            number = calls.get(norm.name, 0)
            calls[norm.name] = number + 1
            x = _only_input(norm.name, module, args, kwargs)
            scale = _scale_of(norm, scales.scales[norm.name], number, x)
            return norm.held(x, scale, made=output)

        return hook

    with ExitStack() as guard:
        guard.enter_context(removing(model.hf.register_forward_pre_hook(begin)))
        for norm in scales.norms.values():
            guard.enter_context(hooked_output(norm.module, held(norm)))  # before edits of what the norm gives
        yield


def _scale_of(norm: Norm, recorded: list[Tensor], number: int, x: Tensor) -> Tensor:
    scale = recorded[number] if number < len(recorded) else None
    if scale is None or scale.shape[1:-1] != x.shape[1:-1] or x.shape[0] % scale.shape[0]:
        held = "nothing" if scale is None else list(scale.shape[:-1])
        raise RunFailed(
            f"freeze='norms': {norm.name} was called with rows {list(x.shape[:-1])}, but the unedited run left {held} "
            "to hold; the forward must be of whole copies of the recorded batch."
        )
    return scale.repeat(x.shape[0] // scale.shape[0], *[1] * (scale.ndim - 1)).to(x.device)
