"""Attention maps as they are given to pure functions: brought to one shape, checked, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.one_pass import one_pass
from interp.tracing.stages import Mixing, Rows
from interp.tracing.transitions import TOLERANCE, check_rows

ENTRIES = 1 << 20  # of a block: what stays in a processor's cache
Through = tuple[Tensor, Tensor]  # what is put on keys, what stays on the tokens themselves
ROUNDED = 2e-2  # how far above 1 a row in 16 bits may sum
_PLAIN, _PER_HEAD = 2, 3  # axes of one layer's maps: query, key, and head before them


def given_layers(patterns: Any, name: str) -> list[Float[Tensor, "head query key"]]:
    """The maps of each layer, as floating-point tensors on one device.

    Args:
        patterns: ``[layer, query, key]`` or ``[layer, head, query, key]``; or one map ``[query, key]`` or
            ``[head, query, key]`` per layer, whose numbers of heads may differ. Tensors, arrays or nested lists; 16-bit
            numbers are read as float32.
        name: what they are, for messages.

    Raises:
        BadInput: another shape, layers of different lengths, no layer, or numbers that are complex.

    Example:
        >>> [tuple(maps.shape) for maps in given_layers(torch.eye(3).expand(2, 3, 3), "patterns")]
        [(1, 3, 3), (1, 3, 3)]
    """
    if isinstance(patterns, Tensor | np.ndarray):
        if patterns.ndim not in (_PLAIN + 1, _PER_HEAD + 1):
            raise BadInput(
                f"{name}: maps of shape {list(patterns.shape)}; expected [layer, query, key] or [layer, head, query, "
                "key] of one prompt. Of a batch take one prompt: maps[:, prompt]."
            )
        parts: Sequence[Any] = list(patterns)
    elif isinstance(patterns, Sequence) and not isinstance(patterns, str):
        parts = patterns
    else:
        raise BadInput(f"{name}: a {type(patterns).__name__}; expected a tensor, an array, or a list of one per layer.")
    if not len(parts):
        raise BadInput(f"{name}: no layer; expected one map per layer at least.")
    layers = []
    for index, part in enumerate(parts):
        tensor = map_tensor(part, f"{name}[{index}]")
        if tensor.ndim not in (_PLAIN, _PER_HEAD) or 0 in tensor.shape:
            raise BadInput(
                f"{name}[{index}] is of shape {list(tensor.shape)}; expected [query, key] or [head, query, key] of one "
                "prompt, none of them empty. Of a batch take one prompt: [maps[prompt] for maps in patterns]."
            )
        layers.append(tensor if tensor.ndim == _PER_HEAD else tensor[None])
    shapes = {tuple(layer.shape[1:]) for layer in layers}
    if len(shapes) > 1:
        raise BadInput(f"{name}: layers of sizes {sorted(shapes)}; expected as many tokens in each.")
    return [layer.to(layers[0].device) for layer in layers]


def map_tensor(part: Any, name: str) -> Tensor:
    """One tensor of floating-point numbers, without its graph: of a tensor, an array or nested lists.

    Args:
        part: the numbers; whole ones become float64.
        name: what they are, for messages.

    Raises:
        BadInput: no numbers, or complex ones.
    """
    try:
        made = part.detach() if isinstance(part, Tensor) else torch.from_numpy(_own(np.asarray(part)))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: a {type(part).__name__} that is no array of numbers.") from error
    if made.is_complex():
        raise BadInput(f"{name} has complex numbers; expected attention probabilities.")
    return made if made.is_floating_point() else made.double()


def _own(array: np.ndarray) -> np.ndarray:
    """The array itself, or a copy where a tensor cannot share its memory."""
    return array if array.flags.writeable and min(array.strides, default=1) >= 0 else array.copy()


def target_columns(targets: Sequence[int] | Tensor | None, n_tokens: int) -> Int[Tensor, " row"]:
    """Columns of the rows wanted, counted from the first; all for None.

    Raises:
        BadInput: no list of whole numbers, none, or columns that are not there.

    Example:
        >>> target_columns([-1, 0], 4).tolist()
        [3, 0]
    """
    if targets is None:
        return torch.arange(n_tokens)
    try:
        columns = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        columns = torch.zeros(())
    if columns.ndim != 1 or columns.is_floating_point() or columns.dtype == torch.bool or not columns.numel():
        raise BadInput(f"targets={targets!r}: expected the columns of the rows wanted, such as [-1].")
    if int(columns.min()) < -n_tokens or int(columns.max()) >= n_tokens:
        raise BadInput(f"targets={columns.tolist()}: there are {n_tokens} tokens (0 to {n_tokens - 1}, or -1 back).")
    return columns.long().cpu() % n_tokens


class GivenMaps:
    """One layer's given maps, read and checked a few rows at a time.

    Args:
        maps: ``[head, query, key]``.
        where: what they are, for messages.
        missing: the rule for rows that sum to less than 1.
        dtype: to calculate in.
    """

    def __init__(
        self, maps: Float[Tensor, "head query key"], where: str, *, missing: str | None, dtype: torch.dtype
    ) -> None:
        self.maps, self.where, self.missing, self.dtype = maps, where, missing, dtype
        self.rounding = ROUNDED if maps.dtype.itemsize < torch.float32.itemsize else TOLERANCE
        self.left = torch.ones(maps.shape[1], dtype=torch.bool)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(1, head, query, key)``."""
        heads, queries, keys = self.maps.shape
        return 1, heads, queries, keys

    def read(self, columns: Int[Tensor, " row"]) -> Iterator[Rows]:
        """The maps of the rows at ``columns``, checked, block by block, with the rows' columns.

        Raises:
            BadInput: rows that are no distributions.
        """
        heads, _, keys = self.maps.shape
        for some in columns.split(max(1, ENTRIES // (heads * keys))) if len(columns) else ():
            first, last = int(some[0]), int(some[-1])
            run = last - first + 1 == len(some)
            rows = self.maps[:, first : last + 1] if run else self.maps[:, some]
            rows = rows.to(self.dtype)
            sums = check_rows(rows, self.where, missing=self.missing, rounding=self.rounding)
            self.left[some] = False
            yield Rows(rows[None], some[None], sums[None])

    def fast(self, mixing: Mixing, index: int, residual: float | Tensor) -> Callable[[Tensor], Through] | None:
        """A short way of taking vectors through the layer, None where the maps have to be fused or completed first."""
        plain = mixing.fusion.linear and not mixing.discard and mixing.missing is None and mixing.normalise
        share = torch.as_tensor(residual, dtype=self.dtype, device=self.maps.device).reshape(-1)
        if not plain or self.maps.dtype != self.dtype or bool((share >= 1).any()):
            return None

        def through(vectors: Float[Tensor, "1 vector query"]) -> Through:
            shares = mixing.fusion.shares(index, len(self.maps), vectors)
            attended, stays, good = one_pass(self.maps, vectors[0], shares, share.expand(self.maps.shape[1]))
            if not good:  # says what is wrong, or that it is rows of nothing
                self.left[:] = True
                self.check_rest()
            self.left[:] = False
            return attended[None], stays[None]

        return through

    def check_rest(self) -> None:
        """Check the rows that nobody asked for.

        Raises:
            BadInput: rows that are no distributions.
        """
        for _ in self.read(self.left.nonzero()[:, 0].to(self.maps.device)):
            pass
