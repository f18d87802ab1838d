"""Types of heads by name: expression preparation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.labels.kinds import SURVEY, HeadType

_STAGE = "expression preparation"

TYPES: Mapping[str, HeadType] = MappingProxyType(
    {
        "mixed": HeadType(
            "mixed",
            _STAGE,
            "writes what comes from the subject and from the relation together",
            "Chughtai, Cooney and Nanda, 2024 (arXiv 2402.07321)",
            missing="a head's result split by source token: subject and relation spans with interp.direct_attribution",
        ),
        "amplification": HeadType(
            "amplification",
            _STAGE,
            "makes stronger what is already at the last token",
            "Lieberum et al., 2023 (arXiv 2307.09458)",
            missing="the answer's share of the residual stream before and after the head",
        ),
        "correct": HeadType(
            "correct",
            _STAGE,
            "raises the label of the option that the model found",
            SURVEY,
            missing="multiple choice with the labels' letters exchanged, so that letter and content can be told apart",
        ),
        "coherence": HeadType(
            "coherence",
            _STAGE,
            "keeps the output in the language of the input",
            SURVEY,
            missing="parallel prompts in several languages",
        ),
        "faithfulness": HeadType(
            "faithfulness",
            _STAGE,
            "keeps a chain of thought true to how the answer is found",
            SURVEY,
            missing="chains of thought that are known to be faithful or not",
        ),
    }
)
