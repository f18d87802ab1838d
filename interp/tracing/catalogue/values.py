"""Contributions that know the values."""

from __future__ import annotations

from collections.abc import Mapping

from interp.tracing.kinds import TraceMethod

_ROLLED = "multiply the layers (True), or each layer's own shares (False)"
_BIAS = "whether a bias of the value projection belongs to the tokens (True) or to the constant (False)"

ENTRIES: Mapping[str, TraceMethod] = {
    "norm": TraceMethod(
        summary="lengths of what tokens write into each other, multiplied through the layers",
        value="the share of the source in the lengths of what reaches the target, attention and residual alone",
        range=(0.0, 1.0),
        source="Kobayashi et al., 2020 and 2021; multiplied as by Modarressi et al., 2022",
        function="interp.tracing.values.contribution_trace:norm_trace",
        needs="pass",
        layered=True,
        stochastic=True,
        options={
            "within": "output (attention, residual and the norm after both) or attention alone; output",
            "norm": "1 or 2; 2",
            "value_bias": _BIAS,
            "rolled": _ROLLED,
        },
    ),
    "alti": TraceMethod(
        summary="how much nearer to zero a state would be without each token's part, multiplied through the layers",
        value="the share of the source in what makes up the target's top state, attention and residual alone",
        range=(0.0, 1.0),
        source="Ferrando, Gallego and Costa-jussa, 2022",
        function="interp.tracing.values.contribution_trace:alti_trace",
        needs="pass",
        layered=True,
        stochastic=True,
        options={"norm": "1 as in the paper, or 2; 1", "value_bias": _BIAS, "rolled": _ROLLED},
    ),
    "alti-logit": TraceMethod(
        summary="what each token adds to the answer through the attention of all layers, led back by ALTI",
        value="what the source adds to the answer's logit (or metric) by attention's direct writes",
        range=(float("-inf"), float("inf")),
        source="Ferrando et al., 2023 (Explaining How Transformers Use Context to Build Predictions)",
        function="interp.tracing.values.logit_trace:logit_trace",
        needs="gradient",
        signed=True,
        layered=True,
        targets="answer",
        forwards="6 forwards, 2 backwards to the stream alone",
        options={
            "norm": "of ALTI, 1 or 2; 1",
            "embeddings": "whether the read token's own embedding counts for it; False",
            "rolled": "lead states back to the inputs (True), or leave them at their columns (False)",
        },
    ),
    "value-zeroing": TraceMethod(
        summary="how far states move when a token's value is zeroed in a block, multiplied through the layers",
        value="the share of the source in how far the target's state moves when values are zeroed, layer by layer",
        range=(0.0, 1.0),
        source="Mohebbi et al., 2023 (Quantifying Context Mixing in Transformers)",
        function="interp.tracing.values.zeroing_trace:zeroing_trace",
        needs="edits",
        layered=True,
        stochastic=True,
        forwards="one forward, and one of each block per token",
        options={
            "residual": "a share that stays on the token at each layer (ours); 0",
            "rolled": _ROLLED,
        },
    ),
}
