"""What an experiment is given to work with, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circuits.folder import RunFolder
from circuits.progress import Progress
from circuits.units import UnitStore

if TYPE_CHECKING:
    import pandas as pd

    from interp.show import Page


@dataclass(frozen=True)
class Workplace:
    """Where an experiment works: its folder, its finished units, and where it tells how far it is."""

    folder: RunFolder
    units: UnitStore
    progress: Progress


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
        answer: the answer in one sentence, with its doubt.
        heads: the long table, one row per head and quantity.
        top: the few rows that are printed at the end.
        page: the report; the runner adds the manifest.
        figures: name -> plotly figure, kept as JSON beside the report.
        model: what the manifest says about the model.
        notes: what was left out and why, and every doubt in full.
        facts: the numbers behind the answer, for scripts.
        tables: name -> other tables, kept beside that of heads.
    """

    answer: str
    heads: pd.DataFrame
    top: pd.DataFrame
    page: Page
    figures: Mapping[str, Any]
    model: Mapping[str, Any]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
