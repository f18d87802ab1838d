"""``plot_trace``: the views of one trace, and the text of several."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp.errors import BadInput
from interp.names import unknown
from interp.show.heatmap import grid_heatmap
from interp.show.tokens import visible
from interp.show.trace_image import ImageOverlay, image_overlay
from interp.show.trace_layers import layer_curves, mass_by_layer
from interp.show.trace_text import TokenHeatmap, token_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.tracing.result import Trace

Kind = Literal["tokens", "heatmap", "layers", "image"]
MOST_ROWS, MOST_COLUMNS = 96, 96  # of a heatmap of targets by sources
_STRONGEST_SOURCES = 5  # curves over layers where no sources are named
_LONGEST_LABEL = 24
_LETTER = 6.5  # pixels of a letter at an axis


def plot_trace(
    trace: Trace, kind: Kind | str = "tokens", *, prompt: int = 0, target: int = -1, **options: Any
) -> TokenHeatmap | ImageOverlay | go.Figure:
    """One view of a trace.

    Args:
        trace: what to show.
        kind: ``"tokens"`` the text, coloured; ``"heatmap"`` targets by sources; ``"layers"`` what the target owes to
            chosen sources at the top of each layer, mean and interval over prompts where it is of all of them;
            ``"image"`` patches over their image.
        prompt: which prompt.
        target: which target, by its place.
        **options: of that view. tokens: ``layer``, ``limits``, ``signed``. heatmap: ``layer``, ``title``. layers:
            ``sources`` (name -> columns), ``prompts="all"``, ``title``. image: ``image`` and ``grid``, both needed (a
            ``PatchGrid`` or (rows, columns) or (rows, columns, skip)), ``columns`` (of the patches among the sources,
            as in a prompt with an image; of this prompt, or ``[prompt, patch]``), ``layer``, ``region``, ``between``,
            ``limits``, ``signed``.

    Raises:
        BadInput: an unknown view or option, or what the view needs is missing.
        BadAddress: a prompt, target or layer that is not there.
    """
    views: Mapping[str, Callable[..., Any]] = {
        "tokens": _tokens,
        "heatmap": _heatmap,
        "layers": _layers,
        "image": _image,
    }
    if kind not in get_args(Kind):
        raise BadInput(unknown(kind, get_args(Kind), "view of a trace (kind=)"))
    view = views[kind]
    known = list(inspect.signature(view).parameters)[3:]
    for name in options:
        if name not in known:
            raise BadInput(unknown(name, known, f"option of the view {kind!r}"))
    trace.row(prompt, target)  # refuses what is not there
    return view(trace, prompt, target, **options)


def trace_tokens(
    traces: Mapping[str, Trace],
    *,
    prompt: int = 0,
    target: int = -1,
    layer: int | None = None,
    limits: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    signed: bool | None = None,
) -> TokenHeatmap:
    """The text of one prompt, once per trace, without padding; the target is outlined.

    Args:
        traces: name -> trace, all of the same prompts.
        prompt: which prompt.
        target: which target, by its place.
        layer: the trace at the top of the n-th layer; the whole trace for None.
        limits: ends of the colours of all traces, or of each.
        signed: True colours negative numbers apart; None follows each trace.

    Raises:
        BadInput: no traces, or traces of other tokens.
    """
    if not traces:
        raise BadInput("trace_tokens: no traces were given; expected name -> trace.")
    first = next(iter(traces.values()))
    columns, tokens = real_tokens(first, prompt)
    rows, ends = {}, dict(limits) if isinstance(limits, Mapping) else {}
    for name, trace in traces.items():
        if real_tokens(trace, prompt)[1] != tokens:
            raise BadInput(f"trace_tokens: {name!r} is of other tokens; show traces of the same prompts.")
        rows[name] = trace.row(prompt, target, layer=layer)[columns]
        if name not in ends and not isinstance(limits, Mapping):
            ends[name] = limits or _ends(rows[name], trace.signed if signed is None else signed)
    marked = [place for place, column in enumerate(columns) if column == _column(first, prompt, target)]
    return token_heatmap(tokens, rows, limits=ends, marked=marked, parts=_parts(first, columns))


def real_tokens(trace: Trace, prompt: int) -> tuple[np.ndarray, list[str]]:
    """Columns of a prompt's real sources, and their text."""
    columns = np.flatnonzero(trace.mask[prompt])
    return columns, [trace.sources[prompt][column] for column in columns]


