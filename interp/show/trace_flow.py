"""``FlowDiagram``: tokens by layers, with edges as wide as what reaches the chosen target through them."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from interp.errors import BadInput
from interp.files import write_whole
from interp.show.explorer import typed
from interp.show.theme import DARK, LIGHT
from interp.show.tokens import visible

MOST_TOKENS = 48
MOST_LAYERS = 64
MOST_FLOWS = 4_000_000  # bytes of edges of chosen targets
_RISES = ((6, 60), (12, 46), (MOST_LAYERS, 32))  # layers up to -> pixels between them, as the script draws them
_AROUND = 320  # pixels of controls, words and the names of the tokens
_TEMPLATES = Path(__file__).parent / "templates"
_SUM_SLACK = 1e-3  # by which a row of bf16 maps may exceed 1
_GRAPH = 3  # axes of [layer, query, key]


@dataclass(frozen=True, eq=False, repr=False)
class FlowDiagram:
    """A layered graph to look through: choose a target and a threshold; a ``Figure`` of a page, or alone in a notebook.

    Made by :func:`flow_diagram`.

    Attributes:
        tokens: text of the tokens that are shown.
        places: their positions in the prompt.
        n_tokens: tokens that the prompt has.
        transitions: ``[layer, query, key]`` shares that every target's edges are made of; None where edges are given.
        edges: position of a target -> ``[layer, query, key]`` its edges; empty with ``transitions``.
        target: the position that is chosen first.
        threshold: edges below it are hidden at first.
        value: what the number at an edge is.
        layer_names: of the layers, bottom to top, without the input.
    """

    tokens: tuple[str, ...]
    places: tuple[int, ...]
    n_tokens: int
    transitions: Float[np.ndarray, "layer query key"] | None
    edges: Mapping[int, Float[np.ndarray, "layer query key"]] = field(default_factory=dict)
    target: int = -1
    threshold: float = 0.02
    value: str = "share of the target"
    layer_names: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        """Layers with edges."""
        return len(self.transitions if self.transitions is not None else next(iter(self.edges.values())))

    def data(self) -> dict[str, Any]:
        """Everything as JSON can hold it; arrays as typed arrays in base64."""
        left_out = self.n_tokens - len(self.places)
        note = f"{left_out} of {self.n_tokens} tokens are left out: those that the least passes through."
        return {
            "tokens": [visible(token) for token in self.tokens],
            "places": list(self.places),
            "layers": self.n_layers,
            "layerNames": list(self.layer_names),
            "transitions": None if self.transitions is None else typed(self.transitions.astype(np.float32)),
            "edges": {str(target): typed(graph.astype(np.float32)) for target, graph in self.edges.items()},
            "target": self.target,
            "threshold": self.threshold,
            "value": self.value,
            "note": note if left_out else "",
            "light": {name: getattr(LIGHT, name) for name in ("page", "ink", "muted", "rule", "panel", "accent")},
        }

    def document(self) -> str:
        """A whole HTML page with nothing but the diagram; it opens offline."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
        )
        return environment.get_template("flow_page.html.j2").render(
            diagram={"id": "flow-1", "json": script_safe(json.dumps(self.data()))},
            alt=f"What reaches a target through {self.n_layers} layers of {len(self.tokens)} tokens",
            light=LIGHT,
            dark=DARK,
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """The path of the HTML file that now holds the diagram alone."""
        return write_whole(path, self.document())

    def _repr_html_(self) -> str:
        height = (
            300 + 60 * min(self.n_layers, 6) + 46 * min(max(self.n_layers - 6, 0), 6) + 32 * max(self.n_layers - 12, 0)
        )
        return (
            '<iframe title="flow diagram" sandbox="allow-scripts allow-downloads" '
            f'srcdoc="{html.escape(self.document())}" '
            f'style="width:100%;max-width:1000px;height:{height}px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        return f"FlowDiagram({len(self.tokens)} tokens, {self.n_layers} layers, target {self.target})"


def flow_diagram(
    transitions: Float[np.ndarray, "layer query key"],
    tokens: Sequence[str],
    *,
    target: int = -1,
    edges: Mapping[int, Float[np.ndarray, "layer query key"]] | None = None,
    threshold: float = 0.02,
    value: str = "",
    layer_names: Sequence[str] | None = None,
    most_tokens: int = MOST_TOKENS,
) -> FlowDiagram:
    """A diagram of the layers' transitions, tokens along the bottom; every edge shows what reaches a target through it.

    With ``A_l[i, j]`` the share that position i takes from position j at layer l (rows sum to 1 at most) and a target t
    at the top, the edge (l, i) -> (l - 1, j) carries ``r_l[i] A_l[i, j]``, where ``r_L`` is 1 at t alone and
    ``r_(l-1) = r_l A_l``: at the bottom stands the rollout's row of t (Abnar and Zuidema, 2020). Any node can be chosen
    as the target. With ``edges`` the numbers are drawn as they come, such as the flow on each edge of a maximum flow.

    Prompts longer than ``most_tokens`` keep the tokens that most passes through on the way to the first target; their
    numbers stay those of the whole prompt, and the diagram says how many are left out.

    Args:
        transitions: ``[layer, query, key]`` of one prompt, layer 0 at the bottom, without padding.
        tokens: text of the tokens.
        target: position of the first target, from the end if negative.
        edges: position of a target -> ``[layer, query, key]``; only these targets can be chosen then.
        threshold: edges below it are hidden at first; a slider changes it.
        value: what the number at an edge is.
        layer_names: names of the layers, bottom to top.
        most_tokens: how many tokens are shown, at most 48.

    Raises:
        BadInput: shapes that do not fit, negative or infinite numbers, rows that sum to more than 1, a target outside,
            or more than a page holds.

    Example:
        >>> graph = np.array([[[1.0, 0.0], [0.5, 0.5]]])
        >>> flow_diagram(graph, ["a", "b"]).target
        1
    """
    graph = np.asarray(transitions, dtype=np.float64)
    place = _checked(graph, tokens, target, most_tokens)
    given = {_inside(where, len(tokens)): np.asarray(one, dtype=np.float64) for where, one in (edges or {}).items()}
    for where, one in given.items():
        _check_numbers(one, graph.shape, f"edges of target {where}")
    if given and place not in given:
        raise BadInput(f"flow_diagram: target {place} has no edges; those given are of {sorted(given)}.")
    if not given:
        _check_numbers(graph, graph.shape, "transitions")
        if graph.sum(-1).max(initial=0.0) > 1 + _SUM_SLACK:
            raise BadInput(
                f"flow_diagram: a row of transitions sums to {graph.sum(-1).max():.3f}; expected shares that sum to 1 "
                "at most. Give (A + I) / 2 of the attention, or edges= for numbers that are no shares."
            )
    names = tuple(str(name) for name in (layer_names or [f"layer {n}" for n in range(len(graph))]))
    if len(names) != len(graph):
        raise BadInput(f"flow_diagram: {len(names)} layer_names for {len(graph)} layers.")
    kept = list(range(len(tokens)))
    if len(tokens) > most_tokens:
        given = given or {place: edges_to(graph, place)}
        kept = _most_used(given[place], place, most_tokens)
    shown = {where: one[:, kept][:, :, kept] for where, one in given.items() if where in kept}
    if sum(one.size for one in shown.values()) * 4 > MOST_FLOWS:
        raise BadInput(f"flow_diagram: edges of {len(shown)} targets are more than a page holds; choose fewer targets.")
    return FlowDiagram(
        tokens=tuple(tokens[where] for where in kept),
        places=tuple(kept),
        n_tokens=len(tokens),
        transitions=None if shown else graph,
        edges=shown,
        target=place,
        threshold=float(threshold),
        value=value or ("flow" if edges else "share of the target"),
        layer_names=names,
    )


def edges_to(transitions: Float[np.ndarray, "layer query key"], target: int) -> Float[np.ndarray, "layer query key"]:
    """``[layer, query, key]`` what reaches a target of the top layer through each edge.

    Example:
        >>> edges_to(np.array([[[1.0, 0.0], [0.5, 0.5]]]), 1).tolist()
        [[[0.0, 0.0], [0.5, 0.5]]]
    """
    made = np.zeros_like(transitions, dtype=np.float64)
    reach = np.zeros(transitions.shape[1])
    reach[target] = 1.0
    for layer in reversed(range(len(transitions))):
        made[layer] = reach[:, None] * transitions[layer]
        reach = made[layer].sum(0)
    return made


def script_safe(text: str) -> Markup:
    """JSON that cannot close the script element it stands in."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _checked(graph: np.ndarray, tokens: Sequence[str], target: int, most_tokens: int) -> int:
    """The target's position, counted from the front."""
    if graph.ndim != _GRAPH or graph.shape[1:] != (len(tokens), len(tokens)) or not len(graph):
        raise BadInput(
            f"flow_diagram: transitions came as {list(graph.shape)}; {len(tokens)} tokens need [layer, query, key] = "
            f"[layers, {len(tokens)}, {len(tokens)}] with a layer at least."
        )
    if len(graph) > MOST_LAYERS:
        raise BadInput(f"flow_diagram: {len(graph)} layers, at most {MOST_LAYERS} are drawn; give the top ones.")
    if not 1 <= most_tokens <= MOST_TOKENS:
        raise BadInput(f"flow_diagram: most_tokens={most_tokens}; a page holds 1 to {MOST_TOKENS}.")
    return _inside(target, len(tokens))


def _inside(target: int, size: int) -> int:
    if not -size <= target < size:
        raise BadInput(f"flow_diagram: there is no target {target}; the prompt has {size} tokens.")
    return target % size


def _check_numbers(graph: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if graph.shape != shape:
        raise BadInput(f"flow_diagram: {what} came as {list(graph.shape)}; expected {list(shape)}.")
    if not np.isfinite(graph).all() or graph.min(initial=0.0) < 0:
        raise BadInput(
            f"flow_diagram: {what} hold numbers that are negative, infinite or NaN; expected shares or flows without "
            "padding."
        )


def _most_used(edges: np.ndarray, target: int, most: int) -> list[int]:
    """Positions that most passes through, in their order; the target is among them."""
    used = edges.sum((0, 1)) + edges.sum((0, 2))
    used[target] = np.inf
    return sorted(np.argsort(-used, kind="stable")[:most].tolist())
