"""Hubs: the graph of a map, whose edges are the pairs of tokens with enough attention between them.

An undirected edge joins i and j where ``(A_ij + A_ji) / 2`` exceeds theta. The published definitions reached this
library through a replication; theta decides everything, so that each measure comes as a curve over thetas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer
from interp.scores.shape.distribution import column_sums, lengths

THETAS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
MOST_TOKENS = 1024  # of prompts whose maps are held whole, one layer at a time
MOST_ENTRIES = 1 << 26  # prompts x heads x tokens x tokens of a layer held whole: 256 MiB, and some copies of it

Graph = Bool[Tensor, "*graphs node node"]


def edges_of(pattern: Float[Tensor, "*maps token token"], theta: float) -> Graph:
    """``[..., i, j]`` True where ``(A_ij + A_ji) / 2 > theta`` and i is not j.

    Example:
        >>> edges_of(torch.tensor([[1.0, 0.0], [0.4, 0.6]]), 0.1).tolist()
        [[False, True], [True, False]]
    """
    both = (pattern + pattern.transpose(-2, -1)) / 2
    return (both > theta) & ~torch.eye(pattern.shape[-1], dtype=torch.bool, device=pattern.device)


def freeman(degrees: Int[Tensor, "*graphs node"], real: Bool[Tensor, "*#graphs node"]) -> Float[Tensor, "*graphs"]:
    """``[...]`` degree centralisation ``sum_i (max degree - degree_i) / ((n - 1)(n - 2))``, in [0, 1].

    1 for a star, 0 for a complete or an empty graph; NaN below three nodes (Freeman, 1978).

    Example:
        >>> freeman(torch.tensor([3, 1, 1, 1]), torch.ones(4, dtype=torch.bool))
        tensor(1.)
    """
    n = real.sum(-1)
    apart = torch.where(real, degrees.amax(-1, keepdim=True) - degrees, torch.zeros_like(degrees)).sum(-1)
    possible = (n - 1) * (n - 2)
    return torch.where(possible > 0, apart / possible, torch.nan)


def star_share(degrees: Int[Tensor, "*graphs node"], real: Bool[Tensor, "*#graphs node"]) -> Float[Tensor, "*graphs"]:
    """``[...]`` share of the edges that touch the node with most of them, in (0, 1]; NaN without edges.

    Example:
        >>> star_share(torch.tensor([3, 1, 1, 1]), torch.ones(4, dtype=torch.bool))
        tensor(1.)
    """
    edges = torch.where(real, degrees, torch.zeros_like(degrees)).sum(-1) / 2
    return torch.where(edges > 0, degrees.amax(-1) / edges, torch.nan)


def fiedler_of(graph: Bool[np.ndarray, "node node"]) -> float:
    """Second smallest eigenvalue of the Laplacian ``D - E`` of an unweighted graph.

    0 where it falls into parts, 1 for a star, n for a complete graph; NaN for one node.

    Example:
        >>> round(fiedler_of(~np.eye(5, dtype=bool)), 6)
        5.0
    """
    if len(graph) < 2:  # noqa: PLR2004
        return float("nan")
    laplacian = np.diag(graph.sum(1).astype(float)) - graph
    return max(float(np.linalg.eigvalsh(laplacian)[1]), 0.0)


def components_of(graph: Bool[np.ndarray, "node node"]) -> float:
    """Betti-0: how many connected parts the graph has."""
    return float(connected_components(csr_matrix(graph), directed=False)[0])


def cycle_rank_of(graph: Bool[np.ndarray, "node node"]) -> float:
    """``E - V + components``: how many independent cycles the graph has (Betti-1 of the graph, triangles not filled).

    Example:
        >>> cycle_rank_of(~np.eye(4, dtype=bool))
        3.0
    """
    return float(graph.sum() / 2 - len(graph)) + components_of(graph)


class _Thetas(Reducer):
    """A curve over thetas, checked before the forward."""

    def __init__(self, ask: Ask, thetas: Sequence[float], minus_uniform: bool) -> None:
        super().__init__(ask)
        given = tuple(thetas) if isinstance(thetas, Sequence) else (thetas,)
        if not given or not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < 1 for x in given):
            raise BadInput(f"{ask.name}: thetas={thetas!r}; expected thresholds of attention from 0 on and below 1.")
        if ask.stack.cross:
            raise BadInput(
                f"{ask.name}: stack {ask.stack.name!r} is cross-attention, whose queries are not its keys; there is no "
                "graph among tokens. Choose a self-attention stack."
            )
        self.thetas, self.minus_uniform = given, minus_uniform
        self.found: dict[int, Tensor] = {}

    def weights(self, block: Block) -> Float[Tensor, "batch head row key"]:
        """The block's entries, above those of a uniform row where that was asked for."""
        if not self.minus_uniform:
            return block.pattern
        uniform = block.open_keys / block.n_open.clamp(min=1).unsqueeze(-1)
        return (block.pattern - uniform).clamp(min=0)

    def real(self, n_tokens: int, count: int) -> Bool[Tensor, "batch node"]:
        """``[batch, node]`` real tokens."""
        mask = self.ask.mask
        return torch.ones(count, n_tokens, dtype=torch.bool) if mask is None else mask

    def measured(self) -> Measured:
        """A bin per theta."""
        about = {"thetas": list(self.thetas), "tokens": lengths(self.ask)}
        return Measured(self.found, bins=[f"{theta:g}" for theta in self.thetas], metadata=about)