def _parts(trace: Trace, columns: np.ndarray) -> dict[int, str]:
    """Where each stack's tokens begin among a prompt's real sources, where they are of several."""
    counts = [number for _, number in trace.source_stacks]
    starts = np.cumsum([0, *counts])[: len(counts)]
    places = np.searchsorted(columns, starts).tolist()
    named = {place: name for place, (name, _) in zip(places, trace.source_stacks, strict=True)}
    return {place: name for place, name in named.items() if place < len(columns)}


def _column(trace: Trace, prompt: int, target: int) -> int | None:
    """The source column that the target is, None where sources are another stack's."""
    here, before = int(trace.targets[prompt, target]), 0
    if not trace.source_stacks:
        return None if "cross" in trace.stack else here
    for name, number in trace.source_stacks:
        if name == trace.stack:
            return before + here
        before += number
    return None


def _ends(numbers: np.ndarray, signed: bool) -> tuple[float, float]:
    from interp.show.heatmap import colour_limits

    return colour_limits(numbers, signed or None)


def _tokens(
    trace: Trace,
    prompt: int,
    target: int,
    layer: int | None = None,
    limits: tuple[float, float] | None = None,
    signed: bool | None = None,
) -> TokenHeatmap:
    return trace_tokens({trace.method: trace}, prompt=prompt, target=target, layer=layer, limits=limits, signed=signed)


def _heatmap(trace: Trace, prompt: int, target: int, layer: int | None = None, title: str = "") -> go.Figure:
    """All targets of the prompt by its sources; ``target`` stays what it is for the other views."""
    columns, tokens = real_tokens(trace, prompt)
    rows = [n for n in range(trace.values.shape[1]) if np.isfinite(trace.values[prompt, n]).any()]
    if len(rows) > MOST_ROWS or len(columns) > MOST_COLUMNS:
        raise BadInput(
            f"Trace.plot: {len(rows)} targets by {len(columns)} sources are too many for a heatmap, which takes "
            f"{MOST_ROWS} by {MOST_COLUMNS}; choose targets, or use kind='tokens'."
        )
    values = np.stack([trace.row(prompt, n, layer=layer)[columns] for n in rows])
    places = list(zip(columns, tokens, strict=True))
    figure = grid_heatmap(
        values,
        rows=[_short(trace.target_words[prompt][n]) for n in rows],
        columns=[_short(token) for token in tokens],
        labels=[[f"{_named(trace, prompt, n)}, source {c} {visible(t)}" for c, t in places] for n in rows],
        signed=trace.signed or None,
        name=trace.method,
        title=title,
    )
    figure.update_xaxes(title_text="source", tickfont={"size": 10})
    figure.update_yaxes(title_text="target", tickfont={"size": 10})
    return with_named_axes(figure, [_short(trace.target_words[prompt][n]) for n in rows], [_short(t) for t in tokens])


def with_named_axes(
    figure: go.Figure, rows: Sequence[str], columns: Sequence[str], *, least_cell: float = 0
) -> go.Figure:
    """A grid heatmap with upright column names and room for names along both axes.

    Args:
        figure: of ``grid_heatmap``, whose size counts its cells alone.
        rows, columns: the names.
        least_cell: pixels of a cell at least.
    """
    wide, high = (round(_LETTER * max((len(name) for name in names), default=0)) for names in (rows, columns))
    layout: Any = figure.layout
    edges: list[int] = layout["meta"]["edges"]
    inner = [int(layout[side]) - edge for side, edge in zip(("width", "height"), edges, strict=True)]
    counts = (max(len(columns), 1), max(len(rows), 1))
    inner = [max(size, round(least_cell * count)) for size, count in zip(inner, counts, strict=True)]
    figure.update_xaxes(tickangle=-90)
    return figure.update_layout(
        width=inner[0] + edges[0] + wide,
        height=inner[1] + edges[1] + high,
        meta={"edges": [edges[0] + wide, edges[1] + high]},
    )


