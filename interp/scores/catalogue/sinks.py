"""Scores by name: sinks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

ENTRIES: Mapping[str, Score] = MappingProxyType({})
