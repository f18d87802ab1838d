"""Attention against attribution: agreement of rows and maps, references, levels, signs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case
from scipy import stats
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, UnknownName, Unsupported
from interp.scores.ask import Ask
from interp.scores.audits.agreement import agreement_of_maps, agreement_of_rows, largest, significance
from interp.scores.audits.answer_change import jensen_shannon, total_variation
from interp.scores.audits.attribution_agreement import compared, sign_disagreement_of_rows
from interp.scores.audits.references import token_attribution

CaseOf = Callable[[str], Case]
ALL = torch.ones(1, 6, dtype=torch.bool)


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(1, 6, generator=draw), torch.randn(1, 6, generator=draw)


@pytest.mark.parametrize("how", ["pearson", "spearman", "kendall", "topk"])
def test_a_row_agrees_with_itself_and_with_its_shifts(how: str) -> None:
    a, _ = rows()
    assert float(agreement_of_rows(a, a, ALL, how=how, top=3)[0]) == pytest.approx(1)
    assert float(agreement_of_rows(a, 3 * a - 2, ALL, how=how, top=3)[0]) == pytest.approx(1)
    if how != "topk":
        assert float(agreement_of_rows(a, -a, ALL, how=how)[0]) == pytest.approx(-1)


def test_against_scipy_and_by_hand() -> None:
    a, b = rows(3)
    x, y = a[0].double().numpy(), b[0].double().numpy()
    for how, measure in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        assert float(agreement_of_rows(a, b, ALL, how=how)[0]) == pytest.approx(float(measure(x, y)[0]))
    pairs = [(i, j) for i in range(6) for j in range(i)]
    tau = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs) / len(pairs)
    assert float(agreement_of_rows(a, b, ALL)[0]) == pytest.approx(tau)
    assert float(significance(a, b, ALL)[0]) == pytest.approx(stats.kendalltau(x, y).pvalue)
    top = set(np.argsort(-x)[:2]) & set(np.argsort(-y)[:2])
    assert float(agreement_of_rows(a, b, ALL, how="topk", top=2)[0]) == len(top) / 2
    assert largest(np.array([1.0, 2.0, 2.0]), 2) == [1, 2]


def test_shuffled_tokens_agree_by_chance() -> None:
    draw = torch.Generator().manual_seed(1)
    a = torch.rand(400, 30, generator=draw)
    b = torch.stack([row[torch.randperm(30, generator=draw)] for row in a])
    for how in ("pearson", "spearman", "kendall"):
        assert abs(float(agreement_of_rows(a, b, torch.ones(400, 30, dtype=torch.bool), how=how).mean())) < 0.03


def test_what_does_not_vary_has_no_agreement() -> None:
    a, _ = rows()
    for how in ("pearson", "spearman", "kendall"):
        assert math.isnan(agreement_of_rows(a, torch.full_like(a, 0.1), ALL, how=how)[0])
    one = torch.tensor([[True, *[False] * 5]])
    assert math.isnan(agreement_of_rows(a, a, one)[0])


def test_a_sink_moves_pearson_and_is_left_out() -> None:
    a = torch.tensor([[0.9, 0.04, 0.03, 0.02, 0.008, 0.002]])
    b = torch.tensor([[9.0, 0.0, 1.0, 2.0, 3.0, 4.0]])
    assert float(agreement_of_rows(a, b, ALL, how="pearson")[0]) > 0.8
    kept = ALL.clone()
    kept[0, 0] = False
    assert float(agreement_of_rows(a, b, kept, how="pearson")[0]) < -0.9


def test_maps_are_compared_row_by_row_brought_to_one_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(4, 7, generator=draw), torch.rand(4, 7, generator=draw)
    valid = torch.ones(4, 7, dtype=torch.bool).tril(3)
    scale = torch.rand(4, 1, generator=draw) + 0.5
    own = agreement_of_maps(a, b, valid)
    torch.testing.assert_close(agreement_of_maps(a * scale - 3 * scale, b, valid), own)
    assert float(agreement_of_maps(a, a, valid)) == pytest.approx(1)

    def standard(x: Tensor) -> Tensor:
        parts = [row[keep] for row, keep in zip(x, valid, strict=True)]
        return torch.cat([(part - part.mean()) / part.std(correction=0) for part in parts])

    expected = torch.corrcoef(torch.stack([standard(a), standard(b)]))[0, 1]
    assert float(own) == pytest.approx(float(expected), abs=1e-6)
    flat = a.clone()
    flat[1] = 0.2  # says nothing
    rest = torch.tensor([0, 2, 3])
    torch.testing.assert_close(agreement_of_maps(flat, b, valid), agreement_of_maps(a[rest], b[rest], valid[rest]))


def asked(model: interp.Model, batch: interp.Batch, **about: object) -> Ask:
    return Ask("x", model, batch, model.stack(), **about)


def test_the_gradient_is_that_of_the_first_stream(case_of: CaseOf) -> None:
    """By finite differences of the embeddings."""
    model = tiny_gpt2(dtype=torch.float64)
    batch = interp.encode(model, [[1, 2, 3, 4]], answers=[5])
    found = token_attribution(asked(model, batch), "gradient_x_input")[0]
    at, step = At(Site.RESID_PRE, 0), 1e-6
    base = interp.run(model, batch, read=[at])[at]
    for t in range(4):
        change = torch.zeros_like(base)
        change[0, t] = base[0, t]
        moved = []
        for sign in (1, -1):
            edit = interp.patch(at, base + sign * step * change)
            logits = interp.run(model, batch, edits=[edit]).logits
            assert logits is not None
            moved.append(interp.answer_logprob(logits, batch)[0])
        assert float(found[t]) == pytest.approx(float(moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-8)
    size = token_attribution(asked(model, batch), "gradient")[0]
    torch.testing.assert_close(size, found.abs())


def test_leave_one_out_by_encoding_each_prompt_again() -> None:
    model = tiny_gpt2(check=True)
    ids = [[1, 2, 3, 4, 5], [6, 7, 8]]
    batch = interp.encode(model, ids, padding_side="left")
    found = token_attribution(asked(model, batch), "leave_one_out")

    def answer(row: list[int]) -> Tensor:
        logits = interp.run(model, interp.encode(model, [row])).logits
        assert logits is not None
        return logits[0, -1].softmax(-1)

    for row, prompt in enumerate(ids):
        place = batch.mask[row].nonzero().flatten().tolist()
        for t in range(len(prompt) - 1):
            gone = answer(prompt[:t] + prompt[t + 1 :])
            expected = 0.5 * (gone - answer(prompt)).abs().sum()
            assert float(found[row, place[t]]) == pytest.approx(float(expected), abs=1e-5)
        assert math.isnan(found[row, place[-1]])  # what is read cannot be left out
    assert bool(found[~batch.mask].isnan().all())


def test_a_token_that_does_nothing_is_worth_nothing() -> None:
    """Hand-built: of ``a b c a``, hiding c changes nothing at the answer but the mass of the even head."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
    found = token_attribution(asked(model, batch), "leave_one_out_masked")[0]
    assert float(found[3]) < 1e-3 and float(found[2]) > 0.5 and float(found[1]) > 0.5


