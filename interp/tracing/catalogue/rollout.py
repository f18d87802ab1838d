"""Raw attention and attention rollout."""

from __future__ import annotations

from collections.abc import Mapping

from interp.tracing.kinds import TraceMethod

ENTRIES: Mapping[str, TraceMethod] = {
    "raw": TraceMethod(
        summary="the attention of one layer, heads fused",
        value="the attention that the target gives to the source at one layer",
        range=(0.0, 1.0),
        source="Abnar and Zuidema, 2020, the baseline",
        function="interp.tracing.raw:raw",
        needs="pass",
        layered=True,
        stochastic=True,
        options={"layer": "which layer, the last by default", "heads": "how heads are fused: mean, max, min; mean"},
    ),
}
