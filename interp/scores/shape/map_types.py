"""Local, hybrid or global: what the mutual information of queries and keys says about a head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.errors import BadInput
from interp.results import HeadScores


def map_types(scores: HeadScores, cuts: Sequence[float] | None = None) -> pd.DataFrame:
    """One row per head of an ``nmi`` table: its value and type; from global (low) over hybrid to local (high).

    The three types are those of UNIP (2025), whose cut points are not known here: give yours, or the heads at hand are
    cut into thirds by rank, which always finds all three; the column ``cut`` says which.

    Args:
        scores: the score ``"nmi"`` (or ``"nmi_above_uniform"``).
        cuts: two numbers; below the first a head is global, from the second on local, hybrid between them.

    Raises:
        BadInput: cuts that are not two numbers in rising order, or a table with positions.

    Example:
        >>> map_types(HeadScores.from_array(np.array([[0.1, 0.5, 0.9]]), name="nmi")).type.tolist()
        ['global', 'hybrid', 'local']
    """
    if scores.positions is not None:
        raise BadInput(f"map_types: {scores.name!r} has several numbers per head; give the score 'nmi'.")
    table = pd.DataFrame(scores.table()[["stack", "layer", "head", "value"]])
    table = table[table["value"].notna()].reset_index(drop=True)
    if cuts is None:
        order = np.argsort(np.argsort(np.asarray(table["value"]), kind="stable"), kind="stable")
        place = order * 3 // max(len(table), 1)
        cut = "thirds of these heads"
    else:
        given = tuple(cuts)
        if len(given) != 2 or not given[0] <= given[1]:  # noqa: PLR2004 - low, high
            raise BadInput(f"map_types: cuts={cuts!r}; expected two numbers, the smaller first.")
        place = np.digitize(table["value"], given)
        cut = f"{given[0]:g}, {given[1]:g}"
    return table.assign(type=np.array(["global", "hybrid", "local"])[place], cut=cut)
