"""Scores by name: long context."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

_FOCUS = "Zhu et al., 2025 (Focus Directions, arXiv 2503.23306)"
_ADAPTIVE = "Unveiling Simplicities of Attention, 2025 (arXiv 2502.09647), formula as reconstructed"
_ANSWER = "padding never counts; BOS is an ordinary key; only the answer's rows are computed"
_FAR = "padding never counts; the first tokens are the sink; rows without far keys do not count"
_ANSWER_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "gold": "the span of the document that holds the answer; 'gold'",
        "answer": "the answer's tokens; 'generated'",
        "rows": "'answer': rows of the answer's own tokens; 'predicting': one to the left",
    }
)
_WINDOWS: Mapping[str, str] = MappingProxyType(
    {
        "queries": "the query rows; all with far keys",
        "sink_tokens": "first tokens that are local to every query; 16 (reported of the paper)",
        "local_tokens": "last tokens that are local; 128 (ours)",
        "threshold": "share of the mass from which on a query is local; 0.5 (ours)",
    }
)

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "retrieval": Score(
            "share of a needle's tokens that a head copies while the answer at the prompt's end is read",
            "1: each token of the needle is looked at most when it is said; from 0.1 on a retrieval head",
            (0.0, float("inf")),
            "Wu et al., 2024 (arXiv 2404.15574)",
            "pass",
            "select",
            "interp.scores.long_context.retrieval:retrieval",
            "only rows that predict the answer count; BOS is an ordinary key, and a head that looks there most copies "
            "nothing; at most 1 with count='set', more with count='count' where the answer says a token twice",
            where="causal",
            options=MappingProxyType(
                {
                    "needle": "the tokens to be copied: a span's name, an int, a slice or columns; 'needle' by default",
                    "answer": "the answer's tokens, after the needle; 'answer' by default",
                    "count": "'set' every needle position once (default); 'count' every step",
                    "top_k": "how many of a row's largest entries may be the one copied; 1 by default",
                }
            ),
        ),
        "retrieval_generated": Score(
            "the retrieval score while the model writes its own greedy answer, on prompts it answers",
            "1: each token of the needle is looked at most when it is said; from 0.1 on a retrieval head",
            (0.0, float("inf")),
            "Wu et al., 2024 (arXiv 2404.15574)",
            "generation",
            "select",
            "interp.scores.long_context.retrieval:retrieval_generated",
            "only rows that predict the answer count; BOS is an ordinary key; prompts whose answer says too little of "
            "the needle are NaN",
            where="causal",
            options=MappingProxyType(
                {
                    "needle": "the tokens to be copied: a span's name, an int, a slice or columns; 'needle' by default",
                    "count": "'set' every needle position once (default); 'count' every step",
                    "top_k": "how many of a row's largest entries may be the one copied; 1 by default",
                    "max_new_tokens": "the longest answer; 50 by default",
                    "stop": "text before which the answer ends; a line break by default, None for none",
                    "recall_over": "a prompt counts where the ROUGE-1 recall of the needle is larger; 0.5 by default",
                    "stem": "compare stems of words, by simple rules of our own; off by default",
                }
            ),
            forwards="one greedy generation and one forward of prompt and answer",
        ),
        "contextual": Score(
            "attention of an answer's rows to the document that holds the answer",
            "1: looks at that document only",
            (0.0, 1.0),
            _FOCUS,
            "pass",
            "linear",
            "interp.scores.long_context.contextual:contextual",
            _ANSWER,
            where="text",
            options=_ANSWER_OPTIONS,
        ),
        "contextual_companions": Score(
            "attention of an answer's rows to the gold document, the others, the largest other, and the first tokens",
            "1: looks there only",
            (0.0, 1.0),
            _FOCUS,
            "pass",
            "linear",
            "interp.scores.long_context.contextual:contextual_companions",
            _ANSWER,
            where="text",
            shape="profile",
            options=MappingProxyType(
                {
                    **_ANSWER_OPTIONS,
                    "documents": "names of the documents' spans; those that begin with 'document '",
                    "sink": "how many first tokens are the sink; 2",
                }
            ),
        ),
        "contextual_gold_only": Score(
            "the contextual score in the same prompts without the other documents",
            "1: looks at the document only, when there is no other",
            (0.0, 1.0),
            _FOCUS,
            "second input",
            "linear",
            "interp.scores.long_context.contextual:contextual_gold_only",
            _ANSWER,
            where="text",
            forwards="1 forward of the prompts without the other documents (1 per length where padding is refused)",
            options=MappingProxyType(
                {**_ANSWER_OPTIONS, "documents": "names of the documents' spans; those that begin with 'document '"}
            ),
        ),
        "query_retrieval": Score(
            "how much more a query looks at the documents that answer it than an empty query does",
            "large: the query draws this head's attention to the gold document; 0: it makes no difference",
            (-1.0, 1.0),
            "Zhang et al., 2025 (QRHead, arXiv 2506.09944)",
            "second input",
            "linear",
            "interp.scores.long_context.query_focused:query_retrieval",
            "padding never counts; BOS is outside the documents; rows are those of the query and what follows it",
            where="causal",
            forwards="1 forward of the prompts, 1 with an empty query",
            options=MappingProxyType(
                {
                    "query": "the span of the query's text; 'query'",
                    "rows": "the rows that read the query; the query and everything behind it",
                    "documents": "names of the documents' spans; those that begin with 'document '",
                    "gold": "the span that holds the answer; 'gold'",
                    "null": "the empty query, as text or ids; 'N/A'",
                    "by_document": "one bin per document in place of the sum over gold ones; False",
                }
            ),
        ),
        "long_context": Score(
            "share of queries at which a head needs keys that are neither first nor near",
            "1: needs far keys at every query; 0: is local throughout",
            (0.0, 1.0),
            _ADAPTIVE,
            "pass",
            "elementwise",
            "interp.scores.long_context.adaptive:long_context",
            _FAR,
            where="causal",
            options=MappingProxyType(
                {"oracle": "take the exact mass of far keys in place of the estimate; False", **_WINDOWS}
            ),
        ),
        "long_context_labels": Score(
            "what the local/long-context label of a query is worth against its oracle",
            "agreement 1: the estimate labels every query as the oracle does",
            (0.0, 1.0),
            _ADAPTIVE,
            "pass",
            "elementwise",
            "interp.scores.long_context.adaptive:long_context_labels",
            _FAR,
            where="causal",
            shape="profile",
            options=_WINDOWS,
        ),
    }
)
