"""Head scores by name. The registry is data: it can be listed without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Score:
    """One head score.

    Attributes:
        summary: what it is, in one line.
        direction: what a large value means.
        range: smallest and largest possible value.
        source: paper and year.
        needs: ``"pattern"`` of the batch itself, or prompts of its ``"own"``.
        cost: ``linear`` (a fixed number of entries per row), ``elementwise`` (every entry of the map).
        function: ``module:function`` that computes it.
    """

    summary: str
    direction: str
    range: tuple[float, float]
    source: str
    needs: Literal["pattern", "own"]
    cost: Literal["linear", "elementwise"]
    function: str

    def __str__(self) -> str:
        return self.summary


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "previous_token": Score(
            "attention from each token to the one before it",
            "1: looks at the previous token only",
            (0.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "pattern",
            "linear",
            "interp.scores.position:previous_token",
        ),
        "duplicate_token": Score(
            "attention from a token to earlier occurrences of the same token",
            "1: looks at its own earlier copies only",
            (0.0, 1.0),
            "Wang et al., 2022 (arXiv 2211.00593)",
            "pattern",
            "elementwise",
            "interp.scores.position:duplicate_token",
        ),
        "induction": Score(
            "attention from a token to what followed its earlier occurrences, on the prompts given",
            "1: looks at what came next last time only",
            (0.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "pattern",
            "elementwise",
            "interp.scores.position:induction",
        ),
        "prefix_matching": Score(
            "the induction score on 25 random tokens said four times after a start token",
            "1: looks at what came next the last times only",
            (0.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895), with its erratum",
            "own",
            "elementwise",
            "interp.scores.position:induction",
        ),
        "copying": Score(
            "how much a head raises the logit of what it attends to, on 25 random tokens said once: 4 min(r, 1/2) - 1",
            "1: raises the attended token at least as much as all others together; -1: never raises it",
            (-1.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "own",
            "elementwise",
            "interp.scores.copying:copying",
        ),
    }
)
