"""Contributions that know the values."""

from __future__ import annotations

from collections.abc import Mapping

from interp.tracing.kinds import TraceMethod

ENTRIES: Mapping[str, TraceMethod] = {}
