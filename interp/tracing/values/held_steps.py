"""The steps of a value-aware trace from one forward: one stack's, or a decoder's with all that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.attention_sums import HeldSums, hold_sums
from interp.names import lookup
from interp.tracing.ask import TraceAsk
from interp.tracing.held_stages import stacks_read
from interp.tracing.values.contributions import check_kind
from interp.tracing.values.steps import StepRows, ValueStep, ValueTower, contribution_rows

WITHIN = {
    "output": "what the sub-layer leaves in the stream: attention, the token's own state, and the norm after both",
    "attention": "what attention writes alone, as if there were no residual stream",
}


@dataclass(frozen=True, eq=False)
class HeldSteps:
    """The steps of a traced stack, and what made them.

    Attributes:
        tower: the steps.
        sums: the forward.
    """

    tower: ValueTower
    sums: HeldSums

    @property
    def source_stacks(self) -> tuple[tuple[str, int], ...] | None:
        """Whose tokens the sources are, where they are of two stacks."""
        if not self.tower.n_encoder:
            return None
        return (("encoder", self.tower.n_encoder), (self.sums.held.stacks[0], self.tower.n_tokens))

    @property
    def like(self) -> Tensor:
        """A tensor of the device of the run, in float32."""
        return next(iter(self.sums.values.values())).new_zeros((), dtype=torch.float32)

    def said(self) -> dict[str, Any]:
        """How exact the sums were, and how large what belongs to no token is; JSON."""
        return {"largest gap of a sum": max(self.sums.errors.values(), default=0.0)}


def held_steps(
    ask: TraceAsk, *, kind: str, norm: int | None = None, within: str = "output", value_bias: bool = True
) -> HeldSteps:
    """The steps of the stack that is asked about, from one forward; a decoder's with cross-attention and encoder.

    Args:
        ask: what is traced.
        kind, norm: see :func:`interp.contributions`.
        within: ``output`` or ``attention``.
        value_bias: whether a bias of the value projection belongs to the tokens.

    Raises:
        BadInput: the cross-attention alone, or options that are not there.
        Unsupported: maps, values or parts of the stream that the model does not offer.
    """
    order = check_kind(kind, norm)
    lookup(within, WITHIN, "part that is measured (within=)")
    if not isinstance(value_bias, bool):
        raise BadInput(f"{ask.method}: value_bias={value_bias!r}; expected True or False.")
    names = stacks_read(ask)
    sums = hold_sums(ask.model, ask.batch, names)
    ask.did(1)
    held = sums.held
    steps: dict[str, list[ValueStep]] = {}
    for name in names:
        stack = ask.model.stack(name)
        kept = None
        if ask.dropped is not None and name == ask.stack.name:
            kept = ~ask.dropped
        options = {"kind": kind, "norm": order, "within": within, "kept": kept}
        steps[name] = [
            _step(sums, name, layer, cross=stack.cross, value_bias=value_bias, options=options)
            for layer in held.layers(name)
        ]
    shapes = {held.shape(layer, names[0])[2:] for layer in held.layers(names[0])}
    if len(shapes) > 1 or any(queries != keys for queries, keys in shapes):
        raise BadInput(
            f"{ask.method}: the maps of stack {names[0]!r} are of the sizes {sorted(shapes)} (query, key); layers can "
            "be multiplied only where each has as many keys as queries. Trace one layer with 'raw'."
        )
    own = steps[names[0]]
    if len(names) > 1:
        crossed = {step.layer: step for step in steps["cross"]}
        own = [part for step in own for part in (step, crossed.get(step.layer)) if part is not None]
    encoder = steps["encoder"] if len(names) > 1 else ()
    tower = ValueTower(own, held.shape(held.layers(names[0])[0], names[0])[2], encoder)
    return HeldSteps(tower, sums)


def _step(
    sums: HeldSums, name: str, layer: int, *, cross: bool, value_bias: bool, options: Mapping[str, Any]
) -> ValueStep:
    def read(columns: Tensor) -> Iterator[StepRows]:
        made = sums.layer(layer, name, value_bias=value_bias)
        yield from contribution_rows(made, **options)(columns)

    return ValueStep(layer, name, cross, read, sums.held.shape(layer, name)[3])
