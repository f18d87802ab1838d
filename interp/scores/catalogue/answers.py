"""Scores by name: which of the answers that stand in a prompt a head looks at."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "negative_attention": Score(
            "how far attention leans from one candidate in the prompt to the other: sum of (yes + no) log(no / yes)",
            "positive: leans to the negative candidate; negative: to the positive one; 0: to both alike",
            (float("-inf"), float("inf")),
            "Yu et al., 2024, as given by Zheng et al., 2024 (arXiv 2409.03752)",
            "pass",
            "linear",
            "interp.scores.writes.negative:negative_attention",
            "rows behind both candidates count, padding never; it is a sum over rows, so that it grows with the length",
            where="text",
            options=MappingProxyType(
                {
                    "yes": "the positive candidate's tokens: a span, an int, a slice or columns; 'yes' by default",
                    "no": "the negative candidate's; 'no' by default",
                }
            ),
        ),
    }
)
