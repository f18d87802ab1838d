"""Attention by the distance of two tokens in a graph: mazes, syntax trees, family trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.scores.ask import Ask, Measured
from interp.scores.dropping import Sinks, dropped_columns
from interp.scores.groups.groups import members_of
from interp.scores.groups.relation_table import RelationAttention, gathered
from interp.scores.groups.relations import IGNORED, Relation, RelationSums, mean_by_class
from interp.scores.long_context.chosen_rows import columns_with_filler

SWAPS_PER_EDGE = 10
FURTHEST = 15  # distances with a bin of their own, unless asked otherwise


def graph_distances(adjacency: Bool[Tensor, "*batch node node"]) -> Int[Tensor, "*batch node node"]:
    """``[node, node]`` (or ``[batch, node, node]``) steps of the shortest path; -1 where there is none.

    Args:
        adjacency: True between neighbours; made symmetric.

    Example:
        >>> graph_distances(torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()).tolist()
        [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    """
    from scipy.sparse.csgraph import shortest_path

    if adjacency.ndim == 3:  # noqa: PLR2004 - batch, node, node
        return torch.stack([graph_distances(own) for own in adjacency])
    steps = shortest_path(adjacency.cpu().numpy().astype(float), directed=False, unweighted=True)
    return torch.from_numpy(np.where(np.isfinite(steps), steps, -1)).long()


def rewired(
    adjacency: Bool[Tensor, "node node"], generator: torch.Generator, *, swaps_per_edge: int = SWAPS_PER_EDGE
) -> Bool[Tensor, "node node"]:
    """A random graph in which every node has as many neighbours as before.

    Pairs of edges a-b, c-d become a-d, c-b again and again, where neither is there already (Maslov and Sneppen, 2002).

    Args:
        adjacency: True between neighbours; made symmetric.
        generator: of the draws.
        swaps_per_edge: attempts, in multiples of the number of edges.
    """
    made = adjacency | adjacency.T
    made.fill_diagonal_(False)
    edges = made.triu().nonzero().tolist()
    if len(edges) < 2:  # noqa: PLR2004 - a pair of edges
        return made
    for _ in range(swaps_per_edge * len(edges)):
        one, two = torch.randperm(len(edges), generator=generator)[:2].tolist()
        (a, b), (c, d) = edges[one], edges[two]
        if bool(torch.randint(0, 2, (1,), generator=generator)):
            c, d = d, c
        if len({a, b, c, d}) < 4 or bool(made[a, d]) or bool(made[c, b]):  # noqa: PLR2004 - four nodes
            continue
        for first, second, there in ((a, b, False), (c, d, False), (a, d, True), (c, b, True)):
            made[first, second] = made[second, first] = there
        edges[one], edges[two] = [a, d], [c, b]
    return made


def distance_relation(
    nodes: Int[Tensor, "batch pos"], distances: Int[Tensor, "#batch node node"], furthest: int
) -> Relation:
    """Classes ``"0"``, ``"1"``, ... ``str(furthest)`` and ``"farther"`` of the distance of two tokens' nodes.

    Args:
        nodes: the node of each token, -1 for none.
        distances: steps between nodes, -1 where there is no path.
        furthest: the largest distance with a class of its own.
    """
    table = torch.where((distances < 0) | (distances > furthest), furthest + 1, distances)
    table = table.expand(len(nodes), -1, -1)

    def of_rows(rows: Tensor) -> Tensor:
        own = nodes.gather(1, rows)
        prompt = torch.arange(len(nodes), device=nodes.device)[:, None, None]
        found = table[prompt, own.clamp(min=0)[..., None], nodes.clamp(min=0)[:, None, :]]
        known = (own >= 0)[..., None] & (nodes >= 0)[:, None, :]
        return found.masked_fill(~known, IGNORED)

    return Relation((*map(str, range(furthest + 1)), "farther"), of_rows)


class GraphProfile(RelationSums):
    """Mass per row, or mean attention per pair, at each distance; per prompt."""

    def __init__(self, ask: Ask, relation: Relation, queries: Tensor | None, *, density: bool) -> None:
        super().__init__(ask, [relation], queries)
        self.density = density
        self.rows = None if queries is None else columns_with_filler(queries)

    def measured(self) -> Measured:
        """By layer."""
        made = {}
        for layer, sums in self.sums.items():
            if self.density:
                made[layer] = mean_by_class(sums[0], self.counts[layer][0])
            else:
                made[layer] = sums[0].sum(-2) / self.numbers[layer][0].unsqueeze(-1)
        return Measured(made, bins=self.classes)


def graph_distance(
    ask: Ask,
    *,
    nodes: Any = None,
    adjacency: Any = None,
    distances: Any = None,
    furthest: int | None = None,
    queries: Any = None,
    density: bool = False,
) -> GraphProfile:
    """Attention by the number of steps between two tokens' nodes in a graph, in [0, 1] (Ivanitskiy et al., 2023).

    The mass of bin d is ``mean_i sum_{j: dist(i,j) = d} A_ij`` over rows with a node: copies of a node add up. The
    density is ``sum A_ij / #{(i, j)}``, for bins hold unequal numbers of tokens.

    Args:
        ask: what is scored.
        nodes: ``[batch, pos]`` the node of each token, -1 for none.
        adjacency: ``[node, node]`` or ``[batch, node, node]`` True between neighbours; or
        distances: whole numbers of the same shape, steps between nodes, -1 where there is no path.
        furthest: the largest distance with a bin of its own; 15, or the longest path that so many nodes can have, for
            None.
        queries: the query rows that count (a path's present token); all with a node for None.
        density: mean attention per pair in place of mass per row.

    Raises:
        BadInput: a shape that does not fit, or a node that the graph does not have.
        Unsupported: cross-attention, whose keys are other tokens than its rows.
    """
    nodes, steps, _ = _graph(ask, nodes, adjacency, distances)
    most = _furthest(ask, steps, furthest)
    rows = None if queries is None else members_of(ask, queries, "queries", keys=False)[1].any(0)
    return GraphProfile(ask, distance_relation(nodes, steps, most), rows, density=density)


def attention_vs_distance(
    model: Model,
    batch: Batch,
    nodes: Int[Tensor, "batch pos"],
    *,
    adjacency: Any = None,
    distances: Any = None,
    furthest: int | None = None,
    queries: Any = None,
    draws: int = 0,
    seed: int = 0,
    stack: str | None = None,
    exclude_sinks: Sinks = None,
) -> RelationAttention:
    """Attention by graph distance, all prompts pooled: ``.mass`` per row, ``.means`` per pair, with random graphs.

    Args:
        model: the handle.
        batch: the prompts.
        nodes, adjacency, distances, furthest, queries: as in :func:`graph_distance`.
        draws: so many random graphs in which every node has as many neighbours as in ``adjacency``, as the null of
            ``.p("1", "2")``.
        seed: of the random graphs.
        stack: whose heads; the default stack for None.
        exclude_sinks: key columns to leave out; see :func:`interp.scores.dropping.dropped_columns`.

    The adjacency score of "Structured World Representations in Maze-Solving Transformers" (2023) is
    ``mass[..., 1] / mass.sum(-1)``.

    Raises:
        BadInput: shapes that do not fit, or draws without ``adjacency``.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5]]))
        >>> chain = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
        >>> attention_vs_distance(model, batch, torch.tensor([[-1, 0, 1, 2]]), adjacency=chain).classes
        ('0', '1', '2', 'farther')
    """
    place = model.stack(stack)
    ask = Ask("attention_vs_distance", model, batch, place, dropped_columns(exclude_sinks, batch, place), seed)
    nodes, steps, near = _graph(ask, nodes, adjacency, distances)
    most = _furthest(ask, steps, furthest)
    if draws < 0 or (draws and near is None):
        raise BadInput(
            f"attention_vs_distance: draws={draws} rewires a graph; give adjacency=, and draws of 0 or more."
        )
    relations = [distance_relation(nodes, steps, most)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        assert near is not None
        drawn = torch.stack([graph_distances(rewired(own.cpu(), generator)) for own in near]).to(nodes.device)
        relations.append(distance_relation(nodes, drawn, most))
    return gathered(ask, relations, queries, None)


def _graph(ask: Ask, nodes: Any, adjacency: Any, distances: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    if ask.stack.cross:
        raise Unsupported(
            f"{ask.name}: both ends of a pair are nodes of one graph, and the keys of stack {ask.stack.name!r} are the "
            "tokens of another stack; score a stack's attention to its own tokens."
        )
    mask = ask.mask
    shape = None if mask is None else tuple(mask.shape)
    if not isinstance(nodes, Tensor) or nodes.is_floating_point() or tuple(nodes.shape) != shape or mask is None:
        came = list(nodes.shape) if isinstance(nodes, Tensor) else nodes
        raise BadInput(
            f"{ask.name}: nodes= {came}; expected whole numbers {list(shape or ())} [batch, pos], -1 for none."
        )
    if (adjacency is None) == (distances is None):
        raise BadInput(f"{ask.name}: give adjacency= or distances=, one of them.")
    given = torch.as_tensor(adjacency if distances is None else distances)
    square = given.ndim in (2, 3) and given.shape[-1] == given.shape[-2]
    if not square or given.is_floating_point() or (given.ndim == 3 and given.shape[0] not in (1, len(mask))):  # noqa: PLR2004
        raise BadInput(
            f"{ask.name}: a graph of {given.dtype} {list(given.shape)}; expected [node, node] or "
            f"[batch={len(mask)}, node, node] (truth values, or whole numbers of steps)."
        )
    device = mask.device
    placed = nodes.long().to(device).masked_fill(~mask, IGNORED)
    if int(placed.max()) >= given.shape[-1] or int(placed.min()) < IGNORED:
        raise BadInput(
            f"{ask.name}: nodes {int(placed.min())} to {int(placed.max())}; the graph has 0 to {given.shape[-1] - 1}, "
            "and -1 means none."
        )
    whole = given.reshape(-1, *given.shape[-2:]).to(device)
    near = whole.bool() if distances is None else None
    steps = graph_distances(near).to(device) if near is not None else whole.long()
    return placed, steps, near


def _furthest(ask: Ask, steps: Tensor, furthest: int | None) -> int:
    if furthest is None:
        return min(steps.shape[-1] - 1, FURTHEST)
    if isinstance(furthest, bool) or not isinstance(furthest, int) or furthest < 0:
        raise BadInput(f"{ask.name}: furthest={furthest!r}; expected the largest distance with a bin of its own.")
    return furthest
