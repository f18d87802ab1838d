"""The report page: one HTML file that opens offline, with figures one can hover."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup

from interp.errors import BadInput
from interp.files import write_whole
from interp.numerals import numeral
from interp.show.explorer import Explorer
from interp.show.theme import DARK, LIGHT, template
from interp.show.trace_flow import FlowDiagram, script_safe
from interp.show.trace_image import ImageOverlay
from interp.show.trace_text import TokenHeatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

LIMIT_MB = 8.0
NATURAL_HEIGHT = 420  # of a figure that does not say
TEMPLATES = Path(__file__).parent / "templates"

_Drawings = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class KeyFigure:
    """One number of the row at the top of the page.

    Args:
        label: what it is, in a few words.
        value: a number (printed with three decimals) or ready text.
        note: its doubt or its setting, in small type ("95 % interval 0.91 to 0.95").
    """

    label: str
    value: str | float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure with its caption.

    Args:
        content: a plotly figure, ready HTML as ``Markup`` (what ``token_strip`` returns), an ``Explorer``, or a view of
            a trace: ``TokenHeatmap``, ``ImageOverlay``, ``FlowDiagram``.
        caption: one or two sentences below it.
        alt: what the figure shows, for a reader who cannot see it; the caption when empty.
    """

    content: go.Figure | Markup | Explorer | TokenHeatmap | ImageOverlay | FlowDiagram
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True, eq=False)
class Section:
    """A titled part of the page.

    Args:
        title: the heading.
        text: plain text; an empty line starts a new paragraph. It is escaped.
        figures: shown in this order.
        table: shown after the figures; the whole of it can be downloaded as CSV from the page.
        table_caption: one sentence below the table.
        max_rows: rows of the table that are printed on the page.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    table: pd.DataFrame | None = None
    table_caption: str = ""
    max_rows: int = 40


@dataclass(frozen=True, eq=False)
class Page:
    """A report: what was asked, the answer with its doubt, and what supports it.

    Args:
        title: the name of the report.
        question: what was asked, in a sentence.
        answer: the answer, in a sentence.
        doubt: how sure the answer is and what it does not say, in a sentence or two.
        key_figures: the row of numbers below the answer.
        sections: the body.
        manifest: what made the page (versions, model, seed, device, times); nested mappings are flattened.
    """

    title: str
    question: str
    answer: str
    doubt: str = ""
    key_figures: Sequence[KeyFigure] = ()
    sections: Sequence[Section] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)


def write(page: Page, path: str | os.PathLike[str], *, limit_mb: float = LIMIT_MB) -> Path:
    """The path of the HTML file that now holds ``page``, written whole or not at all.

    Args:
        page: what to show.
        path: a file name, usually ``report.html``.
        limit_mb: largest size, in units of 10**6 bytes.

    Raises:
        BadInput: the page is larger than ``limit_mb``.
        OSError: the folder cannot be written.

    Example:
        >>> page = Page("Induction", "Which heads look back?", "L1.H0 does.")
        >>> write(page, "report.html")  # doctest: +SKIP
    """
    content = render(page).encode("utf-8")
    if len(content) > limit_mb * 1e6:
        raise BadInput(
            f"The page {page.title!r} takes {len(content) / 1e6:.1f} MB; the limit is {limit_mb:g} MB (4.8 of them "
            "are the plotting library). Show fewer figures, heads or tokens, or raise limit_mb."
        )
    return write_whole(path, content)


def render(page: Page) -> str:
    """The HTML of ``page``, with the plotting library inlined once if there is a figure that needs it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["numeral"] = numeral
    found: _Drawings = {"plots": [], "explorers": [], "flows": []}
    sections = [_section(section, found, number + 1) for number, section in enumerate(page.sections)]
    drawn = bool(found["plots"] or found["explorers"])
    return environment.get_template("report.html.j2").render(
        page=page,
        sections=sections,
        manifest=_flatten(page.manifest),
        **found,
        plotly=_plotly_source() if drawn else "",
        themes=_json({"light": template(LIGHT).to_plotly_json(), "dark": template(DARK).to_plotly_json()})
        if drawn
        else "",
        light=LIGHT,
        dark=DARK,
    )


def _section(section: Section, found: _Drawings, number: int) -> dict[str, Any]:
    return {
        "id": f"section-{number}",
        "title": section.title,
        "paragraphs": [part.strip() for part in section.text.split("\n\n") if part.strip()],
        "figures": [_figure(figure, found) for figure in section.figures],
        "table": None if section.table is None else _table(section.table, section.max_rows, f"table-{number}.csv"),
        "table_caption": section.table_caption,
    }


def _figure(figure: Figure, found: _Drawings) -> dict[str, Any]:
    shown = {"caption": figure.caption, "alt": figure.alt or figure.caption}
    shown |= dict.fromkeys(("markup", "plot", "explorer", "diagram"))
    content = figure.content
    if isinstance(content, Explorer):
        found["explorers"].append({"id": f"explorer-{len(found['explorers']) + 1}", "json": _json(content.data())})
        return {**shown, "explorer": found["explorers"][-1]}
    if isinstance(content, FlowDiagram):
        found["flows"].append({"id": f"flow-{len(found['flows']) + 1}", "json": _json(content.data())})
        return {**shown, "diagram": found["flows"][-1]}
    if isinstance(content, TokenHeatmap | ImageOverlay):
        return {**shown, "markup": content.markup()}
    if isinstance(content, Markup):
        return {**shown, "markup": content}
    if isinstance(content, str):
        raise BadInput("A Figure's content came as plain text; pass a plotly figure, or Markup from token_strip.")
    layout = content.to_plotly_json()["layout"]
    plot = {
        "id": f"plot-{len(found['plots']) + 1}",
        "width": layout.get("width"),
        "height": layout.get("height") or NATURAL_HEIGHT,
        "json": script_safe(str(content.to_json())),
    }
    found["plots"].append(plot)
    return {**shown, "plot": plot}


def _table(table: pd.DataFrame, max_rows: int, file_name: str) -> dict[str, Any]:
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in table.dtypes]
    return {
        "columns": list(zip([str(name) for name in table.columns], numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in table.head(max_rows).itertuples(index=False)],
        "n_rows": len(table),
        "n_shown": min(max_rows, len(table)),
        "csv": table.to_csv(index=False),
        "file": file_name,
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            rows += _flatten(item, f"{name}.")
        elif isinstance(item, list | tuple):
            rows.append((name, ", ".join(str(part) for part in item)))
        else:
            rows.append((name, str(item)))
    return rows


def _json(value: object) -> Markup:
    return script_safe(json.dumps(value))


def _plotly_source() -> Markup:
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    assert "</script" not in source.lower(), "the plotting library would close its own script element"
    return Markup(source)
