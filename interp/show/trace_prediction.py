"""How well methods predict a reference: as bars, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.show.bars import bar_chart
from interp.show.trace_layers import layer_curves

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NEEDED = ("trace", "mean", "low", "high")


class AgreementRow(NamedTuple):
    """How well one method predicts a reference: at a layer, or as a whole for None."""

    trace: str
    layer: int | None
    mean: float
    low: float
    high: float


def agreement_by_layer(
    table: pd.DataFrame, *, reference: str, value: str = "Spearman's rho", title: str = ""
) -> go.Figure:
    """A plotly figure of the agreement of each method with a reference over layers, with bands.

    Args:
        table: one row per method, reference and layer with ``trace``, ``reference``, ``layer``, ``mean``, ``low``,
            ``high``, as from :meth:`interp.tracing.protocols.trace_agreement.TraceAgreement.table`; rows without a
            layer are left out.
        reference: which reference.
        value: what the number is.
        title: heading inside the figure.

    Raises:
        BadInput: no row of the reference has a layer.
    """
    rows = agreement_rows(table, reference, layers=True)
    places = sorted({row.layer for row in rows if row.layer is not None})
    curves: dict[str, np.ndarray] = {}
    bands: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in dict.fromkeys(row.trace for row in rows):
        numbers = np.full((3, len(places)), np.nan)
        for row in rows:
            if row.trace == name and row.layer is not None:
                numbers[:, places.index(row.layer)] = row.mean, row.low, row.high
        curves[name] = numbers[0]
        if np.isfinite(numbers[1:]).any():
            bands[name] = (numbers[1], numbers[2])
    return layer_curves(curves, bands=bands, layers=places, value=f"{value} with {reference}", title=title)


def agreement_bars(
    table: pd.DataFrame,
    *,
    reference: str,
    points: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    confidence: float = 0.95,
    value: str = "Spearman's rho",
    title: str = "",
) -> go.Figure:
    """A bar chart: how well each method predicts a reference, best first, with the interval over prompts.

    The best is lit, and with it every method whose interval reaches the best one's mean: between those the chart does
    not decide.

    Args:
        table: one row per method with ``trace``, ``mean``, ``low``, ``high``; as from
            :meth:`interp.tracing.protocols.trace_agreement.TraceAgreement.table`, of which the rows of the reference
            without a layer are taken.
        reference: what is predicted.
        points: method -> its numbers per prompt, drawn as dots.
        confidence: of the intervals in the table.
        value: what the number is.
        title: heading inside the figure.

    Raises:
        BadInput: no row for the reference.
    """
    found = [row for row in agreement_rows(table, reference, layers=False) if np.isfinite(row.mean)]
    if not found:
        raise BadInput(f"agreement_bars: the table has no method with a number for {reference!r}.")
    rows = sorted(found, key=lambda row: -row.mean)
    dots = {name: np.asarray(numbers, dtype=float) for name, numbers in (points or {}).items()}
    return bar_chart(
        [row.trace for row in rows],
        [row.mean for row in rows],
        low=[row.low for row in rows],
        high=[row.high for row in rows],
        highlight=[row.trace for place, row in enumerate(rows) if not place or row.high >= rows[0].mean],
        points={row.trace: dots[row.trace][np.isfinite(dots[row.trace])] for row in rows if row.trace in dots},
        point="one prompt",
        name=f"{value} with {reference}",
        title=title,
        note=f"{100 * confidence:g} % interval over prompts",
    )


def agreement_rows(table: pd.DataFrame, reference: str, *, layers: bool) -> list[AgreementRow]:
    """The rows of one reference, those with a layer or those without.

    Raises:
        BadInput: columns that are missing, or no such row.
    """
    missing = [name for name in (*_NEEDED, *(("layer",) if layers else ())) if name not in table.columns]
    if missing:
        raise BadInput(f"The table of agreement has no columns {missing}; it has {list(table.columns)}.")
    found = []
    for row in table.to_dict("records"):
        layer = row.get("layer")
        layer = None if layer is None or pd.isna(layer) else int(layer)
        if row.get("reference", reference) == reference and (layer is not None) == layers:
            ends = (float(row["mean"]), float(row["low"]), float(row["high"]))
            found.append(AgreementRow(str(row["trace"]), layer, *ends))
    if not found:
        known = sorted(set(table["reference"])) if "reference" in table.columns else [reference]
        kind = "with a layer; trace with each_layer=True" if layers else "of a whole trace"
        raise BadInput(f"The table of agreement has no row for {reference!r} {kind}. Its references are {known}.")
    return found
