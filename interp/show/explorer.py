"""``Explorer``: a map of all heads that one can filter, and the pattern and scores of the head that one clicks."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from interp.errors import BadInput
from interp.show.tokens import visible

MOST_PATTERNS = 64
MOST_TOKENS = 64
_FINEST = 65535  # attention is kept in 16 bits, to 0.000015
_LONGEST_LABEL = 20  # characters of a token at an axis


@dataclass(frozen=True, eq=False)
class MapScore:
    """One number per head, to be shown on the map.

    Args:
        name: what it is.
        values: ``[layer, head]``, NaN where there is none.
        low, high: its interval; None without.
        null_low, null_high: the band that the null leaves, ``[layer, head]``; None without.
        summary: what it is, in a sentence.
        direction: what a large value means.
        signed: True centres the colours at zero.
    """

    name: str
    values: Float[np.ndarray, "layer head"]
    low: Float[np.ndarray, "layer head"] | None = None
    high: Float[np.ndarray, "layer head"] | None = None
    null_low: Float[np.ndarray, "layer head"] | None = None
    null_high: Float[np.ndarray, "layer head"] | None = None
    summary: str = ""
    direction: str = ""
    signed: bool = False


@dataclass(frozen=True, eq=False)
class Explorer:
    """What the page shows of every head.

    Args:
        exists: ``[layer, head]`` which cells are heads.
        scores: what the map can be coloured by; the first is shown at first.
        labels: head, as ``L1.H0`` -> its labels.
        stages: label -> the group that its colour stands for.
        evidence: head -> sentences on its labels.
        patterns: ``[pattern, query, key]`` of at most 64 heads; longer prompts are cut to 64 tokens.
        pattern_heads: which heads they are of.
        tokens: text of the tokens of the prompt.
        more: head -> (name, text) of what has several numbers per head.
        prefix: put before the heads' names.

    Raises:
        BadInput: no score, shapes that do not fit, or more than 64 patterns.
    """

    exists: Bool[np.ndarray, "layer head"]
    scores: Sequence[MapScore]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Sequence[str]] = field(default_factory=dict)
    patterns: Float[np.ndarray, "pattern query key"] | None = None
    pattern_heads: Sequence[str] = ()
    tokens: Sequence[str] = ()
    more: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    prefix: str = ""

    def __post_init__(self) -> None:
        if not self.scores:
            raise BadInput("Explorer: no scores were given; a map needs one at least.")
        for score in self.scores:
            for name in ("values", "low", "high", "null_low", "null_high"):
                grid = getattr(score, name)
                if grid is not None and grid.shape != self.exists.shape:
                    raise BadInput(
                        f"Explorer: {name} of {score.name!r} came as {list(grid.shape)}; expected [layer, head] = "
                        f"{list(self.exists.shape)}."
                    )
        if len(self.pattern_heads) > MOST_PATTERNS:
            raise BadInput(f"Explorer: {len(self.pattern_heads)} patterns were given, at most {MOST_PATTERNS}; choose.")
        wanted = (len(self.pattern_heads), len(self.tokens), len(self.tokens))
        if self.patterns is not None and self.patterns.shape != wanted:
            raise BadInput(f"Explorer: patterns came as {list(self.patterns.shape)}; expected {list(wanted)}.")

    def data(self) -> dict[str, Any]:
        """Everything as JSON can hold it; arrays as typed arrays in base64."""
        tokens = [visible(token) for token in self.tokens[:MOST_TOKENS]]
        return {
            "prefix": self.prefix,
            "exists": typed(self.exists.astype(np.uint8)),
            "scores": [_score(score) for score in self.scores],
            "labels": {head: list(labels) for head, labels in self.labels.items()},
            "stages": dict(self.stages),
            "evidence": {head: list(sentences) for head, sentences in self.evidence.items()},
            "more": {head: [list(pair) for pair in pairs] for head, pairs in self.more.items()},
            "tokens": tokens,
            "ticks": [html.escape(_shortened(token)) for token in tokens],  # the plotting library reads markup
            "cut": len(self.tokens) > MOST_TOKENS,
            "patternHeads": list(self.pattern_heads),
            "patterns": None if self.patterns is None else _attention(self.patterns),
        }


def typed(array: np.ndarray) -> dict[str, Any]:
    """An array as ``{"dtype", "shape", "bdata"}``: little-endian bytes in base64.

    Example:
        >>> typed(np.array([1, 2], dtype=np.uint8))
        {'dtype': 'u1', 'shape': [2], 'bdata': 'AQI='}
    """
    kind = array.dtype.newbyteorder("<")
    content = np.ascontiguousarray(array.astype(kind)).tobytes()
    return {
        "dtype": f"{kind.kind}{kind.itemsize}",
        "shape": list(array.shape),
        "bdata": base64.b64encode(content).decode(),
    }


def _score(score: MapScore) -> dict[str, Any]:
    grids = {"values": score.values, "low": score.low, "high": score.high}
    grids |= {"nullLow": score.null_low, "nullHigh": score.null_high}
    return {
        "name": score.name,
        "summary": score.summary,
        "direction": score.direction,
        "signed": score.signed,
        **{name: None if grid is None else typed(grid.astype(np.float32)) for name, grid in grids.items()},
    }


def _attention(patterns: Float[np.ndarray, "pattern query key"]) -> dict[str, Any]:
    shown = np.nan_to_num(patterns[:, :MOST_TOKENS, :MOST_TOKENS])
    return typed(np.round(np.clip(shown, 0.0, 1.0) * _FINEST).astype(np.uint16))


def _shortened(token: str) -> str:
    return token if len(token) <= _LONGEST_LABEL else token[: _LONGEST_LABEL - 1] + "…"
