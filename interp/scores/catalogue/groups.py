"""Scores by name: attention between groups of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from types import MappingProxyType

from interp.scores.kinds import Score

_ROWS = "padding never counts; BOS and the first row are as any other; a row whose every key is left out does not count"
_PAIRS = f"{_ROWS}; a token and itself are a class of their own; pairs with an unlabelled token do not count"
_TOPICS = "Li et al., 2023 (How Do Transformers Learn Topic Structure)"
_RELATION_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "labels": "one label per token: ids [batch, pos], lists, or a function of the token's text; none: tokens alone",
        "relation": "classes of pairs of your own: [pos, pos], [batch, pos, pos], or a function of batch and rows",
        "classes": "names of the classes of relation=",
        "queries": "the query rows that count; all",
        "stratify": "'distance' or distances at which strata begin, to match the compared classes by; none",
        "compare": "the two classes that are compared; the last two",
    }
)

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "group_mass": Score(
            "attention from one group of tokens to others: system, image, question, context, generated, item k",
            "1: looks at that group only",
            (0.0, 1.0),
            "attention mass by token group, as in Kaduri et al., 2024 (What's in the Image?)",
            "pass",
            "linear",
            "interp.scores.groups.group_mass:group_mass",
            f"{_ROWS}; BOS is a group of its own by default",
            shape="profile",
            options=MappingProxyType(
                {
                    "keys": "the key groups: names of spans, a mapping, or one group; by default interp.token_groups",
                    "queries": "the query rows, one group or several; all",
                    "top": "count only so many largest entries of a row within each group; all",
                }
            ),
        ),
        "relation_attention": Score(
            "mean attention of a visible pair of tokens, by the relation of the two",
            "1: all attention of every row on the only pair of that class",
            (0.0, 1.0),
            _TOPICS,
            "pass",
            "elementwise",
            "interp.scores.groups.relation_attention:relation_attention",
            _PAIRS,
            where="text",
            shape="profile",
            options=_RELATION_OPTIONS,
        ),
        "relation_log_ratio": Score(
            "log ratio of the mean attention of two classes of pairs, in nats",
            "above 0: a pair of the first class gets more attention than one of the second",
            (-inf, inf),
            _TOPICS,
            "pass",
            "elementwise",
            "interp.scores.groups.relation_attention:relation_log_ratio",
            _PAIRS,
            where="text",
            options=MappingProxyType({**_RELATION_OPTIONS, "epsilon": "added to both means; 1e-6"}),
        ),
        "graph_distance": Score(
            "attention by the number of steps between two tokens' nodes in a graph",
            "bin 1 large: looks at neighbours",
            (0.0, 1.0),
            "Ivanitskiy et al., 2023 (Structured World Representations in Maze-Solving Transformers)",
            "pass",
            "elementwise",
            "interp.scores.groups.graph_distance:graph_distance",
            f"{_ROWS}; tokens without a node do not count",
            where="text",
            shape="profile",
            options=MappingProxyType(
                {
                    "nodes": "[batch, pos] the node of each token, -1 for none",
                    "adjacency": "[node, node] or [batch, node, node] True between neighbours",
                    "distances": "steps between nodes, in place of adjacency",
                    "furthest": "the largest distance with a bin of its own; 15, or the number of nodes less one",
                    "queries": "the query rows that count; all with a node",
                    "density": "mean attention per pair in place of mass per row; False",
                }
            ),
        ),
        "item_attention": Score(
            "how attention to the items of a list is shared among their places",
            "1: all attention to items goes to that place",
            (0.0, 1.0),
            "Attention Basin: Why Contextual Position Matters in Large Language Models, 2025",
            "pass",
            "linear",
            "interp.scores.groups.items:item_attention",
            "padding never counts; a prompt's first token belongs to no item; NaN where no item gets attention",
            where="text",
            shape="profile",
            options=MappingProxyType(
                {
                    "items": "names of the items' spans in order; those that begin with 'item '",
                    "queries": "the query rows; the position that is read",
                    "per_token": "mean over an item's tokens in place of their sum; False",
                    "shares": "divide by the sum over items; True",
                }
            ),
        ),
        "lookback_ratio": Score(
            "at generated tokens, mean attention on the context over that plus mean attention on everything since",
            "1: looks at the context only; 1/2: uniform",
            (0.0, 1.0),
            "Chuang et al., 2024 (Lookback Lens, arXiv 2407.07071)",
            "pass",
            "linear",
            "interp.scores.groups.lookback:lookback",
            "padding never counts; BOS is context; only rows that predict a generated token are computed",
            where="causal",
            options=MappingProxyType(
                {
                    "generated": "the generated tokens: a span or group; 'generated'",
                    "tail": "how many of the prompt's last tokens are not context; 1",
                    "context": "the context's tokens, in place of everything before the tail",
                    "tokens": "one bin for each of so many first generated tokens in place of the mean over all",
                }
            ),
        ),
    }
)