class Degrees(_Thetas):
    """A measure of degrees. Causal maps have one entry per pair, so that degrees are counted block by block."""

    def __init__(
        self, ask: Ask, measure: Callable[[Tensor, Tensor], Tensor], thetas: Sequence[float], uniform: bool
    ) -> None:
        super().__init__(ask, thetas, uniform)
        self.measure = measure
        self.whole = not ask.stack.causal or ask.mask is None
        self.held: list[tuple[Tensor, Tensor]] = []
        self.degrees: Tensor | None = None
        if self.whole:
            check_size(ask, MOST_TOKENS)

    def start(self, layer: int, seen: object) -> None:
        """A layer begins."""
        self.held, self.degrees = [], None

    def block(self, block: Block, products: Tensor | None) -> None:
        """Count the edges of the block's rows, or keep them where a pair has two entries."""
        weights = self.weights(block)
        columns = torch.arange(block.n_keys, device=weights.device)
        later = columns > block.rows[:, None, :, None]
        if not self.whole and bool((block.visible & later).any()):  # a prefix that sees itself both ways
            check_size(self.ask, MOST_TOKENS)
            self.whole = True
        if self.whole:
            check_entries(self.ask, len(weights), weights.shape[1], weights.shape[-1])
            self.held.append((block.rows, weights))
            return
        earlier = columns < block.rows[:, None, :, None]
        if self.degrees is None:
            sizes = *weights.shape[:2], len(self.thetas), self.ask.batch.width
            self.degrees = torch.zeros(sizes, dtype=torch.long, device=weights.device)
        below = weights.masked_fill(~earlier, 0)
        index, edges = block.rows[:, None].expand(-1, below.shape[1], -1), torch.empty_like(below)
        for place, theta in enumerate(self.thetas):
            torch.gt(below, 2 * theta, out=edges)
            self.degrees[:, :, place, : block.n_keys] += column_sums(edges).long()
            self.degrees[:, :, place].scatter_add_(-1, index, edges.sum(-1).long())

    def finish(self, layer: int, seen: object) -> None:
        """The layer's curve."""
        if self.whole:
            pattern = whole_map(self.held)
            self.held = []
            self.degrees = torch.stack([edges_of(pattern, theta).sum(-1) for theta in self.thetas], dim=2)
        assert self.degrees is not None
        real = self.real(self.degrees.shape[-1], len(self.degrees)).to(self.degrees.device)
        self.found[layer] = self.measure(self.degrees, real[:, None, None])
        self.held, self.degrees = [], None


class GraphShape(_Thetas):
    """A measure of the whole graph, of maps that are held whole one layer at a time."""

    def __init__(
        self, ask: Ask, measure: Callable[[np.ndarray], float], thetas: Sequence[float], uniform: bool, most: int
    ) -> None:
        super().__init__(ask, thetas, uniform)
        check_size(ask, most)
        self.measure, self.held = measure, []

    def start(self, layer: int, seen: object) -> None:
        """A layer begins."""
        self.held: list[tuple[Tensor, Tensor]] = []

    def block(self, block: Block, products: Tensor | None) -> None:
        """Keep the rows."""
        check_entries(self.ask, len(block.whole), block.whole.shape[1], block.n_keys)
        self.held.append((block.rows, self.weights(block)))

    def finish(self, layer: int, seen: object) -> None:
        """The measure of each prompt's and head's graph among its real tokens."""
        pattern = whole_map(self.held)
        self.held = []
        real = self.real(pattern.shape[-1], len(pattern)).to(pattern.device)
        made = torch.empty(*pattern.shape[:2], len(self.thetas), dtype=torch.float64)
        for place, theta in enumerate(self.thetas):
            graphs = edges_of(pattern, theta)
            for prompt, member in enumerate(real):
                for head, graph in enumerate(graphs[prompt][:, member][:, :, member].cpu().numpy()):
                    made[prompt, head, place] = self.measure(graph)
        self.found[layer] = made


