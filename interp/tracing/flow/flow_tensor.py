"""``Flow``: a tensor of maximum flows that knows how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.numerals import numeral


@dataclass(frozen=True, eq=False)
class FlowNotes:
    """How flows were found.

    Attributes:
        targets: tokens at the top.
        sources: tokens at the bottom.
        settled: way -> number of pairs that it settled.
        spread: ``[source]`` the standard deviation of the flow over the targets that have a path to the source.
        saturated: whether nothing depends on the target.
        about: the options.
    """

    targets: tuple[int, ...]
    sources: tuple[int, ...]
    settled: Mapping[str, int]
    spread: Float[np.ndarray, " source"]
    saturated: bool
    about: Mapping[str, Any] = field(default_factory=dict)


class Flow(Tensor):
    """``[target, source]`` maximum flows (``[layer, target, source]`` with ``each_layer``); see ``attention_flow``.

    A tensor: what is calculated from it is a plain one. Besides:

    Attributes:
        notes: targets, sources, counts of how pairs were settled, the spread over targets.
    """

    notes: FlowNotes

    @staticmethod
    def made(values: Tensor, notes: FlowNotes) -> Flow:
        """The flows with their notes."""
        found = values.as_subclass(Flow)
        found.notes = notes
        return found

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Plain tensors of whatever is calculated."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @property
    def settled(self) -> Mapping[str, int]:
        """Way -> number of pairs that it settled: closed form, no path, cuts that met a flow, solver."""
        return self.notes.settled

    @property
    def spread(self) -> Float[np.ndarray, " source"]:
        """``[source]`` the standard deviation over targets; 0 where the flow does not depend on the target."""
        return self.notes.spread

    def table(self) -> pd.DataFrame:
        """One row per pair: layer (number of layers below the top, of ``each_layer``), target, source, flow."""
        values = self.detach().cpu().double().numpy()
        whole = values[None] if values.ndim == 2 else values  # noqa: PLR2004
        layer, target, source = np.indices(whole.shape).reshape(3, -1)
        columns = {
            "target": np.array(self.notes.targets)[target],
            "source": np.array(self.notes.sources)[source],
            "flow": whole.ravel(),
        }
        return pd.DataFrame(columns if values.ndim == 2 else {"layers": layer + 1, **columns})  # noqa: PLR2004

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        size = " x ".join(map(str, self.shape))
        ways = ", ".join(f"{way}: {number}" for way, number in self.settled.items())
        known = self.spread[np.isfinite(self.spread)]
        spread = f"; largest spread over targets {numeral(float(known.max()))}" if known.size else ""
        return f"Flow({size}; {ways}{spread})\n{self.detach()!r}"