def test_lime_finds_the_weights_of_what_is_linear() -> None:
    """A metric that is a sum over tokens that are looked at: the fit gives the summands back."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 6, 7]]))
    found = token_attribution(asked(model, batch), "lime", samples=64)[0]
    assert found.shape == (6,) and math.isnan(found[-1]) and bool(found[:-1].isfinite().all())
    induced = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
    worth = token_attribution(asked(model, induced), "lime", metric=interp.logit_difference, samples=256)[0][:4]
    assert worth.argmax() in (1, 2) and float(worth[3]) < float(worth[2])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert", "vit", "llava"])
def test_value_aware_weights_sum_to_the_direct_effect(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 6)

    def two_apart(logits: Tensor, own: interp.Batch) -> Tensor:
        last = logits if logits.ndim == 2 else logits[torch.arange(len(own)), own.read_at]
        return last[:, 2] - last[:, 3]

    def the_other_way(logits: Tensor, own: interp.Batch) -> Tensor:
        return -two_apart(logits, own)

    options = {"metric": two_apart, "nonlinear": "report"}
    effects = interp.score(case.model, batch, {"x": {"score": "direct_effect", **options}})["x"].per_prompt
    ask = asked(case.model, batch)
    beside = compared(ask, "value_aware", metric=two_apart)
    turned = compared(ask, "value_aware", metric=the_other_way)
    for layer, weights in beside.attribution.items():
        np.testing.assert_allclose(weights.sum(-1), effects[:, layer], rtol=2e-4, atol=1e-5)
        torch.testing.assert_close(turned.attribution[layer], -weights, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(turned.attention[layer], beside.attention[layer])


def test_equal_values_make_attention_and_value_aware_weights_proportional() -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        for block in model.hf.transformer.h:
            block.attn.c_attn.weight[:, 16:] = 0  # every token has the value of the bias
    batch = interp.encode(model, [[1, 2, 3, 4, 5]], answers=[(6, 7)])
    beside = compared(asked(model, batch), "value_aware")
    for layer in range(3):
        share = beside.attribution[layer] / beside.attention[layer]
        torch.testing.assert_close(share, share[..., :1].expand_as(share), rtol=1e-4, atol=1e-6)
        effect = share[0, :, 0]
        found = interp.score(model, batch, "sign_disagreement")["sign_disagreement"].per_prompt[0, layer]
        np.testing.assert_array_equal(found, (effect < 0).double())  # all tokens speak for the answer, or none does


def test_levels(case_of: CaseOf) -> None:
    """Averaging equal heads changes nothing; the levels above show one number at every head."""
    case = case_of("llama")
    batch = case.batch(2, 6)
    beside = compared(asked(case.model, batch), "gradient")
    whole = torch.cat(list(beside.attention.values()), dim=1)
    torch.testing.assert_close(beside.at("all").attention[0][:, 0], whole.mean(1))
    torch.testing.assert_close(beside.at("all", "max").attention[1][:, 0], whole.amax(1))
    torch.testing.assert_close(beside.at("layer").attention[1][:, 0], beside.attention[1].mean(1))
    wanted = {level: {"score": "attention_attribution_agreement", "level": level} for level in ("head", "layer", "all")}
    found = interp.score(case.model, batch, wanted)
    assert len(np.unique(found["all"].per_prompt[0])) == 1
    assert (np.ptp(found["layer"].per_prompt, axis=-1) == 0).all()
    assert (np.ptp(found["head"].per_prompt, axis=-1) > 0).all()
    equal = torch.rand(2, 1, 6).expand(-1, 4, -1)
    same = type(beside)({0: equal}, {0: beside.attribution[0]}, {0: torch.ones(2, 4, 6, dtype=torch.bool)})
    torch.testing.assert_close(same.at("layer").attention[0], equal[:, :1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(case_of: CaseOf, side: str) -> None:
    case = case_of("llama")
    ids = [[11, 12, 13, 14, 15, 16], [21, 22, 23, 24]]
    wanted = {
        "agreement": {"score": "attention_attribution_agreement", "how": "pearson"},
        "signs": {"score": "sign_disagreement", "top": 2},
        "uniform": {"score": "uniform_effect"},
        "permuted": {"score": "permutation_effect", "permutations": 3},
    }
    batch = interp.encode(case.model, ids, answers=[(5, 6), (7, 8)], padding_side=side)
    together = interp.score(case.model, batch, wanted)
    for row, answers in enumerate(((5, 6), (7, 8))):
        alone = interp.score(case.model, interp.encode(case.model, ids[row : row + 1], answers=[answers]), wanted)
        for name in wanted:
            np.testing.assert_allclose(
                together[name].per_prompt[row], alone[name].per_prompt[0], atol=2e-4, err_msg=name
            )


def test_sinks_are_left_out_of_both(case_of: CaseOf) -> None:
    case = case_of("llama")
    batch = case.batch(2, 6)
    beside = compared(asked(case.model, batch, dropped=torch.arange(6).expand(2, -1) == 0), "gradient")
    assert not beside.valid[0][..., 0].any() and beside.valid[0][..., 1:].all()
    torch.testing.assert_close(beside.attention[0].sum(-1), torch.ones(2, 4, dtype=torch.float64))


def test_signs() -> None:
    a = torch.tensor([0.5, 0.3, 0.1, 0.1])
    w = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    keep = torch.ones(4, dtype=torch.bool)
    assert float(sign_disagreement_of_rows(a, w, keep, top=1)) == 1
    assert float(sign_disagreement_of_rows(a, w, keep, top=2)) == 0.5
    assert float(sign_disagreement_of_rows(a, w, keep, top=9)) == 0.75
    assert float(sign_disagreement_of_rows(a, -w, keep, top=9)) == 0.25
    assert math.isnan(sign_disagreement_of_rows(a, w, ~keep))


def test_divergences() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert float(total_variation(p, q)) == 0.5 and float(total_variation(p, p)) == 0
    assert float(jensen_shannon(p, q)) == pytest.approx(0.5 * math.log(2))
    ends = torch.eye(2)
    assert float(jensen_shannon(ends[0], ends[1])) == pytest.approx(math.log(2)) and float(jensen_shannon(p, p)) == 0


def test_bad_requests_are_refused(case_of: CaseOf) -> None:
    case, vit = case_of("llama"), case_of("vit")
    batch = case.batch(2, 6)

    def ask(score: str = "attention_attribution_agreement", **options: object) -> None:
        interp.score(case.model, batch, {"x": {"score": score, **options}})

    with pytest.raises(UnknownName, match="Did you mean 'gradient'"):
        ask(reference="gradients")
    with pytest.raises(UnknownName, match="agreement"):
        ask(how="cosine")
    with pytest.raises(UnknownName, match="level"):
        ask(level="model")
    with pytest.raises(BadInput, match="reference of shape \\[2, 3\\]"):
        ask(reference=torch.zeros(2, 3))
    with pytest.raises(BadInput, match="top=0"):
        ask(how="topk", top=0)
    with pytest.raises(BadInput, match="has no sign"):
        ask("sign_disagreement", reference="leave_one_out")
    with pytest.raises(Unsupported, match="use reference='gradient'"):
        interp.score(
            vit.model, vit.batch(2), {"x": {"score": "attention_attribution_agreement", "reference": "leave_one_out"}}
        )
