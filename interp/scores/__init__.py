"""Head scores by name. The registry is data: it can be listed without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.catalogue import divergence, groups, long_context, position, shape, sinks, weights, writes
from interp.scores.kinds import Score as Score

SCORES: Mapping[str, Score] = MappingProxyType(
    {
        name: entry
        for family in (position, shape, sinks, groups, long_context, divergence, writes, weights)
        for name, entry in family.ENTRIES.items()
    }
)
