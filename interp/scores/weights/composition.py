"""``composition``: how strongly every head reads what every earlier head writes, from the weights alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.address import Head
from interp.errors import BadInput, Unsupported
from interp.model.handle import Model
from interp.model.head_weights import Fold, check_fold, head_weights
from interp.model.stacks import Stack
from interp.names import unknown
from interp.numerals import numeral
from interp.results import HeadScores
from interp.scores.weights.composition_chance import chance_score, chance_spread
from interp.scores.weights.composition_pairs import KINDS, LayerForms, all_pairs, forms_of
from interp.tensor_file import plain_json, read_arrays, write_arrays

if TYPE_CHECKING:
    import plotly.graph_objects as go

Kind = Literal["q", "k", "v"]
Side = Literal["in", "out"]
Over = Literal["max", "mean"]

_KIND = "composition"
_NAMES = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True, eq=False, repr=False)
class Composition:
    """Composition scores of all pairs of heads, the first in an earlier layer than the second.

    Attributes:
        kinds: the first axis: ``"q"``, ``"k"``, ``"v"``.
        values: ``[kind, layer, head, layer, head]`` in [0, 1], the earlier head first; NaN where the first is not
            earlier, where no head is or was asked for, and where a matrix is 0.
        concentration: kind or ``"write"`` -> ``[layer, head]``: how few directions a form has, for ``excess``.
        d_model: width of the residual.
        stack: whose heads.
        default_stack: the stack whose heads print without a prefix.
        metadata: how the numbers were made.
    """

    kinds: tuple[str, ...]
    values: Float[np.ndarray, "kind layer head layer head"]
    concentration: dict[str, Float[np.ndarray, "layer head"]]
    d_model: int
    stack: str = "text"
    default_stack: str = "text"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def chance(self) -> float:
        """``1 / sqrt(d_model)``: the root mean square score under a random rotation of the residual stream."""
        return chance_score(self.d_model)

    @property
    def excess(self) -> Float[np.ndarray, "kind layer head layer head"]:
        """``(score^2 - 1/d_model) / sd``: how many standard deviations of a random rotation a pair lies above it."""
        sd = np.stack(
            [
                chance_spread(
                    self.concentration["write"][:, :, None, None], self.concentration[kind][None, None], self.d_model
                )
                for kind in self.kinds
            ]
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(sd > 0, (self.values**2 - 1 / self.d_model) / sd, np.nan)

    def of(self, kind: Kind | str) -> Float[np.ndarray, "layer head layer head"]:
        """``[layer, head, layer, head]`` the scores of one kind.

        Raises:
            BadInput: a kind that was not asked for.
        """
        return self.values[self._place(kind)]

    def matrix(self, kind: Kind | str) -> Float[np.ndarray, "head head"]:
        """``[earlier head, later head]`` of one kind, the heads in the order of :attr:`heads`."""
        cells = self._cells()
        scores = self.of(kind)
        return scores[cells[:, 0], cells[:, 1]][:, cells[:, 0], cells[:, 1]]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that were asked for, in order."""
        name = None if self.stack == self.default_stack else self.stack
        return tuple(Head(int(layer), int(head), name) for layer, head in self._cells())

    def table(self) -> pd.DataFrame:
        """One row per pair and kind, the largest first: kind, first (writes), second (reads), value, chance, excess."""
        places = np.argwhere(np.isfinite(self.values))
        index = tuple(places.T)
        order = np.argsort(-self.values[index], kind="stable")
        places, excess = places[order], self.excess
        index = tuple(places.T)
        return pd.DataFrame(
            {
                "kind": [self.kinds[place] for place in places[:, 0]],
                "first": [self._label(*cell) for cell in places[:, 1:3]],
                "second": [self._label(*cell) for cell in places[:, 3:5]],
                "value": self.values[index],
                "chance": np.full(len(places), self.chance),
                "excess": excess[index],
            }
        )

    def top(self, k: int = 10, *, kind: Kind | str | None = None) -> pd.DataFrame:
        """The ``k`` foremost rows of :meth:`table`, of one kind or of all.

        Raises:
            BadInput: a kind that was not asked for.
        """
        rows = self.table()
        if kind is not None:
            self._place(kind)
            rows = rows.loc[rows["kind"] == kind]
        return pd.DataFrame(rows).head(k).reset_index(drop=True)

    def per_head(self, kind: Kind | str, *, side: Side | str = "in", statistic: Over | str = "max") -> HeadScores:
        """A number per head: its strongest (or mean) composition with earlier heads, or with later ones.

        Args:
            kind: which composition.
            side: ``"in"`` the head is the later one of the pair, ``"out"`` the earlier one.
            statistic: ``"max"`` or ``"mean"`` over the other heads; NaN where there is none.

        Raises:
            BadInput: an unknown word, or a kind that was not asked for.
        """
        made = over_others(self.of(kind), side, statistic)
        return HeadScores.from_array(
            made,
            name=f"{kind}_composition",
            stack=self.stack,
            default_stack=self.default_stack,
            exists=np.isfinite(self.concentration["write"]) | np.isfinite(made),
            metadata={**self.metadata, "side": side, "statistic": statistic},
        )

    def plot(self, kind: Kind | str = "v", *, title: str = "") -> go.Figure:
        """A plotly heatmap of one kind, earlier heads down, later heads across.

        Args:
            kind: which composition.
            title: heading inside the figure.
        """
        from interp.show.composition import composition_figure

        labels = [str(head) for head in self.heads]
        heading = title or f"{_NAMES[str(kind)]}-composition" if kind in self.kinds else title
        layers = [head.layer for head in self.heads]
        return composition_figure(self.matrix(kind), labels, layers, chance=self.chance, title=heading)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file."""
        arrays = {"values": self.values, **{f"concentration.{name}": each for name, each in self.concentration.items()}}
        about = {
            "kinds": list(self.kinds),
            "d_model": self.d_model,
            "stack": self.stack,
            "default_stack": self.default_stack,
            "metadata": plain_json(self.metadata),
        }
        return write_arrays(path, arrays, kind=_KIND, metadata=about)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Composition:
        """What :meth:`save` wrote.

        Raises:
            BadInput: another file.
        """
        arrays, about = read_arrays(path, kind=_KIND)
        forms = {
            name.removeprefix("concentration."): each
            for name, each in arrays.items()
            if name.startswith("concentration.")
        }
        return cls(
            tuple(about["kinds"]),
            arrays["values"],
            forms,
            int(about["d_model"]),
            about["stack"],
            about["default_stack"],
            about["metadata"],
        )

    def _place(self, kind: Any) -> int:
        if kind not in self.kinds:
            raise BadInput(unknown(kind, self.kinds, "kind of composition"))
        return self.kinds.index(kind)

    def _cells(self) -> np.ndarray:
        return np.argwhere(np.isfinite(self.concentration["write"]) | self._named())

    def _named(self) -> np.ndarray:
        """``[layer, head]`` True at heads that were asked for, also those whose matrices are 0."""
        made = np.zeros(self.values.shape[1:3], dtype=bool)
        for layer, head in self.metadata.get("heads", []):
            made[layer, head] = True
        return made

    def _label(self, layer: int, head: int) -> str:
        return str(Head(int(layer), int(head), None if self.stack == self.default_stack else self.stack))

    def __repr__(self) -> str:
        largest = np.nanmax(self.values) if np.isfinite(self.values).any() else float("nan")
        return (
            f"Composition({', '.join(self.kinds)}; {len(self.heads)} heads, largest {numeral(float(largest))}, chance "
            f"{numeral(self.chance)})"
        )


def composition(
    model: Model,
    kinds: str | Iterable[str] = "qkv",
    *,
    heads: Iterable[Head | str | Sequence[int]] | None = None,
    stack: str | None = None,
    fold: Fold | str = "gain",
    dtype: torch.dtype = torch.float64,
    progress: Callable[[int], Any] | None = None,
) -> Composition:
    """The Q-, K- and V-composition score of every pair of heads, the first in an earlier layer than the second.

    Args:
        model: the handle.
        kinds: which of ``q``, ``k`` and ``v``.
        heads: the heads whose pairs are wanted, all by default.
        stack: whose heads; the default stack for None.
        fold: what of the norms is folded into the matrices; see :func:`interp.model.head_weights.head_weights`.
            ``"none"`` gives the scores of the projections' own weights.
        dtype: of the products of pairs; ``torch.float32`` takes half the time and memory, and is exact to about 1e-6.
        progress: called with the number of layers just read.

    With row vectors, an earlier head writes ``x W_OV`` and a later one reads it by ``W_QK`` (its queries), ``W_QK^T``
    (its keys) or ``W_OV`` (its values): the score is ``||A B||_F / (||A||_F ||B||_F)`` with A the earlier head's W_OV
    and B what the later one reads by (Elhage et al., A Mathematical Framework for Transformer Circuits, 2021). In
    [0, 1]; no ``[d_model, d_model]`` matrix is built. Under grouped KV a query head uses its group's K and V. A rotary
    embedding is left out: the forms are those of relative position 0.

    Raises:
        BadInput: a kind or head that is not there.
        Unsupported: a stack in which heads do not read what earlier heads write by one linear map (cross-attention,
            post-norm blocks with norms folded in, gated outputs), with the reason.

    Example:
        >>> import interp
        >>> found = interp.composition(interp.load("handmade"), "k")  # the induction head reads the previous-token one
        >>> found.top(1)[["kind", "first", "second"]].values.tolist()
        [['k', 'L0.H0', 'L1.H0']]
    """
    wanted = check_kinds(kinds)
    check_fold(fold)
    place = model.stack(stack)
    refuse_composition(place, fold)
    chosen = _chosen(model, place, heads)
    forms: dict[int, LayerForms] = {}
    width = 0
    for layer, indices in chosen.items():
        weights = head_weights(model, place, layer, fold=fold)
        if weights.mixes is not None:
            raise Unsupported(
                f"composition: layer {layer} of stack {place.name!r} ({place.model_type}): {weights.mixes}."
            )
        width = weights.o.shape[-1]
        forms[layer] = forms_of(weights, indices, wanted, dtype)
        if progress is not None:
            progress(1)
    n_heads = max(place.n_heads(layer) for layer in range(place.n_layers))
    shape = (place.n_layers, n_heads)
    named = [[layer, head] for layer, indices in chosen.items() for head in indices]
    return Composition(
        wanted,
        all_pairs(forms, wanted, *shape),
        _concentrations(forms, wanted, shape),
        width,
        place.name,
        model.default_stack,
        plain_json({"model": model.name, "fold": fold, "heads": named, "source": "Elhage et al., 2021"}),
    )


def check_kinds(kinds: Any) -> tuple[str, ...]:
    """The kinds asked for, in the order q, k, v.

    Raises:
        BadInput: none, or an unknown one.
    """
    given = list(kinds) if isinstance(kinds, str | Iterable) else [kinds]
    for kind in given:
        if kind not in KINDS:
            raise BadInput(unknown(kind, KINDS, "kind of composition"))
    if not given:
        raise BadInput("composition: no kind was given; expected some of 'q', 'k', 'v'.")
    return tuple(kind for kind in KINDS if kind in given)


def refuse_composition(stack: Stack, fold: str) -> None:
    """Refuse stacks in which composition between layers has no one linear meaning.

    Raises:
        Unsupported: with the reason.
    """
    if stack.cross:
        raise Unsupported(
            f"composition: stack {stack.name!r} is the cross-attention of a decoder, whose keys and values do not read "
            "what its earlier heads write. Use the decoder's own stack."
        )
    if stack.family.norm == "post" and fold != "none":
        raise Unsupported(
            f"composition: the residual of stack {stack.name!r} ({stack.model_type}) is itself normalised after every "
            f"block, so that fold={fold!r} has no one norm to fold between two heads. Use fold='none', which leaves "
            "those norms out."
        )


def over_others(
    scores: Float[np.ndarray, "layer head layer head"], side: str, statistic: str
) -> Float[np.ndarray, "layer head"]:
    """``[layer, head]`` the largest or mean score over a head's partners; NaN where it has none.

    Raises:
        BadInput: an unknown word.
    """
    if side not in ("in", "out"):
        raise BadInput(unknown(side, ("in", "out"), "side"))
    if statistic not in ("max", "mean"):
        raise BadInput(unknown(statistic, ("max", "mean"), "statistic"))
    n_layers, n_heads = scores.shape[:2]
    flat = scores.reshape(n_layers * n_heads, n_layers * n_heads)
    flat = flat if side == "in" else flat.T  # [other, head]
    there = np.isfinite(flat)
    if statistic == "max":
        made = np.where(there, flat, -np.inf).max(0)
    else:
        made = np.where(there, flat, 0).sum(0) / np.maximum(there.sum(0), 1)
    return np.where(there.any(0), made, np.nan).reshape(n_layers, n_heads)


def _chosen(
    model: Model, stack: Stack, heads: Iterable[Head | str | Sequence[int]] | None
) -> dict[int, tuple[int, ...]]:
    """Layer -> heads that are asked for."""
    if heads is None:
        return {layer: tuple(range(stack.n_heads(layer))) for layer in range(stack.n_layers) if stack.n_heads(layer)}
    chosen: dict[int, set[int]] = {}
    for given in [heads] if isinstance(heads, str | Head) else heads:
        head = Head.parse(given)
        if (head.stack or model.default_stack) != stack.name and head.stack is not None:
            raise BadInput(f"composition: head {head} is not of stack {stack.name!r}; give stack={head.stack!r}.")
        if not 0 <= head.index < stack.layer(head.layer).n_heads:
            raise BadInput(
                f"composition: head {head} is not there: layer {head.layer} of stack {stack.name!r} has "
                f"{stack.n_heads(head.layer)} query heads (0 to {stack.n_heads(head.layer) - 1})."
            )
        chosen.setdefault(head.layer, set()).add(head.index)
    if len(chosen) < 2:  # noqa: PLR2004 - an earlier and a later layer
        raise BadInput(
            "composition: heads= names heads of fewer than two layers; a pair needs an earlier and a later one."
        )
    return {layer: tuple(sorted(chosen[layer])) for layer in sorted(chosen)}


def _concentrations(
    forms: dict[int, LayerForms], kinds: Sequence[str], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    made = {name: np.full(shape, np.nan) for name in ("write", *kinds)}
    for layer, form in forms.items():
        made["write"][layer, list(form.heads)] = form.write_concentration.cpu().numpy()
        for kind in kinds:
            made[kind][layer, list(form.heads)] = form.read_concentration[kind].cpu().numpy()
    return made
