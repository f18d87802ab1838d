"""``trace_diagram``: the layers of one prompt as a diagram, with what reaches a target through every edge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from interp.edits.groups import Group
from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.scores.dropping import Sinks, dropped_columns
from interp.tracing.ask import TraceAsk
from interp.tracing.fusion import Heads
from interp.tracing.held_stages import held_tower
from interp.tracing.stages import Stage
from interp.tracing.trace import target_columns
from interp.tracing.transitions import Missing

if TYPE_CHECKING:
    from interp.show.trace_flow import FlowDiagram

_LARGEST = 2**31 - 1  # capacities of the solver are integers of 32 bits


def trace_diagram(
    model: Model,
    batch: Batch,
    *,
    prompt: int = 0,
    target: Group = None,
    source: int | None = None,
    stack: str | None = None,
    heads: Heads = "mean",
    residual: Any = 0.5,
    missing: Missing | None = None,
    exclude_sinks: Sinks = None,
    threshold: float = 0.02,
) -> FlowDiagram:
    """A diagram of the layers of one prompt: tokens along the bottom, edges as wide as what they carry to the target.

    Without ``source`` an edge carries its share of the rollout's row of the target, and any node can be made the target
    in the diagram; what arrives at the bottom is ``interp.trace(model, batch, "rollout")``. With ``source`` it carries
    its part of a maximum flow from the target to that source (Abnar and Zuidema, 2020): all edges into the source sum
    to the flow's value. There may be several maximum flows; one of them is drawn, from which edges that only go round
    are absent since layers lead one way.

    Args:
        model: the handle.
        batch: the prompts.
        prompt: which of them; its padding is left out.
        target: the first target, as one row of an address; None for where the answer is read.
        source: column of the source whose maximum flow is drawn; None for the rollout.
        stack: whose tokens; the default stack for None.
        heads, residual, missing: how the steps are made; see :func:`interp.rollout`.
        exclude_sinks: key columns that are left out of every map; see :func:`interp.score`.
        threshold: edges below it are hidden at first.

    Raises:
        BadInput: a prompt, target or source that is not there, or several targets.
        Unsupported: a decoder with cross-attention, whose layers are no single graph of one text.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]))
        >>> trace_diagram(model, batch)
        FlowDiagram(5 tokens, 2 layers, target 4)
    """
    from interp.show.trace_flow import flow_diagram

    place = model.stack(stack)
    columns, _ = target_columns(batch, place, target)
    if not 0 <= prompt < len(batch):
        raise BadInput(f"trace_diagram: there is no prompt {prompt}; the batch has {len(batch)}.")
    if columns.shape[1] != 1:
        raise BadInput(f"trace_diagram: {columns.shape[1]} targets came; give one, and choose others by a click.")
    if place.cross:
        raise Unsupported("trace_diagram: cross-attention alone is no graph of layers; give stack='encoder'.")
    dropped = dropped_columns(exclude_sinks, batch, place)
    ask = TraceAsk("trace_diagram", model, batch, place, columns, dropped=dropped)
    mask = ask.mask
    real = None if mask is None else mask[prompt].cpu().numpy()
    if source is not None and real is not None and not (0 <= source < len(real) and real[source]):
        raise BadInput(f"trace_diagram: there is no source {source}; prompt {prompt} has {np.flatnonzero(real)}.")
    tower = held_tower(ask, heads=heads, residual=residual, missing=missing).tower
    if tower.n_encoder:
        raise Unsupported("trace_diagram: this decoder reads an encoder; give stack='encoder', or use interp.trace.")
    nodes = np.arange(tower.n_tokens) if real is None else np.flatnonzero(real)
    graph = np.stack([_dense(stage, prompt)[np.ix_(nodes, nodes)] for stage in tower.stages])
    here = int(np.searchsorted(nodes, int(columns[prompt, 0])))
    edges = None if source is None else {here: edge_flow(graph, here, int(np.searchsorted(nodes, source)))}
    return flow_diagram(
        graph,
        _words(batch, prompt, place.name, nodes),
        target=here,
        edges=edges,
        threshold=threshold,
        layer_names=[f"layer {stage.layer}" for stage in tower.stages],
    )


def edge_flow(
    transitions: Float[np.ndarray, "layer query key"], target: int, source: int
) -> Float[np.ndarray, "layer query key"]:
    """``[layer, query, key]`` what each edge carries in a maximum flow from a target at the top to a source below.

    Capacities are rounded down to whole parts of ``1 / (2³¹ - 1 - n)`` for n tokens, so that the flow's value lies
    below the exact one by a part per edge of the smallest cut at most.

    Args:
        transitions: shares of each layer, the bottom one first.
        target: position at the top.
        source: position at the bottom.

    Example:
        >>> graph = np.array([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]])
        >>> edge_flow(graph, 1, 0)[0].sum(0).round(6).tolist()
        [0.75, 0.0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    n_layers, length, _ = transitions.shape
    parts = _LARGEST - length
    layer, query, key = np.nonzero(transitions)
    above, below = (layer + 1) * length + query, layer * length + key
    capacity = np.floor(np.minimum(transitions[layer, query, key], 1.0) * parts).astype(np.int32)
    size = (n_layers + 1) * length
    network = coo_array((capacity, (above, below)), shape=(size, size)).tocsr()
    found = maximum_flow(network, n_layers * length + target, source).flow.tocoo()
    carried = np.zeros_like(transitions, dtype=np.float64)
    down = found.data > 0
    rows, columns = found.row[down], found.col[down]
    carried[columns // length, rows % length, columns % length] = found.data[down] / parts
    return carried


def _dense(stage: Stage, prompt: int) -> Float[np.ndarray, "query key"]:
    parts = stage.transitions(torch.arange(stage.shape[2]))
    return torch.cat([part.dense(stage.shape[3])[prompt].cpu().double() for part in parts]).numpy()


def _words(batch: Batch, prompt: int, stack: str, nodes: np.ndarray) -> list[str]:
    if stack == batch.default_stack and batch.tokens:
        return list(batch.tokens[prompt])
    return [str(node) for node in nodes]
