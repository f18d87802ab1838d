"""``SequenceRelevance``: the relevance of several sequences that attend to themselves and to each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BadInput
from interp.names import lookup
from interp.tracing.given_maps import ROUNDED, map_tensor
from interp.tracing.relevance.steps import positive_mean

Pair = tuple[str, str]


def without_identity(relevance: Float[Tensor, "pos pos"]) -> Float[Tensor, "pos pos"]:
    """``N(R) = I + (R - I) / rowsum(R - I)``; a row that is the identity's stays as it is (Chefer et al., 2021b).

    Example:
        >>> without_identity(torch.tensor([[1.0, 0.0], [3.0, 2.0]])).tolist()
        [[1.0, 0.0], [0.75, 1.25]]
    """
    eye = torch.eye(len(relevance), dtype=relevance.dtype, device=relevance.device)
    rest = relevance - eye
    sums = rest.sum(-1, keepdim=True)
    return eye + rest / torch.where(sums == 0, torch.ones_like(sums), sums)


@dataclass(frozen=True, eq=False)
class SequenceRelevance(Mapping[Pair, Tensor]):
    """What the tokens of each sequence owe to the tokens of each: ``relevance[s, q]`` is ``[token of s, token of q]``.

    Begins with ``R_ss = I`` and ``R_sq = 0``. Layers are applied in the order in which the model has them; each gives a
    new object. With ``A = mean_h relu(grad A * A)`` of a layer (Chefer, Gur and Wolf, 2021, "Generic attention-model
    explainability", equations 5 to 11):

    - self-attention of s: ``R_ss += A R_ss`` and ``R_sq += A R_sq``
    - attention of s to q: ``R_sq += N(R_ss)^T A N(R_qq)`` and ``R_ss += A R_qs``

    with ``N(R) = I + (R - I) / rowsum(R - I)``. In an encoder-decoder, ``R_qs`` stays 0.

    Attributes:
        found: the relevances of every pair.

    Example:
        >>> begun = SequenceRelevance.of({"text": 1, "image": 2})
        >>> maps = torch.tensor([[[0.5, 0.5]]])
        >>> begun.after_cross("text", "image", maps, 2 * torch.ones(1, 1, 2))["text", "image"].tolist()
        [[1.0, 1.0]]
    """

    found: Mapping[Pair, Tensor]

    @staticmethod
    def of(
        sizes: Mapping[str, int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> SequenceRelevance:
        """Before the first layer.

        Args:
            sizes: name of a sequence -> how many tokens it has.
            dtype, device: of the relevances.
        """
        return SequenceRelevance(
            {
                (rows, columns): torch.eye(height, dtype=dtype, device=device)
                if rows == columns
                else torch.zeros(height, width, dtype=dtype, device=device)
                for rows, height in sizes.items()
                for columns, width in sizes.items()
            }
        )

    def after_self(
        self, name: str, pattern: Float[Tensor, "head query key"], gradient: Float[Tensor, "head query key"]
    ) -> SequenceRelevance:
        """After a layer of self-attention.

        Args:
            name: whose.
            pattern: its maps.
            gradient: of what is explained with respect to them.

        Raises:
            BadInput: maps of another size, negative attention, rows that sum to more than 1, or NaN.
        """
        weighted = self._weighted(name, name, pattern, gradient)
        return SequenceRelevance(
            {pair: one + weighted @ one if pair[0] == name else one for pair, one in self.found.items()}
        )

    def after_cross(
        self, rows: str, keys: str, pattern: Float[Tensor, "head query key"], gradient: Float[Tensor, "head query key"]
    ) -> SequenceRelevance:
        """After a layer in which one sequence attends to another.

        Args:
            rows: the sequence whose queries they are.
            keys: the sequence that is attended to.
            pattern: the maps.
            gradient: of what is explained with respect to them.

        Raises:
            BadInput: maps of another size, negative attention, rows that sum to more than 1, or NaN.
        """
        return SequenceRelevance({**self.found, **self._crossed(rows, keys, pattern, gradient)})

    def after_both(
        self,
        first: str,
        second: str,
        forth: tuple[Float[Tensor, "head query key"], Float[Tensor, "head query key"]],
        back: tuple[Float[Tensor, "head query key"], Float[Tensor, "head query key"]],
    ) -> SequenceRelevance:
        """After a layer of co-attention, in which two sequences attend to each other at once.

        Args:
            first, second: the sequences.
            forth: maps of the first's queries over the second's keys, and their gradients.
            back: those of the second's queries over the first's keys.
        """
        made = {**self._crossed(first, second, *forth), **self._crossed(second, first, *back)}
        return SequenceRelevance({**self.found, **made})

    def _crossed(self, rows: str, keys: str, pattern: Tensor, gradient: Tensor) -> dict[Pair, Tensor]:
        if rows == keys:
            raise BadInput(f"{rows!r} attends to itself; use after_self.")
        weighted = self._weighted(rows, keys, pattern, gradient)
        own, other = without_identity(self[rows, rows]), without_identity(self[keys, keys])
        return {
            (rows, keys): self[rows, keys] + own.mT @ weighted @ other,
            (rows, rows): self[rows, rows] + weighted @ self[keys, rows],
        }

    def _weighted(self, rows: str, keys: str, pattern: Tensor, gradient: Tensor) -> Tensor:
        size = tuple(self[rows, keys].shape)
        pattern, gradient = map_tensor(pattern, "pattern"), map_tensor(gradient, "gradient")
        if pattern.shape != gradient.shape or tuple(pattern.shape[1:]) != size:
            raise BadInput(
                f"Maps {list(pattern.shape)} with gradients {list(gradient.shape)} for {rows!r} over {keys!r}; "
                f"expected [head, {size[0]}, {size[1]}] of both."
            )
        if not bool(torch.isfinite(pattern).all() & torch.isfinite(gradient).all()) or bool((pattern < 0).any()):
            raise BadInput(f"The maps of {rows!r} over {keys!r} have negative or NaN attention, or NaN gradients.")
        if bool((pattern.double().sum(-1) > 1 + ROUNDED).any()):
            raise BadInput(f"The maps of {rows!r} over {keys!r} have rows that sum to more than 1.")
        like = self[rows, keys]
        return positive_mean((pattern.to(like) * gradient.to(like)).unsqueeze(0))[0]

    def __getitem__(self, pair: Pair) -> Float[Tensor, "token source"]:
        names = {name: None for name, _ in self.found}
        for name in pair:
            lookup(name, names, "sequence")
        return self.found[pair]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)
