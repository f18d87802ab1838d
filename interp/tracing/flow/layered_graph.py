"""``LayeredGraph``: the steps of a model's layers as the edges of a graph that flows go down through."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class LayeredGraph:
    """Levels 0 to L of nodes; an edge from node a of level l to node b of level l - 1 holds ``steps[l - 1, a, b]``.

    Attributes:
        steps: the layers' steps, from the first layer on: capacities of the edges.
    """

    steps: Float[np.ndarray, "layer query key"]

    @property
    def n_layers(self) -> int:
        """How many layers; there is one level more."""
        return self.steps.shape[0]

    @property
    def length(self) -> int:
        """Nodes of a level."""
        return self.steps.shape[1]

    @cached_property
    def causal(self) -> bool:
        """Whether no edge leads to a later token; a flow from i to j then stays among ``j .. i``."""
        return not any(np.triu(step, 1).any() for step in self.steps)

    @cached_property
    def reach(self) -> Bool[np.ndarray, "query key"]:
        """Which tokens at the bottom some path from a token at the top leads to."""
        found = np.eye(self.length, dtype=bool)
        for step in self.steps:
            found = (step > 0).astype(np.float32) @ found.astype(np.float32) > 0
        return found

    def windows(self, pairs: Pairs) -> Bool[np.ndarray, "pair node"]:
        """Nodes of a level that a flow of each pair can use."""
        nodes = np.arange(self.length)
        if not self.causal:
            return np.ones((len(pairs), self.length), dtype=bool)
        return (nodes >= pairs.sources[:, None]) & (nodes <= pairs.targets[:, None])

    @cached_property
    def upside_down(self) -> LayeredGraph:
        """Every edge turned round, sources at the top; token k is called T - 1 - k, so that causal stays causal.

        A flow from i to j is as large as one from T - 1 - j to T - 1 - i here.
        """
        return LayeredGraph(np.ascontiguousarray(self.steps[::-1].swapaxes(1, 2)[:, ::-1, ::-1]))

    def below(self, n_layers: int) -> LayeredGraph:
        """The graph of the first layers alone."""
        return LayeredGraph(self.steps[:n_layers])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of tokens between which a flow is wanted.

    Attributes:
        targets: node at the top of each pair.
        sources: node at the bottom of each pair.
    """

    targets: Int[np.ndarray, " pair"]
    sources: Int[np.ndarray, " pair"]

    def __len__(self) -> int:
        return len(self.targets)

    def upside_down(self, length: int) -> Pairs:
        """The pairs in the graph turned upside down."""
        return Pairs(length - 1 - self.sources, length - 1 - self.targets)

    def __getitem__(self, which: slice | np.ndarray) -> Pairs:
        return Pairs(self.targets[which], self.sources[which])
