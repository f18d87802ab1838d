"""Scores by name: where a head looks by place and by repeats."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

_PADDING = "padding never counts; BOS is an ordinary key that takes mass from the others"

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "previous_token": Score(
            "attention from each token to the one before it",
            "1: looks at the previous token only",
            (0.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "pass",
            "linear",
            "interp.scores.position:previous_token",
            f"{_PADDING}; the first row has no token before it and is left out",
            where="text",
        ),
        "duplicate_token": Score(
            "attention from a token to earlier occurrences of the same token",
            "1: looks at its own earlier copies only",
            (0.0, 1.0),
            "Wang et al., 2022 (arXiv 2211.00593)",
            "pass",
            "elementwise",
            "interp.scores.position:duplicate_token",
            f"{_PADDING}; only rows whose token stood before count",
            where="text",
        ),
        "induction": Score(
            "attention from a token to what followed its earlier occurrences, on the prompts given",
            "1: looks at what came next last time only",
            (0.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "pass",
            "elementwise",
            "interp.scores.position:induction",
            f"{_PADDING}; only rows whose token stood before count",
            where="text",
        ),
        "prefix_matching": Score(
            "the induction score on 25 random tokens said four times after a start token",
            "1: looks at what came next the last times only",
            (0.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895), with its erratum",
            "pass",
            "elementwise",
            "interp.scores.position:induction",
            f"{_PADDING}; rows of the later repeats count",
            where="text",
            prompts="interp.scores.prompts:four_repeats",
        ),
        "copying": Score(
            "how much a head raises the logit of what it attends to, on 25 random tokens said once: 4 min(r, 1/2) - 1",
            "1: raises the attended token at least as much as all others together; -1: never raises it",
            (-1.0, 1.0),
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "pass",
            "elementwise",
            "interp.scores.copying:copying",
            "the start token is outside the sample; its share of a row is left out",
            where="text",
            prompts="interp.scores.prompts:said_once",
        ),
    }
)
