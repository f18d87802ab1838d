"""Colours and the plotly template of every figure, in a light and a dark version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'

# readable on white and on near-black alike, in the order in which lines and bars take them
PALETTE = ("#4a7fe0", "#d8703f", "#3c9a6b", "#9466c9", "#b98a1e", "#8b939e")
ACCENT = PALETTE[0]
GREY = PALETTE[-1]
OUTLINE = "#eba11d"  # apart from both ends and the middle of every colour scale


@dataclass(frozen=True)
class Theme:
    """The colours of one appearance; scales run from the low end to the high end."""

    page: str
    ink: str
    muted: str
    rule: str
    panel: str
    accent: str
    warm: str
    sequential: tuple[str, ...]
    diverging: tuple[str, ...]


LIGHT = Theme(
    page="#ffffff",
    ink="#1a1e24",
    muted="#5b6470",
    rule="#e2e5ea",
    panel="#f6f7f9",
    accent="#2353c4",
    warm="#b4471f",
    sequential=("#edf1f8", "#bccff0", "#7ba0e3", "#3c6ccd", "#15378a"),
    diverging=("#8a2d12", "#d76f48", "#f2c8b4", "#f1f2f4", "#bccff0", "#5a87da", "#15378a"),
)
DARK = Theme(
    page="#13161b",
    ink="#e7e9ec",
    muted="#9ba4b0",
    rule="#2b313a",
    panel="#1a1e25",
    accent="#86abff",
    warm="#f0916a",
    sequential=("#20262f", "#263f70", "#3561b4", "#6894ea", "#d3e2ff"),
    diverging=("#ffcdb6", "#e27d53", "#733c27", "#20262f", "#263f70", "#5683dc", "#d3e2ff"),
)
# a figure outside a page cannot know its background: letters of middle lightness, scales of the light version
NEUTRAL = Theme(**{**vars(LIGHT), "ink": "#6f7884", "muted": "#7a838f", "rule": "rgba(128, 136, 148, 0.28)"})


def scale(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    """A plotly colour scale: positions 0..1 with their colours, evenly spaced."""
    return [(float(place), colour) for place, colour in zip(np.linspace(0, 1, len(colours)), colours, strict=True)]


def colour_at(colours: tuple[str, ...], place: float) -> str:
    """The colour at ``place`` (0..1, clipped) of an evenly spaced scale, as ``#rrggbb``.

    Example:
        >>> colour_at(("#000000", "#ffffff"), 0.5)
        '#808080'
    """
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], dtype=float)
    places = np.linspace(0, 1, len(colours))
    mixed = [float(np.interp(np.clip(place, 0, 1), places, channel)) for channel in channels.T]
    return "#" + "".join(f"{int(value + 0.5):02x}" for value in mixed)


def template(theme: Theme = NEUTRAL) -> go.layout.Template:
    """The plotly template of one appearance; every figure gets it explicitly and no global default changes.

    Colour axes follow ``layout.colorscale``: a range across zero takes the diverging scale, any other the sequential.
    """
    import plotly.graph_objects as go

    axis = {
        "gridcolor": theme.rule,
        "linecolor": theme.rule,
        "zerolinecolor": theme.rule,
        "tickcolor": theme.rule,
        "tickfont": {"color": theme.muted, "size": 11},
        "title": {"font": {"color": theme.muted, "size": 12}, "standoff": 8},
        "automargin": True,
        "ticks": "",
        "zeroline": False,
    }
    return go.layout.Template(
        data={"bar": [{"error_x": {"color": theme.ink}, "error_y": {"color": theme.ink}}]},
        layout={
            "font": {"family": SANS, "size": 12, "color": theme.ink},
            "title": {
                "font": {"size": 13, "color": theme.ink},
                **{"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
                "pad": {"t": 4},
            },
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(PALETTE),
            "colorscale": {
                "sequential": scale(theme.sequential),
                "sequentialminus": scale(theme.sequential[::-1]),
                "diverging": scale(theme.diverging),
            },
            "coloraxis": {
                "autocolorscale": True,
                "colorbar": {
                    "thickness": 10,
                    "outlinewidth": 0,
                    "ticks": "",
                    "tickfont": {"color": theme.muted, "size": 11},
                    "title": {"font": {"color": theme.muted, "size": 12}, "side": "right"},
                    "xpad": 8,
                },
            },
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"font": {"color": theme.ink}, "bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {
                "bgcolor": theme.ink if theme is not NEUTRAL else LIGHT.ink,
                "bordercolor": "rgba(0,0,0,0)",
                "font": {"family": SANS, "size": 12, "color": theme.page},
                "align": "left",
            },
            "annotationdefaults": {"font": {"color": theme.muted, "size": 11}, "showarrow": False},
            "shapedefaults": {"line": {"color": OUTLINE, "width": 2.5}},
            "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        },
    )
