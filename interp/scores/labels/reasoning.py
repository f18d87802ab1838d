"""Types of heads by name: latent reasoning, and what the survey has no class for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.labels.kinds import SURVEY, HeadTest, HeadType

_STAGE = "latent reasoning"
_PROBED = "statements with known truth, and a probe of each head's output (interp.run reads Site.Z)"

TYPES: Mapping[str, HeadType] = MappingProxyType(
    {
        "summary_reader": HeadType(
            "summary_reader",
            _STAGE,
            "reads the sentiment that was gathered at summary positions",
            "Tigges et al., 2023 (arXiv 2310.15154)",
            missing="texts with their summary positions marked",
        ),
        "function_vector": HeadType(
            "function_vector",
            _STAGE,
            "carries the task that examples in the context show",
            "Todd et al., 2024 (arXiv 2310.15213)",
            missing="the same examples with right and with shuffled labels: interp.average_indirect_effect takes both",
        ),
        "induction": HeadType(
            "induction",
            _STAGE,
            "attends to what followed the earlier copy of the token, and says it",
            "Olsson et al., 2022 (arXiv 2209.11895)",
            HeadTest(
                "attention to the token after the earlier copy",
                "interp.scores.labels.repeats:induction",
                "repeats",
                "the same places with the second half shuffled",
                "repeats",
                "helps",
                weight="ov_copying",
                weight_is="positive",
            ),
        ),
        "in_context": HeadType(
            "in_context",
            _STAGE,
            "compares the query with the examples and brings in the labels of those alike",
            "Yu and Ananiadou, 2024 (arXiv 2402.02872)",
            missing="examples with labels, the places of the labels, and a measure of how alike two examples are",
        ),
        "truthfulness": HeadType(
            "truthfulness",
            _STAGE,
            "its output tells true statements from false ones",
            "Li et al., 2023 (arXiv 2306.03341)",
            missing=_PROBED,
        ),
        "accuracy": HeadType(
            "accuracy",
            _STAGE,
            "its output tells right answers from wrong ones",
            SURVEY,
            missing=_PROBED,
        ),
        "consistency": HeadType(
            "consistency",
            _STAGE,
            "keeps answers to the same question alike",
            SURVEY,
            missing="several wordings of each question",
        ),
        "vulnerable": HeadType(
            "vulnerable",
            _STAGE,
            "is misled by changes of the input that should not matter",
            SURVEY,
            missing="pairs of prompts that differ in what should not matter",
        ),
        "correct_letter": HeadType(
            "correct_letter",
            _STAGE,
            "in multiple choice, attends to the right option and raises it",
            "Lieberum et al., 2023 (arXiv 2307.09458)",
            HeadTest(
                "attention from the answer's row to the right option, above the mean of the others",
                "interp.scores.labels.options:correct_letter",
                "given",
                "another option taken for the right one, drawn at random",
                "given",
                "helps",
                more_spans="option",
            ),
        ),
        "iteration": HeadType(
            "iteration",
            _STAGE,
            "carries a state from one step of a chain of thought to the next",
            "Cabannes et al., 2024 (arXiv 2406.02128)",
            missing="iterated tasks with their states written out token by token",
        ),
        "successor": HeadType(
            "successor",
            _STAGE,
            "turns a token into the next of its order: Monday into Tuesday",
            "Gould et al., 2023 (arXiv 2312.09230)",
            missing="ordered tokens that the tokenizer has: days, months, numbers",
        ),
        "suppression": HeadType(
            "suppression",
            _STAGE,
            "attends to a wrong answer where it stands in the prompt, and keeps it from being said",
            "Wang et al., 2022 (arXiv 2211.00593); McDougall et al., 2023 (arXiv 2310.04625)",
            HeadTest(
                "attention from the answer's row to earlier copies of the wrong answers",
                "interp.scores.labels.answers:suppression",
                "given",
                "the places of other prompts",
                "given",
                "helps",
                weight="ov_copying",
                weight_is="negative",
            ),
        ),
    }
)

OUTSIDE: Mapping[str, HeadType] = MappingProxyType(
    {
        "sink": HeadType(
            "sink",
            "outside the survey",
            "rests on the first token where it has nothing to look at",
            "Gu et al., 2024 (arXiv 2410.10781); Xiao et al., 2023 (arXiv 2309.17453)",
            HeadTest(
                "mean attention to the first token, the first row left out",
                "interp.scores.labels.places:sink",
                "random",
                "its attention to other fixed places",
                "given",
                "either",
                removal="first key",
            ),
        ),
    }
)
