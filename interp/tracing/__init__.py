"""Ways of tracing by name. The registry is data: it can be listed without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.tracing.catalogue import FAMILIES
from interp.tracing.kinds import TraceMethod as TraceMethod

METHODS: Mapping[str, TraceMethod] = MappingProxyType(
    {name: entry for family in FAMILIES for name, entry in family.ENTRIES.items()}
)
