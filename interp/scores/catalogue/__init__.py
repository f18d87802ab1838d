"""The catalogue of head scores, one file per family; data alone."""

from __future__ import annotations

from interp.scores.catalogue import answers, divergence, groups, long_context, position, shape, sinks, weights, writes

FAMILIES = (position, shape, sinks, groups, long_context, divergence, writes, answers, weights)
