"""Query-adaptive labels: the estimate from two moments, its oracle, its convergence, and the needle that it misses."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from planted import ask_for, reduced
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported
from interp.scores.ask import Ask
from interp.scores.long_context.adaptive import (
    BINS,
    bulk_log_mass,
    bulk_log_mass_of_moments,
    label_rates,
    local_log_mass,
    local_share,
    long_context,
    long_context_labels,
)


def test_the_estimate_converges_for_gaussian_keys() -> None:
    """The error falls with the number of keys; score variance 4.6 as in the method's own check."""
    d, draw = 64, torch.Generator().manual_seed(0)
    q = torch.randn(d, generator=draw, dtype=torch.float64)
    q = q / q.norm() * math.sqrt(4.6 * d)
    errors = []
    for n in (64, 4096, 65536):
        mistakes = []
        for _ in range(8):
            keys = torch.randn(n, d, generator=draw, dtype=torch.float64)
            scores = keys @ q / math.sqrt(d)
            everything = torch.ones(n, dtype=torch.bool)
            mistakes.append(abs(float(bulk_log_mass(scores, everything) - scores.logsumexp(-1))))
        errors.append(sum(mistakes) / len(mistakes))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_one_strong_key_breaks_two_moments() -> None:
    """A needle among 4096 keys: the exact log mass is far above the estimate."""
    scores = 0.1 * torch.randn(4096, generator=torch.Generator().manual_seed(0))
    scores[100] = 40.0
    everything = torch.ones(4096, dtype=torch.bool)
    exact, estimate = scores.logsumexp(-1).item(), bulk_log_mass(scores, everything).item()
    assert exact == pytest.approx(40, abs=0.1) and estimate < 10


def test_moments_of_scores_are_moments_of_keys() -> None:
    draw = torch.Generator().manual_seed(1)
    q, keys = torch.randn(3, 8, generator=draw), torch.randn(50, 8, generator=draw)
    scale = 0.3
    mean = keys.mean(0)
    covariance = (keys - mean).T @ (keys - mean) / len(keys)
    by_keys = bulk_log_mass_of_moments(q, mean, covariance, len(keys), scale)
    by_scores = bulk_log_mass(q @ keys.T * scale, torch.ones(50, dtype=torch.bool))
    torch.testing.assert_close(by_keys, by_scores)


def test_a_query_of_zero_gives_the_share_of_keys() -> None:
    scores = torch.zeros(20)
    near = torch.arange(20) < 5
    share = local_share(local_log_mass(scores, near), bulk_log_mass(scores, ~near))
    assert share.item() == pytest.approx(5 / 20)
    nothing = torch.zeros(20, dtype=torch.bool)
    assert local_share(local_log_mass(scores, near), bulk_log_mass(scores, nothing)).item() == 1


