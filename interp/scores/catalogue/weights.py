"""Scores by name: weights alone, no prompt is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score, Shape, Where

_COUNTS = "no prompt is read: BOS, padding, first rows and excluded sinks mean nothing here"
_RANK = "On the Benefits of Rank in Attention Layers, 2024"
_EFFECTIVE = f"{_RANK}; the effective rank of Roy and Vetterli, 2007"
_REASONING = "Generalization or Hallucination? Understanding Out-of-Context Reasoning in Transformers, 2025"
_CIRCUITS = "Elhage et al., A Mathematical Framework for Transformer Circuits, 2021"
_FOLD = (
    "what of the norms is folded into the matrices: 'gain', 'norm' (the mean of a LayerNorm as well) or 'none'; 'gain'"
)
_DISTANCES = "how many positions before the query the key stands, where rotary embeddings make W_QK depend on it; (0,)"
_AVERAGE = "over several distances: 'scores' the mean of each form's score, 'forms' the mean form's score; 'scores'"
_QK = {"distances": _DISTANCES, "average": _AVERAGE, "fold": _FOLD}
_OV = {"fold": _FOLD}
_TOP = {"k": "how many singular values; 16", "normalise": "divide by the sum of all of them; False"}
_EIGEN = "'trace': sum Re l / sum |l|; 'positive': the share with a positive real part; 'trace'"


def _entry(
    summary: str,
    direction: str,
    limits: tuple[float, float],
    source: str,
    function: str,
    options: Mapping[str, str],
    *,
    shape: Shape = "head",
    where: Where = "any",
) -> Score:
    return Score(
        summary,
        direction,
        limits,
        source,
        "weights",
        "none",
        f"interp.scores.weights.{function}",
        _COUNTS,
        where=where,
        shape=shape,
        options=MappingProxyType(dict(options)),
    )


def _composition(kind: str, what: str) -> Score:
    return _entry(
        f"the strongest {what}-composition with any head of an earlier layer",
        f"large: its {what} form reads what an earlier head writes; 1 / sqrt(d_model) is what rotations give by chance",
        (0.0, 1.0),
        _CIRCUITS,
        f"composition_heads:{kind}_composition",
        {
            "statistic": "'max' or 'mean' over the other heads; 'max'",
            "side": "'in' as the later head, 'out' as the earlier one; 'in'",
            "fold": _FOLD,
        },
    )


ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "qk_stable_rank": _entry(
            "stable rank of W_Q W_K^T: ||W||_F^2 / ||W||_2^2",
            "1: one direction decides; d_head: all directions weigh the same",
            (1.0, math.inf),
            _RANK,
            "spectra:qk_stable_rank",
            _QK,
        ),
        "qk_effective_rank": _entry(
            "effective rank of W_Q W_K^T: exp of the entropy of its singular values",
            "1: one direction decides; d_head: all directions weigh the same",
            (1.0, math.inf),
            _EFFECTIVE,
            "spectra:qk_effective_rank",
            _QK,
        ),
        "qk_spectrum": _entry(
            "largest singular values of W_Q W_K^T",
            "large: queries and keys along this pair of directions weigh much",
            (0.0, math.inf),
            _RANK,
            "spectra:qk_spectrum",
            {**_TOP, **_QK},
            shape="profile",
        ),
        "qk_distance_share": _entry(
            "share of W_Q W_K^T that changes with the distance between query and key",
            "1: looks at places; 0: looks at content alone (always 0 without rotary embeddings)",
            (0.0, 1.0),
            "this library's definition, on the rotary embedding of Su et al., 2021 (arXiv 2104.09864)",
            "spectra:qk_distance_share",
            {"distances": "at least two numbers of positions; 0 to 63", "fold": _FOLD},
        ),
        "qk_copying": _entry(
            "eigenvalues of the token-to-token circuit W_E W_Q W_K^T W_E^T: sum Re l / sum |l|",
            "1: queries look for keys of their own token; -1: for all others",
            (-1.0, 1.0),
            _CIRCUITS,
            "ov_copying:qk_copying",
            {"distances": _DISTANCES, "statistic": _EIGEN, "fold": _FOLD},
            where="text",
        ),
        "ov_stable_rank": _entry(
            "stable rank of W_V W_O: ||W||_F^2 / ||W||_2^2",
            "1: writes one direction; d_head: all directions weigh the same",
            (1.0, math.inf),
            _RANK,
            "spectra:ov_stable_rank",
            _OV,
        ),
        "ov_effective_rank": _entry(
            "effective rank of W_V W_O: exp of the entropy of its singular values",
            "1: writes one direction; d_head: all directions weigh the same",
            (1.0, math.inf),
            f"{_REASONING}; {_EFFECTIVE}",
            "spectra:ov_effective_rank",
            _OV,
        ),
        "ov_nuclear_norm": _entry(
            "nuclear norm of W_V W_O over its Frobenius norm",
            "1: writes one direction; sqrt(d_head): all directions weigh the same",
            (1.0, math.inf),
            _REASONING,
            "spectra:ov_nuclear_norm",
            _OV,
        ),
        "ov_spectrum": _entry(
            "largest singular values of W_V W_O",
            "large: what is read along this direction is written out strongly",
            (0.0, math.inf),
            _RANK,
            "spectra:ov_spectrum",
            {**_TOP, **_OV},
            shape="profile",
        ),
        "ov_copying": _entry(
            "eigenvalues of the token-to-logit circuit W_E W_V W_O W_U: sum Re l / sum |l|",
            "1: raises the logit of what it looks at; -1: lowers it; about 0 for random heads",
            (-1.0, 1.0),
            _CIRCUITS,
            "ov_copying:ov_copying",
            {"statistic": _EIGEN, "fold": _FOLD},
            where="text",
        ),
        "q_composition": _composition("q", "query"),
        "k_composition": _composition("k", "key"),
        "v_composition": _composition("v", "value"),
    }
)
