"""What happens to the answer when tokens are taken away."""

from __future__ import annotations

from collections.abc import Mapping

from interp.tracing.kinds import TraceMethod

ENTRIES: Mapping[str, TraceMethod] = {}
