"""What happens to the answer when tokens are taken away."""

from __future__ import annotations

import math
from collections.abc import Mapping

from interp.tracing.kinds import TraceMethod

_CHANGE = "signed (m of the whole - m without), absolute, or sva (|change of p_right - p_wrong|); signed"
_GRID = "(rows, columns, skip) of the patches where it is not known; found by default"
_SIZE = "prompts in one forward; by their length"
_REPLACEMENT = "an id, a token, mask, unk or pad; the mask token, else the unknown token"
_FILL = "what covers a patch: mean, zero, blur or a number; mean"

ENTRIES: Mapping[str, TraceMethod] = {
    "blank-out": TraceMethod(
        summary="each token replaced by one that says nothing, each patch covered, one at a time",
        value="how much the metric falls when the source is replaced; positive where it speaks for the answer",
        range=(-math.inf, math.inf),
        source="Abnar and Zuidema, 2020; Zeiler and Fergus, 2014, for images",
        function="interp.tracing.occlusion.single:blank_out",
        needs="edits",
        signed=True,
        targets="answer",
        forwards="one forward per source, many in one batch",
        options={
            "replacement": _REPLACEMENT,
            "change": _CHANGE,
            "fill": _FILL,
            "grid": _GRID,
            "batch_size": _SIZE,
        },
    ),
    "occlusion": TraceMethod(
        summary="each token hidden from all others in every layer, one at a time",
        value="how much the metric falls when the source is hidden; positive where it speaks for the answer",
        range=(-math.inf, math.inf),
        source="attention knockout of one key: Geva et al., 2023",
        function="interp.tracing.occlusion.single:occlusion",
        needs="edits",
        signed=True,
        targets="answer",
        forwards="one forward per source, many in one batch",
        options={"change": _CHANGE, "grid": _GRID, "batch_size": _SIZE},
    ),
    "leave-one-out": TraceMethod(
        summary="each token taken out of the prompt, one at a time",
        value="how much the metric falls when the token is taken out; positive where it speaks for the answer",
        range=(-math.inf, math.inf),
        source="Li, Monroe and Jurafsky, 2016",
        function="interp.tracing.occlusion.single:leave_one_out",
        needs="edits",
        signed=True,
        targets="answer",
        forwards="one forward per token, many in one batch",
        options={"change": _CHANGE, "grid": _GRID, "batch_size": _SIZE},
    ),
    "lime": TraceMethod(
        summary="a linear fit of the metric on which tokens are there, over random sets of them",
        value="how much the metric rises where the source is there; positive where it speaks for the answer",
        range=(-math.inf, math.inf),
        source="Ribeiro et al., 2016",
        function="interp.tracing.occlusion.lime:lime",
        needs="edits",
        signed=True,
        targets="answer",
        forwards="one forward per sample, many in one batch",
        options={
            "samples": "random sets of tokens; 1000",
            "by": "hide, replace or remove; hide",
            "width": "of the kernel over cosine distances; 0.25",
            "ridge": "penalty of the fit; 0.001",
            "replacement": _REPLACEMENT,
            "fill": _FILL,
            "grid": _GRID,
            "batch_size": _SIZE,
        },
    ),
}
