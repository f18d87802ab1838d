"""Scopes: what is changed on a model for a while, and put back exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import RunFailed, Unsupported
from interp.model.attention import BASES, AttentionTap, WatchBypass, register
from interp.model.stacks import Stack

_OURS = "_headscope_hook"


@contextmanager
def hooked_output(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """``hook`` on the output of ``module``, after earlier ones of ours and before everybody else's.

    transformers keeps hooks of its own on blocks once hidden states were asked for, and some models read their vision
    features from them: an edit that came later would not reach those.
    """
    ours = [number for number, other in module._forward_hooks.items() if getattr(other, _OURS, False)]
    setattr(hook, _OURS, True)
    handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)
    ordered: Any = module._forward_hooks
    for number in reversed(ours):
        ordered.move_to_end(number, last=False)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def removing(handle: Any) -> Iterator[None]:
    """A registered hook's handle, removed on leaving."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched(attention: nn.Module, tap: AttentionTap, dtype: torch.dtype) -> Iterator[None]:
    """A watcher around every call of an attention module that bypasses the interface."""
    open_modes: list[WatchBypass] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        mode = WatchBypass(tap, dtype)
        mode.__enter__()
        open_modes.append(mode)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_modes.pop().__exit__(None, None, None)

    first = attention.register_forward_pre_hook(enter, with_kwargs=True)
    last = attention.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        while open_modes:
            open_modes.pop().__exit__(None, None, None)
        last.remove()
        first.remove()


@contextmanager
def switched(stack: Stack) -> Iterator[None]:
    """The stack's configs name the registered function that delegates to what they named before."""
    register()
    configs: dict[int, Any] = {id(stack.config): stack.config}
    for layer in stack.layers:
        config = getattr(layer.attention, "config", None) if layer else None
        if config is not None:
            configs[id(config)] = config
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    for _, name in before:
        if name not in BASES and name not in BASES.values():
            raise Unsupported(
                f"Stack {stack.name!r} runs attention {name!r}, inside which q, k, v, scores and patterns cannot be "
                "reached; load the model with attn_implementation='sdpa' or 'eager', or use Site.Z."
            )
    try:
        for config, name in before:
            config._attn_implementation_internal = BASES.get(name, name)
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


@contextmanager
def evaluating(hf: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; each one's own ``training`` flag is put back."""
    training = [module for module in hf.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module`` runs ``forward`` inside, with its hooks in force; afterwards its own, as found."""
    missing = object()
    own = module.__dict__.get("forward", missing)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is missing:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


class Reached(Exception):
    """The input of an output projection, on the way out of a block that is left half way."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z


def hidden_among(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The hidden states among a module's arguments, and a function that puts others in their place."""
    if args and isinstance(args[0], Tensor):
        return args[0], lambda made: ((made, *args[1:]), dict(kwargs))
    for name in ("hidden_states", *kwargs):
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name], lambda made: (args, {**kwargs, name: made})  # noqa: B023 - the loop ends here
    raise RunFailed(f"A hooked module was called without a tensor (arguments: {sorted(kwargs)}).")
