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
        options={
            "layer": "which layer, the last by default",
            "heads": "how heads are fused: mean, max, min, weights [layer, head], HeadScores or Gates; mean",
        },
    ),
    "rollout": TraceMethod(
        summary="attention multiplied through the layers, with the residual stream's share",
        value="the share of the target's top state that comes from the source, by attention and residual alone",
        range=(0.0, 1.0),
        source="Abnar and Zuidema, 2020",
        function="interp.tracing.rollout_trace:rollout_trace",
        needs="pass",
        layered=True,
        stochastic=True,
        options={
            "heads": "how heads are fused: mean, max, min, weights [layer, head], HeadScores or Gates; mean",
            "residual": "the residual stream's share: a number, shares per layer, measured; 0.5",
            "discard": "share of each fused map's entries set to 0, the lowest first; 0",
            "keep_first": "whether discarding spares the first token's entry with itself; True",
            "start": "block index of the first layer that counts; 0",
            "missing": "where mass goes that rows lack: sink, self, renormalise; sink",
            "normalise": "whether rows are divided by their sum; True",
        },
    ),
}
