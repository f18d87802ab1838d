"""Attention flow."""

from __future__ import annotations

from collections.abc import Mapping

from interp.tracing.kinds import TraceMethod

ENTRIES: Mapping[str, TraceMethod] = {
    "flow": TraceMethod(
        summary="maximum flow through the layers' maps, with the residual stream's share",
        value="the most that could flow from the target at the top to the source through attention and residual",
        range=(0.0, 1.0),
        source="Abnar and Zuidema, 2020",
        function="interp.tracing.flow.trace_flow:trace_flow",
        needs="pass",
        layered=True,
        options={
            "heads": "how heads are fused: mean, max, min, weights [layer, head], HeadScores or Gates; mean",
            "residual": "the residual stream's share: a number, shares per layer, measured; 0.5",
            "normalise": "whether each target's row is divided by its sum; False",
            "missing": "where mass goes that rows lack: sink, self, renormalise; sink",
        },
    ),
}
