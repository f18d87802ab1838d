"""Head scores by name. The registry is data: it can be listed without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.catalogue import FAMILIES
from interp.scores.kinds import Score as Score

SCORES: Mapping[str, Score] = MappingProxyType(
    {name: entry for family in FAMILIES for name, entry in family.ENTRIES.items()}
)
