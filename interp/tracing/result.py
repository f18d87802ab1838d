"""``Trace``: what target tokens owe to source tokens, with what it means and how it was made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.errors import BadAddress, BadInput
from interp.numerals import numeral
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor

    from interp.show.trace_image import ImageOverlay
    from interp.show.trace_text import TokenHeatmap

_KIND = "trace"
_ARRAYS = ("values", "targets", "mask")


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """What each target token owes to each source token, by one method; made by :func:`interp.trace`.

    Attributes:
        method: the name of the method.
        values: ``[prompt, target, source]``; NaN at padding, in sources and in targets that a prompt lacks.
        targets: ``[prompt, target]`` columns of the targets.
        mask: ``[prompt, source]`` True at real sources.
        sources: per prompt, the text of each source column (padding is ``""``).
        target_words: per prompt, the text of each target.
        stack: whose tokens.
        signed: whether a number below 0 speaks against the answer.
        layers: ``[layer, prompt, target, source]`` at the top of each layer, where that was asked for.
        source_stacks: names and numbers of columns where the sources are of several stacks (encoder and decoder).
        metadata: how it was made: anything JSON can hold.
    """

    method: str
    values: Float[np.ndarray, "prompt target source"]
    targets: Int[np.ndarray, "prompt target"]
    mask: Bool[np.ndarray, "prompt source"]
    sources: tuple[tuple[str, ...], ...]
    target_words: tuple[tuple[str, ...], ...]
    stack: str
    signed: bool = False
    layers: Float[np.ndarray, "layer prompt target source"] | None = None
    source_stacks: tuple[tuple[str, int], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def row(self, prompt: int = 0, target: int = -1, *, layer: int | None = None) -> Float[np.ndarray, " source"]:
        """``[source]`` one target's numbers, of the whole trace or at the top of the n-th layer with attention.

        Raises:
            BadAddress: a prompt, target or layer that is not there.
            BadInput: layers were not asked for.
        """
        values = self.values if layer is None else self._layers()[self._inside(layer, len(self._layers()), "layer")]
        prompt = self._inside(prompt, len(values), "prompt")
        return values[prompt, self._inside(target, values.shape[1], "target")]

    def weights(self, target: int = -1, *, layer: int | None = None) -> Tensor:
        """``[prompt, source]`` one target's numbers as a tensor, 0 at padding: what protocols of weights take."""
        import torch

        values = self.values if layer is None else self._layers()[self._inside(layer, len(self._layers()), "layer")]
        return torch.from_numpy(np.nan_to_num(values[:, self._inside(target, values.shape[1], "target")]))

    def table(self) -> pd.DataFrame:
        """One row per number: prompt, target, target_token, source, source_token, value; padding is left out."""
        prompt, target, source = np.nonzero(np.isfinite(self.values) & self.mask[:, None, :])
        return pd.DataFrame(
            {
                "prompt": prompt,
                "target": self.targets[prompt, target],
                "target_token": [self.target_words[p][t] for p, t in zip(prompt, target, strict=True)],
                "source": source,
                "source_token": [self.sources[p][s] for p, s in zip(prompt, source, strict=True)],
                "value": self.values[prompt, target, source],
            }
        )

    def top(self, k: int = 10, *, prompt: int = 0, target: int = -1) -> pd.DataFrame:
        """The ``k`` sources with the largest absolute numbers of one target: source, token, value."""
        row = self.row(prompt, target)
        order = np.argsort(-np.nan_to_num(np.abs(row), nan=-1.0), kind="stable")[: int(np.isfinite(row).sum())][:k]
        words = [self.sources[prompt][place] for place in order]
        return pd.DataFrame({"source": order, "token": words, "value": row[order]})

    def plot(
        self, kind: str = "tokens", *, prompt: int = 0, target: int = -1, **options: Any
    ) -> TokenHeatmap | ImageOverlay | go.Figure:
        """One view: ``"tokens"``, ``"heatmap"``, ``"layers"`` or ``"image"``; see :func:`interp.show.plot_trace`."""
        from interp.show.trace_plot import plot_trace

        return plot_trace(self, kind, prompt=prompt, target=target, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the file that now holds the trace."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.layers is not None:
            arrays["layers"] = self.layers
        rest = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in (*_ARRAYS, "layers")}
        return write_arrays(path, arrays, kind=_KIND, metadata=plain_json(rest))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trace:
        """The trace that ``save`` wrote.

        Raises:
            BadInput: the file is not there, is damaged, or holds something else.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        known = {one.name for one in fields(cls)}
        rest = {name: value for name, value in about.items() if name in known}
        for name in ("sources", "target_words", "source_stacks"):
            rest[name] = tuple(tuple(part) for part in rest[name])
        return cls(**arrays, **rest)

    def _layers(self) -> np.ndarray:
        if self.layers is None:
            raise BadInput(f"This trace by {self.method!r} holds no layers; ask for them with each_layer=True.")
        return self.layers

    def _inside(self, place: int, size: int, what: str) -> int:
        if not -size <= place < size:
            raise BadAddress(f"There is no {what} {place}: this trace has {size}.")
        return place % size

    def __repr__(self) -> str:
        prompts, targets, sources = self.values.shape
        best = self.top(3, prompt=0) if prompts else None
        shown = (
            ""
            if best is None
            else ", ".join(f"{w!r} {numeral(v)}" for w, v in zip(best.token, best.value, strict=True))
        )
        return f"Trace({self.method}, {prompts} prompts, {targets} targets, {sources} sources; first prompt: {shown})"