def _layers(
    trace: Trace,
    prompt: int,
    target: int,
    sources: Mapping[str, Sequence[int]] | None = None,
    prompts: str | None = None,
    title: str = "",
) -> go.Figure:
    if trace.layers is None:
        raise BadInput(
            f"Trace.plot: this trace by {trace.method!r} holds no layers; ask for them with each_layer=True."
        )
    if prompts not in (None, "all"):
        raise BadInput(f"Trace.plot: prompts={prompts!r}; expected 'all', or leave it out for one prompt.")
    if sources is None:
        if prompts is not None:
            raise BadInput("Trace.plot: name the sources, as in sources={'subject': [3]}, to average over prompts.")
        top = trace.top(_STRONGEST_SOURCES, prompt=prompt, target=target)
        pairs = zip(top["token"], top["source"], strict=True)
        sources = {f"{visible(str(token))} ({source})": [int(source)] for token, source in pairs}
    width = trace.values.shape[-1]
    outside = {name: list(where) for name, where in sources.items() if any(not 0 <= c < width for c in where)}
    if outside:
        raise BadInput(f"Trace.plot: sources {outside}, but the trace has columns 0 to {width - 1}.")
    mass = {name: mass_by_layer(trace.layers, list(where), target) for name, where in sources.items()}
    curves = mass if prompts == "all" else {name: curve[prompt] for name, curve in mass.items()}
    return layer_curves(curves, value=f"{trace.method}, sum", title=title)


def _image(
    trace: Trace,
    prompt: int,
    target: int,
    image: np.ndarray | None = None,
    grid: Any = None,
    columns: Sequence[int] | np.ndarray | None = None,
    layer: int | None = None,
    region: np.ndarray | None = None,
    between: str = "nearest",
    limits: tuple[float, float] | None = None,
    signed: bool | None = None,
) -> ImageOverlay:
    if image is None or grid is None:
        raise BadInput(
            "Trace.plot: the view 'image' needs image= [row, column, channel] and grid=, what interp.patch_grid(model, "
            "batch) returns or (rows, columns, skip)."
        )
    if columns is not None and np.ndim(columns) > 1:  # [prompt, patch], as patch_columns gives them
        if len(columns) != len(trace):
            raise BadInput(f"Trace.plot: columns of {len(columns)} prompts came; the trace has {len(trace)}.")
        columns = np.asarray(columns)[prompt]
    numbers = patches_of(trace.row(prompt, target, layer=layer), grid, columns)
    return image_overlay(
        image,
        {trace.method: numbers},
        region=region,
        between=between,
        limits=limits,
        signed=signed if signed is not None else trace.signed or None,
    )


def patches_of(row: np.ndarray, grid: Any, columns: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """``[patch row, patch column]`` the numbers of a trace's row that belong to the patches of an image.

    Args:
        row: ``[source]`` one target's numbers.
        grid: a ``PatchGrid``, or (rows, columns), or (rows, columns, skip) with the number of first positions that are
            no patch.
        columns: the patches' own columns among the sources, row by row of the image, where other tokens stand beside
            them, as in a prompt with an image.

    Raises:
        BadInput: the grid and the sources do not fit.

    Example:
        >>> patches_of(np.array([0.5, 0.1, 0.2, 0.3, 0.4]), (2, 2, 1)).tolist()
        [[0.1, 0.2], [0.3, 0.4]]
    """
    if hasattr(grid, "order"):
        rows, across, order = grid.rows, grid.columns, np.asarray(grid.order)
        positions = grid.positions
    else:
        rows, across, *rest = grid
        order = np.arange(rows * across) + (int(rest[0]) if rest else 0)
        positions = len(order) + (int(rest[0]) if rest else 0)
    if columns is not None:
        order = np.asarray(columns, dtype=int)
        if len(order) != rows * across:
            raise BadInput(f"The grid has {rows} x {across} patches, but {len(order)} columns were given for them.")
    elif positions != len(row):
        raise BadInput(
            f"The grid has {positions} positions and the trace {len(row)} sources; give columns=, the patches' own "
            "columns, where other tokens stand beside them."
        )
    if len(order) and not (0 <= order.min() and order.max() < len(row)):
        raise BadInput(f"Columns of patches run from {order.min()} to {order.max()}; the trace has {len(row)} sources.")
    return np.asarray(row, dtype=float)[order].reshape(rows, across)


def _named(trace: Trace, prompt: int, target: int) -> str:
    return f"target {trace.targets[prompt, target]} {visible(trace.target_words[prompt][target])}"


def _short(token: str) -> str:
    shown = visible(token)
    return shown if len(shown) <= _LONGEST_LABEL else shown[: _LONGEST_LABEL - 1] + "\u2026"