def by_loops(scores: Tensor, mask: Tensor, sink: int, local: int, threshold: float) -> Tensor:
    """``[batch, head, 4]`` counts of (estimate, oracle) pairs, query by query."""
    made = torch.zeros(*scores.shape[:2], 4)
    for prompt in range(len(scores)):
        real = mask[prompt].nonzero().flatten().tolist()
        for head in range(scores.shape[1]):
            for row in range(sink + local, len(real)):
                own = [float(scores[prompt, head, real[row], key]) for key in real[: row + 1]]
                far = own[sink : row + 1 - local]
                near = own[:sink] + own[row + 1 - local :]
                mean = sum(far) / len(far)
                spread = sum((x - mean) ** 2 for x in far) / len(far)
                here = math.log(sum(map(math.exp, near)))
                labels = [
                    1 / (1 + math.exp(-(here - bulk))) >= threshold
                    for bulk in (math.log(len(far)) + mean + spread / 2, math.log(sum(map(math.exp, far))))
                ]
                made[prompt, head, {(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[labels[0], labels[1]]] += 1
    return made


@pytest.mark.parametrize("rows_per_block", [1, 3, 30])
def test_equals_the_definition_query_by_query(rows_per_block: int) -> None:
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[1, :3] = False
    scores = 2 * torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(5))
    ask = ask_for(14, ids=torch.randint(0, 6, (2, 14)), mask=mask)
    sees = torch.ones(14, 14).tril().bool() & mask[:, None] & mask[:, :, None]
    maps = scores.masked_fill(~sees[:, None], -torch.inf).softmax(-1).nan_to_num(0)
    options = {"sink_tokens": 2, "local_tokens": 3, "threshold": 0.6}
    found = reduced(long_context_labels(ask, **options), maps, scores=scores, rows_per_block=rows_per_block)
    counts = by_loops(scores, mask, 2, 3, 0.6)
    torch.testing.assert_close(found, label_rates(counts), equal_nan=True)
    assert counts.sum(-1)[0].tolist() == [9] * 3 and counts.sum(-1)[1].tolist() == [6] * 3
    plain = reduced(long_context(ask, **options), maps, scores=scores, rows_per_block=rows_per_block)
    torch.testing.assert_close(plain, 1 - found[..., 0])
    oracle = reduced(long_context(ask, oracle=True, **options), maps, scores=scores, rows_per_block=rows_per_block)
    torch.testing.assert_close(oracle, 1 - found[..., 1])


def test_rates_of_counts() -> None:
    both, wrong, missed, neither = 5.0, 2.0, 1.0, 2.0
    rates = dict(zip(BINS, label_rates(torch.tensor([both, wrong, missed, neither])).tolist(), strict=True))
    assert rates == pytest.approx(
        {
            "local": 0.7,
            "local by oracle": 0.6,
            "agreement": 0.7,
            "precision": 5 / 7,
            "recall": 5 / 6,
            "false local": 0.5,
        }
    )
    assert label_rates(torch.tensor([3.0, 0, 0, 0]))[-1].isnan(), "no query needs far keys"


def test_the_label_is_monotone_in_the_threshold() -> None:
    scores = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    ask = ask_for(16)
    maps = scores.masked_fill(~torch.ones(16, 16).tril().bool(), -torch.inf).softmax(-1)
    shares = [
        reduced(long_context(ask, sink_tokens=1, local_tokens=2, threshold=t), maps, scores=scores)
        for t in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    assert all(bool((low <= high).all()) for low, high in pairwise(shares))


def test_a_needle_is_called_local_falsely() -> None:
    """All queries look at one far key; by two moments they seem to need none."""
    length, needle = 64, 20
    scores = torch.zeros(1, 1, length, length)
    scores[..., -6:] = 5.0
    scores[:, :, -4:, needle] = 12.0
    ask = ask_for(length, model="induction")
    made = long_context_labels(ask, queries=slice(-4, None), sink_tokens=2, local_tokens=16, threshold=0.3)
    maps = scores.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf).softmax(-1)
    found = dict(zip(BINS, reduced(made, maps, scores=scores)[0, 0].tolist(), strict=True))
    assert maps[0, 0, -1, needle] > 0.99 and found["local by oracle"] == 0 and found["false local"] == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_key_moments_after_rope_give_the_same_labels(case_of: Callable[..., object], name: str) -> None:
    """From Q and K of the model, one statistic per KV head, shared by its group of query heads."""
    case = case_of(name)
    model = case.model  # type: ignore[attr-defined]
    batch = interp.encode(model, torch.randint(5, 90, (2, 24), generator=torch.Generator().manual_seed(0)))
    sink, local = 2, 4
    options = {"sink_tokens": sink, "local_tokens": local}
    found = interp.score(model, batch, {"long_context_labels": options})["long_context_labels"].samples
    for layer in range(model.stack().n_layers):
        at = {site: At(site, layer=layer) for site in (Site.Q, Site.K, Site.SCORES)}
        seen = interp.run(model, batch, read=list(at.values()))
        q, k, scores = (seen[at[site]] for site in (Site.Q, Site.K, Site.SCORES))
        group = q.shape[2] // k.shape[2]
        for head in range(q.shape[2]):
            own = k[:, :, head // group]  # [batch, pos, d]
            product = torch.einsum("bqd,bkd->bqk", q[:, :, head], own)
            scale = float(scores[0, head, -1, 0] / product[0, -1, 0])
            counted = 0
            for row in range(sink + local, 24):
                far = own[:, sink : row + 1 - local]
                mean = far.mean(1)
                covariance = torch.einsum("bkd,bke->bde", far - mean[:, None], far - mean[:, None]) / far.shape[1]
                bulk = bulk_log_mass_of_moments(q[:, row, head], mean, covariance, far.shape[1], scale)
                near = torch.cat([scores[:, head, row, :sink], scores[:, head, row, row + 1 - local : row + 1]], -1)
                counted = counted + (local_share(near.logsumexp(-1), bulk) >= 0.5).float()
            np.testing.assert_allclose(found[:, layer, head, 0], (counted / (24 - sink - local)).numpy(), atol=1e-6)


def test_a_window_that_hides_the_far_keys_makes_every_query_local(case_of: Callable[..., object]) -> None:
    case = case_of("mistral")  # its window is 4
    model = case.model  # type: ignore[attr-defined]
    batch = interp.encode(model, torch.randint(5, 90, (1, 20)))
    found = interp.score(model, batch, {"long_context": {"sink_tokens": 0, "local_tokens": 8}})["long_context"]
    assert (found.samples == 0).all()


def test_refusals_of_windows(case_of: Callable[..., object]) -> None:
    ask = ask_for(20)
    with pytest.raises(BadInput, match=r"sink_tokens=16 and local_tokens=128 leave no bulk key .* \(\[20\] tokens\)"):
        long_context(ask)
    for options, message in (
        ({"sink_tokens": -1}, "sink_tokens=-1; expected a number of tokens, at least 0"),
        ({"local_tokens": 0}, "local_tokens=0; expected a number of tokens, at least 1"),
        ({"threshold": 1}, "threshold=1; expected a share"),
        ({"sink_tokens": 1, "local_tokens": 2, "queries": slice(0, 2)}, "to any query row of prompts"),
    ):
        with pytest.raises(BadInput, match=message):
            long_context(ask, **options)
    bert = case_of("bert")
    batch = bert.batch()  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="is not a causal stack of tokens"):
        long_context_labels(Ask("labels", bert.model, batch, bert.model.stack()))  # type: ignore[attr-defined]


def test_static_labels_are_right_as_often_as_the_head_is_the_same() -> None:
    model = interp.load("induction")
    generator = torch.Generator().manual_seed(0)
    calibration, other = (interp.encode(model, torch.randint(10, 300, (4, 40), generator=generator)) for _ in range(2))
    options = {"long_context": {"oracle": True, "sink_tokens": 2, "local_tokens": 6}}
    table = interp.score(model, calibration, options)["long_context"]
    labels = interp.static_labels(table)
    np.testing.assert_array_equal(labels, table.values <= 0.5)
    judged = interp.score(model, other, options)["long_context"]
    right = interp.static_agreement(labels, judged)
    np.testing.assert_allclose(right.values, np.where(labels, 1 - judged.values, judged.values))
    adaptive = interp.score(model, other, {"long_context_labels": {"sink_tokens": 2, "local_tokens": 6}})
    agreement = adaptive["long_context_labels"].values[..., BINS.index("agreement")]
    assert agreement.mean() > 0.8, "the estimate follows the oracle on ordinary text"
    estimate = interp.score(model, other, {"long_context": {"sink_tokens": 2, "local_tokens": 6}})["long_context"]
    with pytest.raises(BadInput, match="with oracle=True"):
        interp.static_labels(estimate)
    with pytest.raises(BadInput, match="most=2"):
        interp.static_labels(table, most=2)
    with pytest.raises(BadInput, match="give one each"):
        interp.static_agreement(labels[:1], judged)
