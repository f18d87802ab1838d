"""What an experiment may put in place of a head's output; the names that configs use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "mean": "ablation: z becomes its mean over other prompts of the same kind, position by position",
        "resample": "ablation: z comes from another prompt of the same kind, drawn from the seed",
        "zero": "ablation: z becomes 0; off-distribution, so effects can be larger than what the head carries",
    }
)
