"""The lookback ratio: means and not sums, the tail, windows of features, and the detector made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import ask_for, reduced, uniform_causal

import interp
from interp.errors import BadInput, Unsupported
from interp.results import HeadScores
from interp.scores.ask import Ask
from interp.scores.groups.lookback import lookback, lookback_ratio
from interp.scores.groups.lookback_features import LookbackDetector, fit_lookback_detector, lookback_features, windows

IDS = torch.tensor([[0, 3, 4, 5, 3, 4, 5, 2]])
LAST_TWO = slice(-2, None)


def test_uniform_attention_is_one_half_at_every_step() -> None:
    ask = ask_for(8, ids=IDS)
    for tail in (1, 2, 4):
        found = reduced(lookback(ask, generated=LAST_TWO, tail=tail, tokens=2), uniform_causal(8))
        assert found[0, 0].tolist() == pytest.approx([0.5, 0.5])


def test_all_mass_on_the_context_is_one_and_on_the_rest_zero() -> None:
    ask = ask_for(8, ids=IDS)
    on_context, on_rest = torch.zeros(8, 8), torch.eye(8)
    on_context[:, 1] = 1
    assert reduced(lookback(ask, generated=LAST_TWO, tail=2), on_context).item() == 1
    assert reduced(lookback(ask, generated=LAST_TWO, tail=2), on_rest).item() == 0


def test_the_row_of_the_card_and_what_a_sink_does() -> None:
    row = torch.tensor([0.05, 0.15, 0.4, 0.1, 0.3])
    assert lookback_ratio(row[:3].sum(), torch.tensor(3.0), row[3:].sum(), torch.tensor(2.0)).item() == pytest.approx(
        0.5
    )
    ids = torch.tensor([[0, 3, 4, 5, 2, 3]])
    maps = torch.eye(6)
    maps[4, :5] = row
    ask = ask_for(6, ids=ids)
    found = reduced(lookback(ask, generated=-1, context=slice(0, 3)), maps)
    assert found.item() == pytest.approx(0.5), "means, not sums: 0.6 of the mass on 3 tokens, 0.4 on 2"
    sunk = torch.eye(6)
    sunk[4, :5] = torch.tensor([0.9, 0.0, 0.0, 0.05, 0.05])
    assert reduced(lookback(ask, generated=-1, context=slice(0, 3)), sunk).item() > 0.8
    dropped = torch.zeros(1, 6, dtype=torch.bool)
    dropped[0, 0] = True
    without = ask_for(6, ids=ids, dropped=dropped)
    assert reduced(lookback(without, generated=-1, context=slice(0, 3)), sunk).item() == 0


def test_context_tokens_of_no_weight_lower_the_ratio() -> None:
    """A mean, unlike a ratio of masses."""
    found = []
    for extra in (0, 3):
        length = 6 + extra
        maps = torch.eye(length)
        maps[-2] = 0
        maps[-2, 1], maps[-2, -2] = 0.5, 0.5
        ask = ask_for(length)
        found.append(reduced(lookback(ask, generated=-1, tail=1), maps).item())
    a, n = 0.5, 4
    assert found[0] == pytest.approx((a / n) / (a / n + 0.5))
    assert found[1] == pytest.approx((a / (n + 3)) / (a / (n + 3) + 0.5))


@pytest.mark.parametrize("rows_per_block", [1, 3, 20])
def test_equals_the_definition_row_by_row(rows_per_block: int) -> None:
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, :3] = False
    mask[2, 7:] = False
    maps = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(1)).tril() * mask[:, None, None]
    maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-9)
    ask = ask_for(9, ids=torch.randint(0, 6, (3, 9)), mask=mask)
    generated = torch.zeros_like(mask)
    generated[0, 6:], generated[1, 8:], generated[2, 5:7] = True, True, True
    made = lookback(ask, generated=generated, tail=2, tokens=4)
    found = reduced(made, maps, rows_per_block=rows_per_block)
    mean = reduced(lookback(ask, generated=generated, tail=2), maps, rows_per_block=rows_per_block)
    for prompt in range(3):
        real = mask[prompt].nonzero().flatten().tolist()
        own = generated[prompt].nonzero().flatten().tolist()
        n = real.index(own[0]) - 2
        values = []
        for token in own:
            row = real.index(token) - 1
            weights = maps[prompt][:, real[row], real[: row + 1]]
            a, b = weights[:, :n].mean(-1), weights[:, n:].mean(-1)
            values.append(a / (a + b))
        torch.testing.assert_close(found[prompt, :, : len(own)].float(), torch.stack(values, -1))
        assert found[prompt, :, len(own) :].isnan().all()
        torch.testing.assert_close(mean[prompt].float(), torch.stack(values, -1).mean(-1))


def test_only_the_predicting_rows_are_asked_for() -> None:
    ask = ask_for(8, ids=IDS)
    rows = lookback(ask, generated=LAST_TWO).rows
    assert rows is not None and rows.tolist() == [[5, 6]]


def test_teacher_forcing_equals_decoding_step_by_step() -> None:
    """One forward over prompt and answer gives the ratios of the last row of every step of generation."""
    model = interp.load("induction")
    ids = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = interp.with_generated(model, interp.encode(model, ids), max_new_tokens=3)
    assert batch.ids is not None
    whole = interp.lookback_ratios(model, batch, tail=2)
    for step in range(3):
        prefix = interp.encode(model, batch.ids[:, : 12 + step])
        at = interp.At(interp.Site.PATTERN)
        last = interp.run(model, prefix, read=[at])[at][..., -1, :].numpy()  # [layer, batch, head, key]
        a, b = last[..., :10].mean(-1), last[..., 10:].mean(-1)
        np.testing.assert_allclose(whole.samples[..., step], (a / (a + b)).transpose(1, 0, 2), atol=1e-6)


def test_refusals_of_lookback() -> None:
    ask = ask_for(8, ids=IDS)
    with pytest.raises(BadInput, match=r"tail=0; expected .* from 1 \(without one"):
        lookback(ask, generated=LAST_TWO, tail=0)
    with pytest.raises(BadInput, match=r"tail=6; .* to 5"):
        lookback(ask, generated=LAST_TWO, tail=6)
    with pytest.raises(BadInput, match="begin with a generated token"):
        lookback(ask, generated=slice(0, 3))
    with pytest.raises(BadInput, match="tokens=0"):
        lookback(ask, generated=LAST_TWO, tokens=0)


def test_a_stack_that_looks_ahead_is_refused_by_the_score_itself(case_of) -> None:  # type: ignore[no-untyped-def]
    case = case_of("bert")
    batch = case.batch()
    with pytest.raises(BadInput, match="queries see no later key"):
        interp.score(case.model, batch, {"lookback_ratio": {"generated": -1}})
    ask = Ask("lookback_ratio", case.model, batch, case.model.stack())
    with pytest.raises(Unsupported, match="is not a causal stack of tokens"):
        lookback(ask, generated=-1)


# ---- features -------------------------------------------------------------------------------------------------------


def table(values: object) -> HeadScores:
    made = np.asarray(values, dtype=float)
    return HeadScores.from_array(made, name="lookback", sample_axis="prompt", positions=range(made.shape[-1]))


def test_features_are_means_over_spans_in_the_order_of_heads() -> None:
    samples = np.random.default_rng(0).random((2, 3, 4, 5))
    samples[1, ..., 3:] = np.nan
    found = lookback_features(table(samples), [(0, 1, 4), (1, 0, 3)])
    np.testing.assert_allclose(found[0], samples[0, ..., 1:4].mean(-1).ravel())
    np.testing.assert_allclose(found[1], samples[1, ..., :3].mean(-1).ravel())
    assert found.shape == (2, 12)
    with pytest.raises(BadInput, match="span 0 is tokens 2 to 4 of prompt 1; it has 3 generated tokens"):
        lookback_features(table(samples), [(1, 2, 4)])
    with pytest.raises(BadInput, match="there are 2 prompts"):
        lookback_features(table(samples), [(2, 0, 1)])


def test_windows_take_the_smallest_label() -> None:
    spans, grounded = windows([[1] * 9 + [0], [1, 1, 1]])
    assert spans == [(0, 0, 8), (0, 1, 9), (0, 2, 10), (1, 0, 3)] and grounded.tolist() == [True, True, False, True]
    assert windows([[]])[0] == []


def test_the_detector_finds_the_head_that_tells() -> None:
    generator = np.random.default_rng(0)
    x = generator.random((120, 6))
    grounded = x[:, 2] + 0.1 * generator.standard_normal(120) > 0.5
    found = fit_lookback_detector(x, grounded)
    assert min(found.auroc) > 0.85 and len(found.auroc) == 2 and int(np.abs(found.coefficients).argmax()) == 2
    assert found.coefficients[2] > 0, "looking back speaks for grounded"
    np.testing.assert_array_equal(found.grounded(x) > 0.5, x @ found.coefficients + found.intercept > 0)
    again = fit_lookback_detector(x, grounded)
    np.testing.assert_array_equal(found.coefficients, again.coefficients)
    heads = found.heads(table(np.zeros((1, 2, 3, 1))))
    assert heads.values.shape == (2, 3) and heads.values[0, 2] == found.coefficients[2]
    noise = fit_lookback_detector(x, generator.random(120) > 0.5)
    assert max(noise.auroc) < 0.75
    by_prompt = fit_lookback_detector(x, grounded, groups=np.arange(120) // 10, folds=3)
    assert len(by_prompt.auroc) == 3 and isinstance(by_prompt, LookbackDetector)
    with pytest.raises(BadInput, match=r"folds=2 with 0 spans"):
        fit_lookback_detector(x, np.ones(120, dtype=bool))
    with pytest.raises(BadInput, match="119 labels"):
        fit_lookback_detector(x, grounded[:-1].tolist())
