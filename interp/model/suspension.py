"""Our own hooks and taps taken off a model for a while, so that a probe sees the model and no edit of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from interp.model.attention import SLOT

_KNOWN = ("interp.", "transformers.")  # transformers keeps hooks of its own, which only look


@contextmanager
def suspended(hf: nn.Module) -> Iterator[None]:
    """Inside, no hook or tap of this library that was in force before is; afterwards all are, in their order.

    Somebody else's hooks stay: they may be what makes the model run at all.
    """
    kept: list[tuple[Any, dict[int, Any]]] = []
    taps = [(module, module.__dict__.pop(SLOT)) for module in hf.modules() if SLOT in module.__dict__]
    for module in hf.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if any(_made_by(hook, "interp.") for hook in hooks.values()):
                kept.append((hooks, dict(hooks)))
                for number, hook in list(hooks.items()):
                    if _made_by(hook, "interp."):
                        del hooks[number]
    try:
        yield
    finally:
        for hooks, before in kept:  # the very dict that each hook's handle knows
            hooks.clear()
            hooks.update(before)
        for module, own in taps:
            module.__dict__[SLOT] = own


def foreign_hooks(hf: nn.Module) -> frozenset[int]:
    """The numbers of the forward hooks that are neither this library's nor those of transformers."""
    return frozenset(
        number
        for module in hf.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for number, hook in hooks.items()
        if not _made_by(hook, *_KNOWN)
    )


def _made_by(hook: Any, *rooms: str) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(rooms)
