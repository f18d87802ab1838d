"""Scores by name: what a head writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.kinds import Score

_QUERIES = "query rows that count; all"
_ROWS = "padding never counts; BOS is an ordinary key and an ordinary row"
_ANSWER_ROW = "the answer's row alone; padding never counts; BOS is an ordinary key"
_LEVEL = "'head' alone, or 'layer' or 'all' heads together; 'head'"
_GRID = "(rows, columns, skip) of the patches where the model's own are not understood"

ENTRIES: Mapping[str, Score] = MappingProxyType(
    {
        "value_weighted_mass": Score(
            "share of what attention writes that comes from a group of keys: weights A_ij ||v_j W_O||",
            "1: all that is written comes from the group",
            (0.0, 1.0),
            "Kobayashi et al., 2020 (arXiv 2004.10102)",
            "pass",
            "linear",
            "interp.scores.writes.value_mass:value_weighted_mass",
            f"{_ROWS}; rows that write nothing are left out",
            options=MappingProxyType({"keys": "group of keys, or several by name; must be named", "queries": _QUERIES}),
        ),
        "value_weighted_sink": Score(
            "share of what attention writes that comes from the first token: weights A_ij ||v_j W_O||",
            "1: all that is written comes from the first token; a sink has little of it beside much attention",
            (0.0, 1.0),
            "Gu et al., 2025 (arXiv 2410.10781); Kobayashi et al., 2020 (arXiv 2004.10102)",
            "pass",
            "linear",
            "interp.scores.writes.value_mass:value_weighted_sink",
            f"{_ROWS}; the first row counts as 1, rows that write nothing are left out",
            options=MappingProxyType({"queries": _QUERIES}),
        ),
        "result_norm": Score(
            "length of what a head writes into the residual stream",
            "large: writes much; 0: writes nothing",
            (0.0, math.inf),
            "Kobayashi et al., 2020 (arXiv 2004.10102)",
            "pass",
            "none",
            "interp.scores.writes.result_norm:result_norm",
            f"{_ROWS}; exclude_sinks leaves z as it is",
            options=MappingProxyType(
                {"queries": _QUERIES, "relative": "divide by the norm of the residual stream that enters; False"}
            ),
        ),
        "direct_effect": Score(
            "what a head writes towards the answer by its direct path, norms held",
            "positive: raises the right answer over the wrong ones; negative: lowers it",
            (-math.inf, math.inf),
            "Elhage et al., 2021; Wang et al., 2022 (arXiv 2211.00593)",
            "gradient",
            "none",
            "interp.scores.writes.direct_effect:direct_effect",
            "padding never counts; BOS is an ordinary position; exclude_sinks leaves z as it is",
            options=MappingProxyType(
                {
                    "metric": "linear in the logits, a name or a function; logit_difference",
                    "pos": "only what is written at these positions; all",
                    "nonlinear": "'refuse' or 'report' what the parts leave over; 'refuse'",
                }
            ),
            sense=1,
            forwards="3: the norms, one with its gradient, and one of the biases",
        ),
        "attention_attribution_agreement": Score(
            "agreement between a head's row at the answer and an attribution of the tokens it sees",
            "1: looks at what matters for the answer, in that order; 0: unrelated",
            (-1.0, 1.0),
            "Jain and Wallace, 2019 (arXiv 1902.10186)",
            "gradient",
            "sort",
            "interp.scores.audits.attribution_agreement:attention_attribution_agreement",
            _ANSWER_ROW,
            options=MappingProxyType(
                {
                    "reference": "'gradient', 'gradient_x_input', 'leave_one_out', 'leave_one_out_masked', 'lime', "
                    "'value_aware', or numbers [batch, key]; 'gradient'",
                    "how": "'pearson', 'spearman', 'kendall' or 'topk'; 'kendall'",
                    "level": "'head', 'layer' or 'all' heads together; 'head'",
                    "pool": "'mean' or 'max' over heads above heads; 'mean'",
                    "top": "how many of the largest, for 'topk'; 5",
                    "metric": "what is attributed; the log-probability of the answer",
                    "row": "another query row; the answer's",
                    "samples": "of LIME; 256",
                }
            ),
            forwards="1, and 1 with its gradient (leave-one-out: one per token; LIME: one per sample)",
        ),
        "sign_disagreement": Score(
            "share of a head's most attended tokens that speak against the answer",
            "1: all it attends to most speaks against the answer; 0: nothing does",
            (0.0, 1.0),
            "Lopardo et al., 2024 (Attention Meets Post-hoc Interpretability)",
            "gradient",
            "sort",
            "interp.scores.audits.attribution_agreement:sign_disagreement",
            _ANSWER_ROW,
            options=MappingProxyType(
                {
                    "reference": "'value_aware', 'gradient_x_input', 'lime', or numbers [batch, key]; 'value_aware'",
                    "top": "how many tokens; 5",
                    "level": "'head', 'layer' or 'all' heads together; 'head'",
                    "metric": "what is attributed; logit_difference",
                    "row": "another query row; the answer's",
                }
            ),
            forwards="3: the norms, one with its gradient, and one for the maps",
        ),
        "uniform_effect": Score(
            "change of the answer (total variation) when a head's row at the answer has even weights",
            "1: the answer becomes another; 0: the weights do not matter",
            (0.0, 1.0),
            "Wiegreffe and Pinter, 2019 (arXiv 1908.04626)",
            "second input",
            "elementwise",
            "interp.scores.audits.other_weights:uniform_effect",
            f"{_ANSWER_ROW}; left-out columns keep their weight",
            options=MappingProxyType({"level": _LEVEL, "row": "another query row; the answer's"}),
            forwards="1, and parts of one per head",
        ),
        "permutation_effect": Score(
            "median change of the answer (total variation) over random orders of a head's weights at the answer",
            "1: the answer becomes another; 0: which token gets which weight does not matter",
            (0.0, 1.0),
            "Jain and Wallace, 2019 (arXiv 1902.10186)",
            "second input",
            "elementwise",
            "interp.scores.audits.other_weights:permutation_effect",
            f"{_ANSWER_ROW}; left-out columns keep their weight",
            options=MappingProxyType(
                {"permutations": "random orders; 100", "level": _LEVEL, "row": "another query row; the answer's"}
            ),
            forwards="1, and parts of one per head and permutation",
        ),
        "class_identifiability": Score(
            "how high the image's class ranks in what a head writes at CLS or at the patches: 1 - rank / classes",
            "1: the class is on top; 1/2: chance",
            (0.0, 1.0),
            "Vilas et al., 2023 (NeurIPS)",
            "pass",
            "none",
            "interp.scores.writes.identifiability:class_identifiability",
            "CLS and patches apart; registers never count; exclude_sinks leaves z as it is",
            where="vision",
            options=MappingProxyType(
                {
                    "tokens": "'cls' or 'patches'; CLS where there is one",
                    "of": "'answers' (class ids of the batch) or 'predicted'; 'answers'",
                    "ties": "'mean', 'best' or 'worst'; 'mean'",
                    "grid": _GRID,
                }
            ),
        ),
        "class_value_agreement": Score(
            "largest cosine between a head's value vectors (its rows of W_O) and the class's direction",
            "1: a value vector points to the class",
            (-1.0, 1.0),
            "Vilas et al., 2023 (NeurIPS)",
            "weights",
            "none",
            "interp.scores.writes.identifiability:class_value_agreement",
            "weights alone; the class comes from the batch",
            where="vision",
            options=MappingProxyType(
                {
                    "tokens": "'cls' or 'patches'; CLS where there is one",
                    "of": "'answers' (class ids of the batch) or 'predicted'; 'answers'",
                    "grid": _GRID,
                }
            ),
        ),
    }
)
