"""Small static views for notebooks: a heatmap as SVG and a table as HTML, without any script."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Real
from markupsafe import Markup

from interp.numerals import numeral
from interp.show.heatmap import colour_limits
from interp.show.theme import LIGHT, colour_at

_MARGIN_LEFT, _MARGIN_BOTTOM = 34, 30
_TEXT = 'font-family="system-ui, sans-serif" font-size="10" fill="#7a838f"'


def inline_heatmap(
    values: Real[np.ndarray, "layer head"],
    *,
    name: str = "value",
    signed: bool | None = None,
    prefix: str = "",
) -> Markup:
    """An SVG heatmap with one cell per head, layer 0 at the top; pointing at a cell shows its label and value.

    It shows wherever a notebook is read, offline and untrusted as well, and takes a few kilobytes.

    Args:
        values: one number per head, NaN where no head is; such cells stay blank.
        name: what the number is; escaped.
        signed: True centres a diverging colour scale at zero; None looks for a negative value.
        prefix: put before the head's label, such as ``"vision."``.
    """
    values = np.asarray(values)
    n_layers, n_heads = values.shape
    cell = int(np.clip(520 / max(n_heads, 1), 8, 26))
    bottom, top = colour_limits(values, signed)
    colours = LIGHT.diverging if bottom < 0 else LIGHT.sequential
    cells = [
        Markup(
            '<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{fill}"><title>{label}</title></rect>'
        ).format(
            x=_MARGIN_LEFT + head * cell,
            y=layer * cell,
            side=cell - 1,
            fill=colour_at(colours, (float(values[layer, head]) - bottom) / (top - bottom)),
            label=f"{prefix}L{layer}.H{head}  {name} {numeral(float(values[layer, head]))}",
        )
        for layer in range(n_layers)
        for head in range(n_heads)
        if np.isfinite(values[layer, head])
    ]
    width, height = _MARGIN_LEFT + n_heads * cell + 4, n_layers * cell + _MARGIN_BOTTOM
    opening = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{width}" height="{height}" '
        'viewBox="0 0 {width} {height}" style="max-width:100%;height:auto">'
    ).format(label=f"{name} by layer and head", width=width, height=height)
    return opening + Markup("").join(cells) + _axis_text(n_layers, n_heads, cell) + Markup("</svg>")


def _axis_text(n_layers: int, n_heads: int, cell: int) -> Markup:
    step_x, step_y = max(1, -(-18 // cell)), max(1, -(-14 // cell))
    bottom = n_layers * cell
    places = [(_MARGIN_LEFT - 5, (n + 0.5) * cell + 3, "end", f"L{n}") for n in range(0, n_layers, step_y)]
    places += [(_MARGIN_LEFT + (n + 0.5) * cell, bottom + 12, "middle", str(n)) for n in range(0, n_heads, step_x)]
    places += [(_MARGIN_LEFT + n_heads * cell / 2, bottom + 26, "middle", "head")]
    words = [
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {_TEXT}>{word}</text>' for x, y, anchor, word in places
    ]
    return Markup("".join(words))


def inline_table(table: pd.DataFrame, *, max_rows: int = 10) -> Markup:
    """An HTML table of the first ``max_rows`` rows with tidy numerals; every cell is escaped."""
    style = Markup(' style="text-align:right;font-variant-numeric:tabular-nums;padding:2px 10px"')
    head = Markup("").join(Markup("<th{style}>{name}</th>").format(style=style, name=str(c)) for c in table.columns)
    rows = [
        Markup("<tr>{cells}</tr>").format(
            cells=Markup("").join(Markup("<td{style}>{cell}</td>").format(style=style, cell=numeral(v)) for v in row)
        )
        for row in table.head(max_rows).itertuples(index=False)
    ]
    return Markup(
        '<table style="border-collapse:collapse;font-size:12px">'
        "<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    ).format(head=head, rows=Markup("").join(rows))
