"""The methods that ``circuits list methods`` shows, and those that the induction experiment may ablate with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.attribution.methods import METHODS as ATTRIBUTION

GATES: Mapping[str, str] = MappingProxyType(
    {
        "causal_head_gating": "a learned gate per head, pulled open and shut: facilitation, interference, irrelevance",
        "contrastive_gating": "a learned gate per head that keeps one format of the same items and loses another",
    }
)
METHODS: Mapping[str, str] = MappingProxyType({name: row.summary for name, row in ATTRIBUTION.items()} | dict(GATES))

REPLACEMENTS: Mapping[str, str] = MappingProxyType(
    {
        "mean": "z becomes its mean over other prompts of the same kind, position by position",
        "resample": "z comes from another prompt of the same kind, drawn from the seed",
        "zero": "z becomes 0; off-distribution, so effects can be larger than what the head carries",
    }
)
