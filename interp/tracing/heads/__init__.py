"""How much of a trace passes through each head: the methods that have such a form, by name. Data: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class HeadForm:
    """A way of tracing that says what each head brings.

    Attributes:
        summary: what a number per head is, in one line.
        source: paper and year, and what is not theirs.
        function: ``module:function`` that makes it: ``function(ask, sources, **options) -> HeadsTraced``.
        options: its own options, name -> what it means and its default.
    """

    summary: str
    source: str
    function: str
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        return self.summary


HEAD_FORMS: Mapping[str, HeadForm] = MappingProxyType(
    {
        "flow": HeadForm(
            summary="the maximum flow as it is, minus the one with the head's map set to the identity",
            source="flow by Abnar and Zuidema, 2020; the difference per head is ours",
            function="interp.tracing.heads.flow_heads:flow_heads",
            options={
                "heads": "how heads are fused: mean, max, min, weights [layer, head], HeadScores or Gates; mean",
                "residual": "the residual stream's share: a number, shares per layer, measured; 0.5",
                "normalise": "whether each target's row is divided by its sum; False",
                "missing": "where mass goes that rows lack: sink, self, renormalise; sink",
            },
        ),
        "rollout": HeadForm(
            summary="the rollout as it is, minus the one with the head's map set to the identity",
            source="rollout by Abnar and Zuidema, 2020; the difference per head is ours",
            function="interp.tracing.heads.rollout_heads:rollout_heads",
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
        "gradient-attention": HeadForm(
            summary="gradient times attention of each head, summed over its map; without sources of absolute values",
            source="after Michel, Levy and Neubig, 2019; Barkan et al., 2021",
            function="interp.tracing.relevance.gradient_heads:gradient_attention_heads",
            options={"rows": "all query rows, or those of the targets alone (averaged); all"},
        ),
        "alti": HeadForm(
            summary="the share of the ALTI trace that passes through the head",
            source="ALTI by Ferrando, Gallego and Costa-jussa, 2022; the split over heads is ours",
            function="interp.tracing.values.value_heads:alti_heads",
            options={
                "norm": "1 as in the paper, or 2; 1",
                "value_bias": "whether a bias of the value projection belongs to the tokens; True",
            },
        ),
        "norm": HeadForm(
            summary="the share of the trace by norms of transformed vectors that passes through the head",
            source="Kobayashi et al., 2020 and 2021; the split over heads is ours",
            function="interp.tracing.values.value_heads:norm_heads",
            options={
                "within": "output (attention, residual and the norm after both) or attention alone; output",
                "norm": "1 or 2; 2",
                "value_bias": "whether a bias of the value projection belongs to the tokens; True",
            },
        ),
    }
)
