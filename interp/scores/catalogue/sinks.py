"""Scores by name: sinks and massive values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

_FIRST = "a prompt's first real token, BOS where there is one; padding never counts; left-out columns are NaN"
_OWN = "count the query at the key itself, which is 1 at the first token whatever the head does; True"
_TOKENS = "over a prompt's real tokens; padding never counts, BOS does"
_FACTOR = "times the mean of a head's dimensions; 5"
_PAIRS = "compare rotary pairs, half (d with d + r/2) or interleaved (2d with 2d + 1); single dimensions"
_ROTARY = "r, how many of the first dimensions are turned; all"
_IMAGE = {
    "image": "the image tokens, a span or columns; those that the processor left room for",
    "dimensions": "sink dimensions of the residual; derived from the first token by one more forward",
    "tau": "an image token is a sink where its largest normalised sink dimension exceeds it; 20",
    "queries": "rows that count; the tokens after the image",
}
_ROWS = (
    "rows are the tokens after the image; padding never counts; text sinks take mass but are no image tokens; derived "
    "sink dimensions are those of all prompts together"
)
_GU = "Gu et al., 2025 (When Attention Sink Emerges)"
_KANG = "Kang et al., 2025 (See What You Are Told)"
_SECONDARY = "On the Existence and Behaviour of Secondary Attention Sinks, 2025; shares of the depth are ours"
_MASSIVE = "Jin et al., 2025 (Massive Values in Self-Attention Modules)"
_DERIVED = "one, and one before it where dimensions= is not given"

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "sink": Score(
            "what a prompt's first token receives on average from the queries that see it",
            "1: all attention lies on the first token",
            (0.0, 1.0),
            _GU,
            "pass",
            "linear",
            "interp.scores.sinks.sinks:sink",
            _FIRST,
            options={"own_row": _OWN},
        ),
        "sink_head": Score(
            "1 where a head's sink score exceeds a threshold; its mean over heads is Sink_1",
            "1: a sink head",
            (0.0, 1.0),
            _GU,
            "pass",
            "linear",
            "interp.scores.sinks.sinks:sink_head",
            f"{_FIRST}; uniform rows of few tokens exceed the threshold, too",
            options={"eps": "the threshold; 0.3", "own_row": _OWN},
        ),
        "sink_profile": Score(
            "what each of a prompt's first tokens receives on average from the queries that see it",
            "1: all queries that see the token look at nothing else",
            (0.0, 1.0),
            _GU,
            "pass",
            "linear",
            "interp.scores.sinks.sinks:sink_profile",
            "a prompt's own tokens in order; padding never counts; NaN beyond its end and at left-out columns",
            shape="profile",
            options={"first": "how many tokens; 8", "own_row": _OWN},
        ),
        "sink_anatomy": Score(
            "norms of the first token's residual, key and value over the others', and cosines of queries with keys",
            "a sink: large residual, small key and value, queries along the first key",
            (-1.0, math.inf),
            _GU,
            "pass",
            "none",
            "interp.scores.sinks.sink_anatomy:sink_anatomy",
            "a prompt's first real token against its others; padding never counts; NaN for one token",
            shape="profile",
        ),
        "secondary_sink_mass": Score(
            "mean mass of a row on the first token, on secondary sinks, on copies of the primary sink",
            "1: all attention lies on the class",
            (0.0, 1.0),
            _SECONDARY,
            "pass",
            "elementwise",
            "interp.scores.sinks.secondary_sinks:secondary_sink_mass",
            "classes of a prompt's tokens by their residuals; padding never counts; NaN where no token of one is left",
            shape="profile",
            options={
                "cosine": "with the first token's residual, from which on a token is a candidate; 0.9",
                "shortest": "share of the layers that a secondary sink lives longer than; 1/16",
                "longest": "share of the layers from which on a token is a copy of the primary sink; 3/4",
            },
        ),
        "visual_nonsink_ratio": Score(
            "share of a row's mass on the image that is not on visual sinks",
            "1: looks at image tokens with content; 0: at visual sinks alone",
            (0.0, 1.0),
            _KANG,
            "second input",
            "linear",
            "interp.scores.sinks.visual_sinks:visual_nonsink_ratio",
            f"{_ROWS}; rows without mass on the image are left out",
            where="text",
            options=_IMAGE,
            forwards=_DERIVED,
            whole=True,
        ),
        "visual_sink_mass": Score(
            "mass of a row on visual sinks",
            "1: looks at visual sinks alone",
            (0.0, 1.0),
            _KANG,
            "second input",
            "linear",
            "interp.scores.sinks.visual_sinks:visual_sink_mass",
            _ROWS,
            where="text",
            options=_IMAGE,
            forwards=_DERIVED,
            whole=True,
        ),
        "image_centric": Score(
            "share of rows in which a head has enough mass on the image, and enough of it off the visual sinks",
            "1: reads the image from every row",
            (0.0, 1.0),
            _KANG,
            "second input",
            "linear",
            "interp.scores.sinks.visual_sinks:image_centric",
            _ROWS,
            where="text",
            options={
                **_IMAGE,
                "rho": "least share of the image's mass off the sinks; 0.5",
                "least_mass": "least mass on the image; 0.2",
            },
            forwards=_DERIVED,
            whole=True,
        ),
        "massive_q": Score(
            "how many dimensions of a head's queries are massive",
            "large: a few dimensions carry the queries",
            (0.0, math.inf),
            _MASSIVE,
            "pass",
            "none",
            "interp.scores.sinks.massive:massive_q",
            _TOKENS,
            options={
                "factor": _FACTOR,
                "pairs": _PAIRS,
                "rotary": _ROTARY,
            },
        ),
        "massive_k": Score(
            "how many dimensions of a key/value head's keys are massive",
            "large: a few dimensions carry the keys",
            (0.0, math.inf),
            _MASSIVE,
            "pass",
            "none",
            "interp.scores.sinks.massive:massive_k",
            _TOKENS,
            options={
                "factor": _FACTOR,
                "pairs": _PAIRS,
                "rotary": _ROTARY,
            },
        ),
        "massive_v": Score(
            "how many dimensions of a key/value head's values are massive",
            "large: a few dimensions carry the values, which is not expected",
            (0.0, math.inf),
            _MASSIVE,
            "pass",
            "none",
            "interp.scores.sinks.massive:massive_v",
            _TOKENS,
            options={"factor": _FACTOR},
        ),
    }
)
