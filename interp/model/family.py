"""One row of family knowledge: where attention, the MLP and the residual stream lie in one transformer block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn


class Place(NamedTuple):
    """Where a residual tensor is visible: on the way into a module (``"input"``), or out of it (``"output"``).

    An input is the module's first positional argument, else its ``hidden_states`` keyword. It is the very tensor that
    is the residual, and the block keeps a reference to it: a new tensor given to the module changes only what the
    module sees, a change in place changes the residual as well. An output is the first element of a tuple.
    """

    side: Literal["input", "output"]
    path: str


@dataclass(frozen=True)
class Cross:
    """The cross-attention of a decoder block, between self-attention and MLP."""

    attention: str  # module that calls the attention function
    out: str  # its output projection
    writer: str  # its output is what cross-attention adds to the residual
    resid: Place  # the residual after cross-attention
    post_norm: str | None = None  # post-norm blocks: resid = post_norm(mid + writer)


@dataclass(frozen=True)
class Family:
    """One row: where things are in a block, and how the block puts them together.

    ``norm`` says which identity holds between the block's input ``pre``, its output ``post`` and what is written:

    - ``"pre"`` and ``"sandwich"``: ``mid = pre + attn``, ``post = mid + mlp`` (``attn``, ``mlp`` after the post-norms)
    - ``"post"``: ``mid = norm0(pre + attn)``, ``post = norm1(mid + mlp)``, with ``post_norms = (norm0, norm1)``
    - ``"parallel"``: ``post = pre + attn + mlp``, and there is no ``mid``

    With ``cross``, ``mid`` is after self-attention and the MLP reads ``cross.resid`` instead.
    """

    attention: str  # module that calls the attention function (or takes the softmax)
    out: str  # output projection: its input is z, all heads side by side
    attention_writer: str  # its output (first of a tuple) is what attention adds to the residual
    mlp: str  # module whose input is the MLP's
    mlp_writer: str  # its output (first of a tuple) is what the MLP adds to the residual
    norm: Literal["pre", "post", "sandwich", "parallel"] = "pre"
    mid: Place | None = None  # the residual after attention
    post_norms: tuple[str, str] | None = None  # post-norm blocks: the norms after attention and after the MLP
    cross: Cross | None = None
    multiplier: str | None = None  # config attribute by which both written tensors are multiplied when added
    interface: bool = True  # attention dispatches through transformers' AttentionInterface
    packed: bool = False  # rows of all prompts stand one after the other: [rows, d_model], without a batch axis
    flat_mlp: bool = False  # the MLP's modules see [batch * pos, d_model]
    mlp_overwritten: bool = False  # the block adds onto the MLP's output in place: a reader must copy it
    when: tuple[tuple[str, object], ...] = ()  # config attributes that must have these values
    note: str = ""  # a sentence for the capability card

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module path that the row names."""
        places = [self.mid] if self.mid else []
        extra = list(self.post_norms or ())
        if self.cross:
            places.append(self.cross.resid)
            extra += [self.cross.attention, self.cross.out, self.cross.writer]
            extra += [self.cross.post_norm] if self.cross.post_norm else []
        named = [self.attention, self.out, self.attention_writer, self.mlp, self.mlp_writer]
        return tuple(dict.fromkeys([*named, *(place.path for place in places), *extra]))

    def fits(self, block: nn.Module, config: Any) -> bool:
        """Whether every path of the row exists on ``block`` and ``config`` has what the row asks of it."""
        met = all(getattr(config, name, None) == value for name, value in self.when)
        met = met and (self.multiplier is None or isinstance(getattr(config, self.multiplier, None), int | float))
        return met and all(module_at(block, path) is not None for path in self.paths)


def module_at(block: nn.Module, path: str) -> nn.Module | None:
    """The submodule of ``block`` at a dotted path, or ``None`` where there is none."""
    found: Any = block
    for part in path.split("."):
        found = getattr(found, part, None) if isinstance(found, nn.Module) else None
    return found if isinstance(found, nn.Module) else None
