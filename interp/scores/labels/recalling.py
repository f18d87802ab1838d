"""Types of heads by name: knowledge recalling."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.labels.kinds import HeadTest, HeadType

_STAGE = "knowledge recalling"
_CHOICE = "Lieberum et al., 2023 (arXiv 2307.09458)"

TYPES: Mapping[str, HeadType] = MappingProxyType(
    {
        "associative_memory": HeadType(
            "associative_memory",
            _STAGE,
            "its weights hold pairs of inputs and outputs as sums of outer products",
            "Bietti et al., 2023 (arXiv 2306.00802)",
            missing="the pairs that the weights should hold, as two lists of embeddings",
        ),
        "memory": HeadType(
            "memory",
            _STAGE,
            "says what the model remembers against what the context says",
            "Jin et al., 2024 (arXiv 2402.18154)",
            missing="prompts whose context contradicts an answer that the model knows, with both answers checked",
        ),
        "constant": HeadType(
            "constant",
            _STAGE,
            "in multiple choice, attends to all options alike",
            _CHOICE,
            HeadTest(
                "attention from the answer's row that lies evenly on the options: n times the least of them",
                "interp.scores.labels.options:constant",
                "given",
                "as many other keys drawn at random",
                "given",
                "either",
                more_spans="option",
            ),
        ),
        "single_letter": HeadType(
            "single_letter",
            _STAGE,
            "in multiple choice, attends to one and the same option whatever it says",
            _CHOICE,
            HeadTest(
                "attention from the answer's row to the option that it favours over all prompts, above the mean option",
                "interp.scores.labels.options:single_letter",
                "given",
                "the options of each prompt exchanged at random",
                "given",
                "either",
                more_spans="option",
            ),
        ),
        "negative": HeadType(
            "negative",
            _STAGE,
            "in yes-or-no questions, leans towards the negative candidate",
            "Yu et al., 2024, as given in the survey (arXiv 2409.03752)",
            HeadTest(
                "the negative attention score: sum over rows of (yes + no) log(no / yes)",
                "interp.scores.labels.options:negative",
                "given",
                "yes and no exchanged in prompts drawn at random",
                "given",
                "either",
                spans=("yes", "no"),
            ),
        ),
    }
)
