"""The catalogue of ways of tracing, one file per family; data alone."""

from __future__ import annotations

from interp.tracing.catalogue import flow, occlusion, relevance, rollout, values

FAMILIES = (rollout, flow, relevance, values, occlusion)
