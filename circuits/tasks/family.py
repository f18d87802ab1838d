"""What is known of a kind of task before any item of it is made; data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskFamily:
    """A row of the list of tasks.

    Attributes:
        summary: one line.
        maker: ``module:function``; called with the options it returns a function from a draw to an item.
        measures: what a model that can do it must do.
        answer: what the right and the wrong answers are.
        corruptions: values of the option ``corruption`` -> what the corrupted prompt is.
        options: the other options -> meaning and default.
        positions: name -> what stands there.
        source: where the task comes from, and what of it is ours.
    """

    summary: str
    maker: str
    measures: str
    answer: str
    corruptions: Mapping[str, str]
    positions: Mapping[str, str]
    source: str
    options: Mapping[str, str] = field(default_factory=dict)
