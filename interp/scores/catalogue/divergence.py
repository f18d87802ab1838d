"""Scores by name: how far a head's output moves when a part of the input is taken away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

_COUNTS = (
    "heads are compared at the tokens of at=, the answer's by default; BOS stays in both prompts; padding never "
    "counts; exclude_sinks leaves z as it is"
)
_RULE = {
    "relative": "divide by the sum of both norms, in [0, 1] then; False",
    "outliers": "set heads to 0 above mean + std of their layer in divergence and in squared norm without the part",
    "ddof": "of that standard deviation, 0 or 1 (not known from the paper); 0",
    "at": "tokens at which heads are compared, a mean over them; 'answer'",
}

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "vision_divergence": Score(
            "distance between a head's output with the image and without it (vision-aware head divergence)",
            "large: what the head puts out depends on the image; 0: not at all",
            (0.0, math.inf),
            "He et al., 2025 (arXiv 2412.13949)",
            "second input",
            "none",
            "interp.scores.divergence.divergence:vision_divergence",
            _COUNTS,
            options=MappingProxyType(
                {
                    **_RULE,
                    "image": "tokens to take out; those that the config names as images",
                    "outliers": f"{_RULE['outliers']}; True",
                }
            ),
            forwards="2: with the image and without it",
        ),
        "context_divergence": Score(
            "distance between a head's output with a named span of the prompt and without it",
            "large: what the head puts out depends on the span; 0: not at all",
            (0.0, math.inf),
            "He et al., 2025 (arXiv 2412.13949), for text",
            "second input",
            "none",
            "interp.scores.divergence.divergence:context_divergence",
            _COUNTS,
            where="text",
            options=MappingProxyType(
                {"span": "tokens to take out; the span 'context'", **_RULE, "outliers": f"{_RULE['outliers']}; False"}
            ),
            forwards="2: with the span and without it",
        ),
        "span_sensitivity": Score(
            "distance between a head's output on the prompt and on the prompt with a named span disturbed",
            "large: what the head puts out depends on the span; 0: not at all",
            (0.0, math.inf),
            "Geva et al., 2023 (arXiv 2304.14767) for masking; He et al., 2025 (arXiv 2412.13949) for removal",
            "second input",
            "none",
            "interp.scores.divergence.sensitivity:span_sensitivity",
            _COUNTS,
            where="text",
            options=MappingProxyType(
                {
                    "span": "the tokens in question; must be named",
                    "by": "'removal', 'masking' (nobody else may look at them) or 'replacement' (random tokens)",
                    "relative": _RULE["relative"],
                    "at": _RULE["at"],
                    "draws": "how many replacements are averaged; 4",
                }
            ),
            forwards="2; 1 + draws for replacements",
        ),
    }
)
