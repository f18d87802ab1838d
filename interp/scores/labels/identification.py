"""Types of heads by name: in-context identification, by structure, by syntax and by meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.labels.kinds import SURVEY, HeadTest, HeadType

_STAGE = "in-context identification"
_IOI = "Wang et al., 2022 (arXiv 2211.00593)"
_FACTS = "Chughtai, Cooney and Nanda, 2024 (arXiv 2402.07321)"
_REASSIGNED = "the places of other prompts"


def _span(name: str, summary: str, source: str) -> HeadType:
    """A type that is told by attention from the answer's row to a span that the user names."""
    return HeadType(
        name,
        _STAGE,
        summary,
        source,
        HeadTest(
            f"attention from the answer's row to the span {name!r}",
            f"interp.scores.labels.answers:{name}",
            "given",
            _REASSIGNED,
            "given",
            "helps",
            spans=(name,),
        ),
    )


STRUCTURAL: Mapping[str, HeadType] = MappingProxyType(
    {
        "previous": HeadType(
            "previous",
            _STAGE,
            "attends to the token before",
            "Olsson et al., 2022 (arXiv 2209.11895)",
            HeadTest(
                "attention to the token before",
                "interp.scores.labels.places:previous",
                "random",
                "its attention to tokens further back",
                "repeats",
                "helps",
            ),
        ),
        "positional": HeadType(
            "positional",
            _STAGE,
            "attends to a fixed place or distance, whatever the tokens",
            "Voita et al., 2019 (arXiv 1905.09418)",
            HeadTest(
                "mean attention to the one place, or distance, that it attends to most, where that is not the token "
                "itself, the one before (label previous) or the first (label sink)",
                "interp.scores.labels.places:positional",
                "random",
                "the same with the keys of each row in random order",
                "given",
                "either",
            ),
        ),
        "rare_words": HeadType(
            "rare_words",
            _STAGE,
            "attends to the least frequent tokens of a text",
            "Voita et al., 2019 (arXiv 1905.09418)",
            missing="how frequent each token is in the text that the model was trained on",
        ),
        "duplicate": HeadType(
            "duplicate",
            _STAGE,
            "attends to earlier copies of the same token",
            _IOI,
            HeadTest(
                "attention to the earlier copy of the same token",
                "interp.scores.labels.repeats:duplicate",
                "repeats",
                "the same places with the second half shuffled",
                "repeats",
                "helps",
            ),
        ),
        "retrieval": HeadType(
            "retrieval",
            _STAGE,
            "attends to the token of a long context that is to be said next",
            "Wu et al., 2024 (arXiv 2404.15574)",
            HeadTest(
                "attention from the answer's row to where the answer stands in the span 'needle'",
                "interp.scores.labels.answers:retrieval",
                "given",
                _REASSIGNED,
                "given",
                "helps",
                weight="ov_copying",
                weight_is="positive",
                spans=("needle",),
            ),
        ),
        "global_retrieval": HeadType(
            "global_retrieval",
            _STAGE,
            "gathers everything of a long context that bears on the question",
            SURVEY,
            missing="contexts with several needles that must be combined, and where each stands",
        ),
    }
)

SYNTACTIC: Mapping[str, HeadType] = MappingProxyType(
    {
        "syntactic": HeadType(
            "syntactic",
            _STAGE,
            "attends along dependencies: subject, object, adverb",
            "Voita et al., 2019 (arXiv 1905.09418)",
            missing="parsed text: relation pairs per prompt, for which interp.score has relation-binned attention",
        ),
        "subword_merge": HeadType(
            "subword_merge",
            _STAGE,
            "attends to the earlier pieces of the same word",
            SURVEY,
            missing="words of several tokens, a tokenizer that marks where words begin, and a task on those words",
        ),
        "name_mover": HeadType(
            "name_mover",
            _STAGE,
            "attends to the answer where it stands in the prompt, and raises it",
            _IOI,
            HeadTest(
                "attention from the answer's row to earlier copies of the right answer, where induction would not look",
                "interp.scores.labels.answers:name_mover",
                "given",
                _REASSIGNED,
                "given",
                "helps",
                weight="ov_copying",
                weight_is="positive",
            ),
        ),
        "backup_name_mover": HeadType(
            "backup_name_mover",
            _STAGE,
            "moves the answer when the name movers are silent",
            _IOI,
            missing="the name movers ablated first: interp.head_pairs of a name mover and another head shows it",
        ),
        "letter_mover": HeadType(
            "letter_mover",
            _STAGE,
            "attends to the first letter of a word of an acronym and says it",
            "García-Carrasco, Maté and Trujillo, 2024 (arXiv 2405.04156)",
            missing="prompts of words and acronyms in which every letter is a token",
        ),
        "negative_name_mover": HeadType(
            "negative_name_mover",
            _STAGE,
            "attends to the answer where it stands in the prompt, and lowers it",
            _IOI,
            HeadTest(
                "attention from the answer's row to earlier copies of the right answer, where induction would not look",
                "interp.scores.labels.answers:name_mover",
                "given",
                _REASSIGNED,
                "given",
                "hurts",
                weight="ov_copying",
                weight_is="negative",
            ),
        ),
    }
)

SEMANTIC: Mapping[str, HeadType] = MappingProxyType(
    {
        "context": _span(
            "context", "attends to the evidence of the context and brings it in", "Jin et al., 2024 (arXiv 2402.18154)"
        ),
        "content_gatherer": _span(
            "content_gatherer",
            "moves the tokens that bear on the answer to where it is said",
            "Lieberum et al., 2023 (arXiv 2307.09458)",
        ),
        "sentiment_summarizer": HeadType(
            "sentiment_summarizer",
            _STAGE,
            "gathers words of sentiment at commas and ends of sentences",
            "Tigges et al., 2023 (arXiv 2310.15154)",
            missing="texts with their words of sentiment and their summary positions marked",
        ),
        "semantic_induction": HeadType(
            "semantic_induction",
            _STAGE,
            "on seeing a token, raises tokens that are related to what it attends to",
            "Ren et al., 2024 (arXiv 2402.13055)",
            missing="pairs of tokens with a known relation between them",
        ),
        "subject": _span("subject", "attends to the subject of a fact and gives its attributes", _FACTS),
        "relation": _span("relation", "attends to the relation that is asked for and raises fitting answers", _FACTS),
    }
)

TYPES: Mapping[str, HeadType] = MappingProxyType({**STRUCTURAL, **SYNTACTIC, **SEMANTIC})
