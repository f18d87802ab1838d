"""Gradients, and attention weighted by gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from interp.tracing.kinds import TraceMethod

_ROOM = "interp.tracing.relevance"
_ONE = "one forward, one backward"
_START = "the first layer with attention that counts; 0"
_ANY = (-math.inf, math.inf)

ENTRIES: Mapping[str, TraceMethod] = {
    "chefer2021b": TraceMethod(
        summary="attention times its positive gradients, added up through the layers",
        value="relevance of the source for the target: 1 for itself, plus all weighted ways",
        range=(0.0, math.inf),
        source="Chefer, Gur and Wolf, 2021 (arXiv 2103.15679)",
        function=f"{_ROOM}.through_layers:chefer2021b",
        needs="gradient",
        layered=True,
        forwards=_ONE,
        options=MappingProxyType({"start": _START}),
    ),
    "chefer2021a": TraceMethod(
        summary="positive gradients times the maps' layer-wise relevance, multiplied through the layers",
        value="share of the target that comes from the source",
        range=(0.0, 1.0),
        source="Chefer, Gur and Wolf, 2021 (arXiv 2012.09838)",
        function=f"{_ROOM}.layerwise:chefer2021a",
        needs="gradient",
        layered=True,
        stochastic=True,
        forwards="two forwards, two backwards",
        options=MappingProxyType({"start": _START}),
    ),
    "gradient-rollout": TraceMethod(
        summary="rollout of the maps weighted by their gradients, heads averaged before negatives go",
        value="share of the target that comes from the source",
        range=(0.0, 1.0),
        source="Gildenblat, 2020 (vit-explain)",
        function=f"{_ROOM}.through_layers:gradient_rollout",
        needs="gradient",
        layered=True,
        stochastic=True,
        forwards=_ONE,
        options=MappingProxyType(
            {"start": _START, "discard": "share of the lowest entries of each layer that are set to 0; 0"}
        ),
    ),
    "gradient-attention": TraceMethod(
        summary="gradient times attention, mean over heads, summed over layers; ways through other tokens not followed",
        value="what the metric loses, to first order, as the attention of the target to the source fades (per head)",
        range=_ANY,
        source="after Serrano and Smith, 2019; Barkan et al., 2021",
        function=f"{_ROOM}.through_layers:gradient_attention",
        needs="gradient",
        signed=True,
        layered=True,
        forwards=_ONE,
        options=MappingProxyType({"layer": "this layer alone; the sum over layers by default"}),
    ),
    "gradient": TraceMethod(
        summary="size of the gradient at the inputs",
        value="how strongly the metric answers to what the source puts in",
        range=(0.0, math.inf),
        source="Simonyan, Vedaldi and Zisserman, 2013",
        function=f"{_ROOM}.input_gradients:gradient",
        needs="gradient",
        targets="answer",
        forwards=_ONE,
        options=MappingProxyType({"norm": "l2, l1, or sum (absolute value of the sum over channels); l2"}),
    ),
    "gradient-input": TraceMethod(
        summary="gradient times input, summed over channels",
        value="what the source adds to the metric, to first order",
        range=_ANY,
        source="Shrikumar et al., 2016",
        function=f"{_ROOM}.input_gradients:gradient_input",
        needs="gradient",
        signed=True,
        targets="answer",
        forwards=_ONE,
        options=MappingProxyType({"absolute": "give the absolute value; False"}),
    ),
    "integrated-gradients": TraceMethod(
        summary="gradients averaged on the way from a baseline to the inputs, times the way",
        value="what the source adds to the metric on that way; sources sum to the metric's change",
        range=_ANY,
        source="Sundararajan, Taly and Yan, 2017 (arXiv 1703.01365)",
        function=f"{_ROOM}.integrated_gradients:integrated_gradients",
        needs="gradient",
        signed=True,
        targets="answer",
        forwards="a forward and a backward per step, and two to four forwards",
        options=MappingProxyType(
            {
                "steps": "points on the way; 32",
                "rule": "gauss-legendre, midpoint, trapezoid, left or right; gauss-legendre",
                "baseline": "zero vectors, or what enters of pad or mask tokens; zero",
            }
        ),
    ),
    "class-explanation": TraceMethod(
        summary="where more attention makes what one block of a ViT writes more like the class",
        value="slope of the class's log-probability, read from the block's attention output, along the map",
        range=_ANY,
        source="Vilas, Schaumlöffel and Roig, 2023",
        function=f"{_ROOM}.class_maps:class_explanation",
        needs="gradient",
        signed=True,
        layered=True,
        forwards="four forwards, no backward through the model",
        options=MappingProxyType(
            {
                "layer": "which block, the last by default",
                "of": "the class: answers, or predicted; answers where there are any",
                "grid": "(rows, columns, skip) where the patches are not understood",
            }
        ),
    ),
}