def whole_map(held: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "batch head token token"]:
    """The square map of blocks of rows with their columns; keys that no block has are 0."""
    rows = torch.cat([rows for rows, _ in held], dim=1)
    width = max(rows.shape[1], int(rows.max()) + 1, *(weights.shape[-1] for _, weights in held))
    made = held[0][1].new_zeros(*held[0][1].shape[:2], width, width)
    for place, weights in held:
        made[..., : weights.shape[-1]].scatter_(2, place[:, None, :, None].expand_as(weights), weights)
    return made


def check_entries(ask: Ask, prompts: int, heads: int, tokens: int) -> None:
    """Refuse batches whose maps of one layer are too large to be held whole.

    Raises:
        BadInput: with what to do.
    """
    if prompts * heads * tokens**2 > MOST_ENTRIES:
        fitting = MOST_ENTRIES // (heads * tokens**2)
        todo = f"batch_size={fitting}" if fitting else "shorter prompts: one alone is too long"
        raise BadInput(
            f"{ask.name}: this score holds a layer's whole maps, and {prompts} prompts x {heads} heads x {tokens}^2 "
            f"entries are more than {MOST_ENTRIES}. Use {todo}."
        )


def check_size(ask: Ask, most: int) -> None:
    """Refuse prompts whose maps are too large to be held whole, as far as their length is known (images' is not).

    Raises:
        BadInput: with what to do.
    """
    found = lengths(ask)
    if found is not None and max(found) > most:
        raise BadInput(
            f"{ask.name}: a prompt of {max(found)} tokens; this score holds a layer's whole maps, and takes at most "
            f"{most}. Give shorter prompts; hub_centralisation and star_likeness of causal stacks take any length."
        )
    if ask.mask is not None:
        check_entries(ask, len(ask.mask), max(map(ask.stack.n_heads, ask.layers)), ask.mask.shape[1])


def hub_centralisation(ask: Ask, thetas: Sequence[float] = THETAS, minus_uniform: bool = False) -> Degrees:
    """Degree centralisation of each head's graph, a curve over thetas; see :func:`freeman`.

    Args:
        ask: what is scored.
        thetas: thresholds of ``(A_ij + A_ji) / 2``; the default list is a third party's.
        minus_uniform: take off what a uniform row over the visible keys gives, which lifts early tokens.

    Raises:
        BadInput: thresholds outside [0, 1), cross-attention, or long prompts of a stack that is not causal.
    """
    return Degrees(ask, freeman, thetas, minus_uniform)


def star_likeness(ask: Ask, thetas: Sequence[float] = THETAS, minus_uniform: bool = False) -> Degrees:
    """Share of a head's edges that touch its hub, a curve over thetas; see :func:`star_share`; arguments as above."""
    return Degrees(ask, star_share, thetas, minus_uniform)


def fiedler_value(
    ask: Ask, thetas: Sequence[float] = THETAS, minus_uniform: bool = False, most_tokens: int = MOST_TOKENS
) -> GraphShape:
    """Second smallest Laplacian eigenvalue of a head's graph, a curve over thetas; see :func:`fiedler_of`.

    Args:
        ask: what is scored.
        thetas: thresholds of ``(A_ij + A_ji) / 2``; the default list is a third party's.
        minus_uniform: take off what a uniform row over the visible keys gives.
        most_tokens: longest prompt taken: a layer's whole maps are held, and the cost grows with its cube.

    Raises:
        BadInput: thresholds outside [0, 1), cross-attention, longer prompts, or more of them than can be held at once.
    """
    return GraphShape(ask, fiedler_of, thetas, minus_uniform, most_tokens)


def connected_parts(
    ask: Ask, thetas: Sequence[float] = THETAS, minus_uniform: bool = False, most_tokens: int = MOST_TOKENS
) -> GraphShape:
    """Betti-0, the number of connected parts of a head's graph, a curve over thetas; arguments as above."""
    return GraphShape(ask, components_of, thetas, minus_uniform, most_tokens)


def cycle_rank(
    ask: Ask, thetas: Sequence[float] = THETAS, minus_uniform: bool = False, most_tokens: int = MOST_TOKENS
) -> GraphShape:
    """The number of independent cycles of a head's graph, a curve over thetas; see :func:`cycle_rank_of`."""
    return GraphShape(ask, cycle_rank_of, thetas, minus_uniform, most_tokens)
