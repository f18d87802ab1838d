"""The attribution methods by name. The registry is data: it can be listed without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Kind = Literal["exact", "estimate", "gates"]
Needs = Literal["source", "reference"]

EVERYWHERE = ("z", "q", "k", "v", "pattern")
VECTORS = ("z", "q", "k", "v")
FREEZES = ("none", "other_heads", "patterns", "norms")
UNITS = ("head", "position", "kv")


@dataclass(frozen=True)
class Method:
    """One way to give each head a number.

    Attributes:
        summary: what it is, in one line.
        kind: ``exact`` (the metric is measured under the edit), ``estimate`` (from gradients, decompositions or
            samples), ``gates`` (learned).
        quantity: ``effect`` (edited minus unedited), ``contribution``, ``gate`` or ``score``.
        sense: of a metric for which more is better: +1 a larger value means that the head helps it, -1 that it hurts,
            0 unsigned. Metrics for which less is better turn it round.
        needs: the argument without which it cannot be made.
        cost: forwards (and backwards) over the batch; H heads of one stack, K positions.
        source: paper and year.
        function: ``module:function`` that computes it, called with ``(model, batch, request)``.
        sites: where it can act.
        by: what gets a number: a ``head``, a head at a ``position``, or a key/value head with its query heads (``kv``).
        freeze: what can be held at the unedited run's.
        options: its own options, name -> one line.
    """

    summary: str
    kind: Kind
    quantity: Literal["effect", "contribution", "gate", "score"]
    sense: int
    needs: Needs | None
    cost: str
    source: str
    function: str
    sites: tuple[str, ...] = ("z",)
    by: tuple[str, ...] = ("head",)
    freeze: tuple[str, ...] = ("none",)
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.summary


def _intervention(summary: str, source: str, function: str, *, sites: tuple[str, ...], **options: str) -> Method:
    """A row of an ablation: signed effect of an edit, one forward for each head."""
    return Method(
        summary,
        "exact",
        "effect",
        -1,
        None,
        "H",
        source,
        f"interp.attribution.interventions:{function}",
        sites=sites,
        by=UNITS,
        freeze=FREEZES,
        options=MappingProxyType(options),
    )


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "zero": _intervention(
            "the head's output (or query, key, value) set to 0; off-distribution",
            "Michel, Levy and Neubig, 2019 (arXiv 1905.10650)",
            "zero",
            sites=EVERYWHERE,
        ),
        "mean": _intervention(
            "replaced by its mean over a reference batch, or over the batch's other prompts (mean-self)",
            "Wang et al., 2022 (arXiv 2211.00593)",
            "mean",
            sites=VECTORS,
            positions="True a mean per position, False over positions; by default per position where lengths agree",
        ),
        "resample": _intervention(
            "replaced by what it was on another prompt, drawn once per seed",
            "Chan et al., 2022 (Causal Scrubbing)",
            "resample",
            sites=VECTORS,
        ),
        "uniform": _intervention(
            "made to attend evenly to every visible key",
            "Olsson et al., 2022 (arXiv 2209.11895)",
            "uniform",
            sites=("pattern",),
        ),
        "noise": _intervention(
            "Gaussian noise added to it",
            "Meng et al., 2022 (arXiv 2202.05262)",
            "noise",
            sites=VECTORS,
            std="standard deviation of the noise",
        ),
        "mean_of_others": _intervention(
            "its output replaced by the mean of the other heads of its layer at the same position",
            "V-SEAM, EMNLP 2025",
            "mean_of_others",
            sites=("z",),
            mode="'mean' of the other heads, or 'zero'",
        ),
        "patch": Method(
            "replaced by what it was in another run: clean into corrupted (denoise) or the other way round (noise)",
            "exact",
            "effect",
            1,
            "source",
            "H (by position: H K)",
            "Zhang and Nanda, 2023 (arXiv 2309.16042)",
            "interp.attribution.interventions:patch",
            sites=EVERYWHERE,
            by=UNITS,
            freeze=FREEZES,
        ),
        "all_but_one": Method(
            "every other head of its layer set to 0 (or its mean), so that it is kept alone",
            "exact",
            "effect",
            1,
            None,
            "H",
            "Michel, Levy and Neubig, 2019 (arXiv 1905.10650)",
            "interp.attribution.interventions:all_but_one",
            by=("head", "kv"),
            freeze=FREEZES,
            options=MappingProxyType({"mode": "what the others are replaced by: 'zero' or 'mean' (see mean)"}),
        ),
        "gradient": Method(
            "minus the derivative of the metric along the head's gate: the zero effect to first order",
            "estimate",
            "effect",
            -1,
            None,
            "1 and 1 backward",
            "Michel, Levy and Neubig, 2019 (arXiv 1905.10650)",
            "interp.attribution.gradients:gradient",
            by=UNITS,
        ),
        "gate_gradient_abs": Method(
            "size of the derivative of the metric along the head's gate",
            "estimate",
            "contribution",
            0,
            None,
            "1 and 1 backward",
            "Michel, Levy and Neubig, 2019 (arXiv 1905.10650)",
            "interp.attribution.gradients:gate_gradient_abs",
            by=("head", "kv"),
            options=MappingProxyType(
                {
                    "abs": "where the absolute value is taken: per 'example' or per 'token'",
                    "normalise_layers": "True divides each layer by the l2 norm over its heads",
                }
            ),
        ),
        "attribution_patching": Method(
            "the patch effect to first order: the change of what would be patched, along the gradient",
            "estimate",
            "effect",
            1,
            "source",
            "2 and 1 backward",
            "Nanda, 2023; Syed, Rager and Conmy, 2023 (arXiv 2310.10348)",
            "interp.attribution.attribution_patching:attribution_patching",
            sites=EVERYWHERE,
            by=UNITS,
        ),
        "integrated_gradients": Method(
            "the derivative along the gates, averaged on the way from 0 to 1",
            "estimate",
            "contribution",
            1,
            None,
            "steps, each with 1 backward",
            "Sundararajan, Taly and Yan, 2017 (arXiv 1703.01365)",
            "interp.attribution.integrated:integrated_gradients",
            by=UNITS,
            options=MappingProxyType(
                {
                    "steps": "points of the quadrature",
                    "rule": "'gauss-legendre', 'midpoint', 'trapezoid', 'left' or 'right'",
                    "path": "'joint' moves all gates together, 'each' one while the others stay 1 (H times the cost)",
                }
            ),
        ),
        "direct": Method(
            "direct logit attribution: what the head writes, through the final norm held still and the unembedding",
            "estimate",
            "contribution",
            1,
            None,
            "3 and 1 backward",
            "Elhage et al., 2021; Wang et al., 2022 (arXiv 2211.00593)",
            "interp.attribution.direct:direct",
            by=UNITS,
            options=MappingProxyType(
                {"nonlinear": "where the parts do not sum to the metric: 'refuse', or 'report' the rest"}
            ),
        ),
        "shapley": Method(
            "mean change of the metric as the head joins those before it, over sampled orders",
            "estimate",
            "contribution",
            1,
            None,
            "H for each permutation",
            "Shapley, 1953; Castro, Gomez and Tejada, 2009",
            "interp.attribution.shapley:shapley",
            by=("head", "kv"),
            options=MappingProxyType(
                {
                    "permutations": "how many orders are drawn, or 'all' for at most 12 heads",
                    "antithetic": "True draws orders in pairs, one the reverse of the other",
                }
            ),
        ),
    }
)
