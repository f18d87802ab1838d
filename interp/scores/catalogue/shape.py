"""Scores by name: the shape of a map, whatever stands at the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

_ROWS = "padding never counts; BOS is an ordinary key, and sinks dominate (see exclude_sinks); empty rows are left out"
_FIRST = f"{_ROWS}; the first row counts"
_TWO = f"{_ROWS}; rows that see one key are left out"
_MORE = f"{_ROWS}; rows that see no more keys than asked for are left out"
_MAP = "padding never counts; BOS is an ordinary key; the value grows or falls with the length: compare equal lengths"
_GRAPH = "real tokens are nodes; BOS is one of them; no token has an edge to itself"

_QUERIES = "rows that count: a group, or name -> group for one number per class of rows; all"
_THETAS = "thresholds of (A_ij + A_ji) / 2, one number for each; 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2"
_UNIFORM = "take off what a uniform row over the visible keys gives; False"
_LONGEST = "longest prompt taken, in tokens; 1024"
_SHARE = "divide by the number of visible keys, rows with one key left out; False"
_TOP = "a number of keys, or a share of the visible ones; 5"

_ENTROPY = "Zhai et al., 2023 (Preventing Attention Entropy Collapse)"
_LIMITS = "Limitations of Normalization in Attention Mechanism, 2025"
_INDICATORS = "Deconstructing Attention, 2025"
_FRAMES = "What are you sinking?, 2025, by a replication"
_INFORMATION = "Park et al., 2023 (What Do Self-Supervised Vision Transformers Learn?)"
_CURVE = {"thetas": _THETAS, "minus_uniform": _UNIFORM}
_HELD = {**_CURVE, "most_tokens": _LONGEST}

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "entropy": Score(
            "mean entropy of a head's rows, in nats",
            "log of the number of visible keys: looks everywhere alike; 0: at one key",
            (0.0, math.inf),
            _ENTROPY,
            "pass",
            "elementwise",
            "interp.scores.shape.entropy:entropy",
            _FIRST,
            options={"normalised": "divide by log of the visible keys, rows with one key left out; False",
                     "queries": _QUERIES},
        ),
        "normalised_entropy": Score(
            "mean over rows of entropy divided by the logarithm of the number of visible keys",
            "1: looks at all keys alike; 0: at one",
            (0.0, 1.0),
            _ENTROPY,
            "pass",
            "elementwise",
            "interp.scores.shape.entropy:normalised_entropy",
            _TWO,
            options={"queries": _QUERIES},
        ),
        "entropy_bound": Score(
            "mean over rows of the least entropy that logits of their size allow, in nats",
            "large: the logits are too small for a sharp row; 0: they set no bound",
            (0.0, math.inf),
            _ENTROPY,
            "pass",
            "elementwise",
            "interp.scores.shape.entropy_bound:entropy_bound",
            _FIRST,
            options={"version": "rows (each row's own logits) or matrix (||Q|| ||K||); rows", "queries": _QUERIES},
        ),
        "effective_support": Score(
            "mean over rows of exp(entropy): how many keys a row spreads over",
            "the number of visible keys: looks everywhere alike; 1: at one key (over their number with share=True)",
            (0.0, math.inf),
            _LIMITS,
            "pass",
            "elementwise",
            "interp.scores.shape.support:effective_support",
            _FIRST,
            options={"share": _SHARE, "queries": _QUERIES},
        ),
        "participation_ratio": Score(
            "mean over rows of 1 / sum of squares: how many keys a row spreads over",
            "the number of visible keys: looks everywhere alike; 1: at one key (over their number with share=True)",
            (0.0, math.inf),
            _LIMITS,
            "pass",
            "elementwise",
            "interp.scores.shape.support:participation_ratio",
            _FIRST,
            options={"share": _SHARE, "queries": _QUERIES},
        ),
        "top_mass": Score(
            "mean mass on the n keys that have most of it",
            "1: a row is made of n keys",
            (0.0, 1.0),
            _LIMITS,
            "pass",
            "select",
            "interp.scores.shape.support:top_mass",
            _MORE,
            options={"n": _TOP, "queries": _QUERIES},
        ),
        "keys_for_mass": Score(
            "mean number of keys that together hold a share of a row's mass",
            "large: the mass is spread; 1: one key holds it",
            (1.0, math.inf),
            _LIMITS,
            "pass",
            "select",
            "interp.scores.shape.support:keys_for_mass",
            _FIRST,
            options={"mass": "the share, above 0 and below 1; 0.9", "queries": _QUERIES},
        ),
        "separability": Score(
            "share of the n keys with most mass that lie closer to their sum than every other key does",
            "1: what is selected stands apart from the rest",
            (0.0, 1.0),
            f"{_LIMITS}; the share is ours",
            "pass",
            "select",
            "interp.scores.shape.selectivity:separability",
            _MORE,
            options={"n": _TOP, "of": "value (the head's) or residual (before the layer); value", "queries": _QUERIES},
        ),
        "softmax_jacobian": Score(
            "mean over rows of the spectral norm of the softmax's Jacobian",
            "1/2 over the temperature: torn between two keys; 0: one key has everything",
            (0.0, math.inf),
            _LIMITS,
            "pass",
            "elementwise",
            "interp.scores.shape.selectivity:softmax_jacobian",
            _FIRST,
            options={"temperature": "tau, by which the norm is divided; 1", "queries": _QUERIES},
        ),
        "concentration": Score(
            "Frobenius norm of a head's map",
            "the root of the number of rows: every row looks at one key",
            (0.0, math.inf),
            _INDICATORS,
            "pass",
            "elementwise",
            "interp.scores.shape.concentration:concentration",
            _MAP,
            options={"share": "divide by the root of the number of rows; False"},
        ),
        "head_diversity": Score(
            "mean over visible pairs of the standard deviation between a layer's heads",
            "large: the heads of the layer look at different keys; 0: all alike",
            (0.0, 0.5),
            _INDICATORS,
            "pass",
            "elementwise",
            "interp.scores.shape.concentration:head_diversity",
            f"{_MAP}; NaN at a layer with one head",
            shape="layer",
        ),
        "nmi": Score(
            "normalised mutual information of query and key",
            "1: every query looks at a key of its own (local); 0: all look alike (global, or a sink)",
            (0.0, 1.0),
            _INFORMATION,
            "pass",
            "elementwise",
            "interp.scores.shape.mutual_information:nmi",
            f"{_ROWS}; the mask of a causal map makes some by itself (see nmi_above_uniform)",
        ),
        "nmi_above_uniform": Score(
            "normalised mutual information of query and key, less that of uniform rows on the same keys",
            "large: what is looked at depends on the query beyond what the mask does; below 0: a shared sink",
            (-1.0, 1.0),
            f"{_INFORMATION}; the difference is ours",
            "pass",
            "elementwise",
            "interp.scores.shape.mutual_information:nmi_above_uniform",
            _ROWS,
        ),
        "hub_centralisation": Score(
            "degree centralisation of the graph of a map, a curve over thresholds",
            "1: a star around one token; 0: all tokens alike",
            (0.0, 1.0),
            f"{_FRAMES}; Freeman, 1978",
            "pass",
            "elementwise",
            "interp.scores.shape.hubs:hub_centralisation",
            f"{_GRAPH}; NaN below three tokens; maps that are not causal are held whole, up to 1024 tokens",
            shape="profile",
            options=_CURVE,
        ),
        "star_likeness": Score(
            "share of the edges of a map's graph that touch its largest hub, a curve over thresholds",
            "1: every edge ends at one token",
            (0.0, 1.0),
            _FRAMES,
            "pass",
            "elementwise",
            "interp.scores.shape.hubs:star_likeness",
            f"{_GRAPH}; NaN without edges; maps that are not causal are held whole, up to 1024 tokens",
            shape="profile",
            options=_CURVE,
        ),
        "fiedler_value": Score(
            "second smallest Laplacian eigenvalue of a map's graph, a curve over thresholds",
            "large: the graph is hard to cut; 1: a star; 0: it falls into parts",
            (0.0, math.inf),
            _FRAMES,
            "pass",
            "sort",
            "interp.scores.shape.hubs:fiedler_value",
            f"{_GRAPH}; one layer's maps are held whole; NaN for one token",
            shape="profile",
            options=_HELD,
        ),
        "connected_parts": Score(
            "number of connected parts of a map's graph (Betti-0), a curve over thresholds",
            "large: many tokens stand apart; 1: all hang together",
            (1.0, math.inf),
            _FRAMES,
            "pass",
            "sort",
            "interp.scores.shape.hubs:connected_parts",
            f"{_GRAPH}; one layer's maps are held whole",
            shape="profile",
            options=_HELD,
        ),
        "cycle_rank": Score(
            "number of independent cycles of a map's graph, a curve over thresholds",
            "large: many ways between tokens; 0: a tree, such as a star",
            (0.0, math.inf),
            _FRAMES,
            "pass",
            "sort",
            "interp.scores.shape.hubs:cycle_rank",
            f"{_GRAPH}; one layer's maps are held whole",
            shape="profile",
            options=_HELD,
        ),
        "row_distance": Score(
            "root mean square Hellinger distance between two rows of a map",
            "1: no two rows share a key; 0: all rows are the same (one frame of reference)",
            (0.0, 1.0),
            f"{_FRAMES}; the mean over pairs is ours",
            "pass",
            "elementwise",
            "interp.scores.shape.frames:row_distance",
            f"{_ROWS}; causal rows see different keys",
        ),
        "hub_count": Score(
            "how many tokens are among the largest entries of enough of the other queries that see them",
            "1: one hub (centralised); several: distributed; 0: none",
            (0.0, math.inf),
            f"{_FRAMES}; its constants are a third party's",
            "pass",
            "select",
            "interp.scores.shape.frames:hub_count",
            f"{_GRAPH}; the last tokens are seen by few queries, and those decide",
            options={"percentile": "of a row's visible entries, as a share; 0.9",
                     "share": "of the other queries that see the token; 0.4"},
        ),
        "layer_similarity": Score(
            "similarity of a head's map to that of its partner in the attention layer before",
            "1: the same map again",
            (0.0, 1.0),
            "EchoAtt, 2024 (dense); HyLRA (top-k); partners by the Hungarian method are ours",
            "layers",
            "elementwise",
            "interp.scores.shape.similarity:layer_similarity",
            "padding never counts; sinks make everything look alike: see exclude_sinks; NaN at the first layer",
            options={"measure": "cosine, jsd or top_k; cosine",
                     "k": "of top_k; 8",
                     "queries": "rows of each prompt, evenly spread; all",
                     "entries": "of all layers' maps held at once, which sets the number of forwards; 2**23"},
            forwards="one for every `entries` (2**23) of prompts x rows x keys x heads of all layers: they grow with "
            "the square of the length; 12 layers of 12 heads take 1 for 200 tokens, 288 for 4096 (fewer with queries=)",
        ),
    }
)  # fmt: skip
