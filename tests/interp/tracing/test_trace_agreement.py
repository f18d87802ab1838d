"""Agreement of traces with references: by scipy and by hand, layer by layer, with named rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from scipy import stats

import interp
from interp import BadInput, Trace, UnknownName
from interp.tracing.protocols.trace_agreement import correlations, excluded_sources, one_target

ALL = np.ones((1, 6), dtype=bool)


def made(values: np.ndarray, mask: np.ndarray | None = None, **about: object) -> Trace:
    """A trace of one target; ``values [prompt, source]`` or ``[prompt, target, source]``."""
    array = np.asarray(values, dtype=float)
    array = array[:, None] if array.ndim == 2 else array
    prompts, targets, sources = array.shape
    real = np.ones((prompts, sources), dtype=bool) if mask is None else mask
    words = tuple(tuple(str(n) if here else "" for n, here in enumerate(row)) for row in real)
    where = np.where(real[:, None], array, np.nan)
    return Trace("made", where, np.zeros((prompts, targets), dtype=int), real, words,
                 tuple(("x",) * targets for _ in range(prompts)), "text", **about)  # fmt: skip


def drawn(seed: int, prompts: int = 5, sources: int = 9, *, ties: bool = False) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 4, (prompts, sources)) / 4 if ties else draw.normal(size=(prompts, sources))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_against_scipy(ties: bool, absolute: bool) -> None:
    a, b = drawn(0, ties=ties), drawn(1, ties=ties) - 0.5
    x, y = (np.abs(a), np.abs(b)) if absolute else (a, b)
    measures = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    for how, measure in measures.items():
        found = interp.trace_agreement({"a": made(a)}, {"b": made(b)}, how=how, absolute=absolute)
        exact = [measure(one, other)[0] for one, other in zip(x, y, strict=True)]
        np.testing.assert_allclose(found.values["a", "b"][0], exact, atol=1e-12)
        row = found.table().iloc[0]
        assert row["mean"] == pytest.approx(np.mean(exact)) and row["sd"] == pytest.approx(np.std(exact, ddof=1))
        assert row["low"] < row["mean"] < row["high"] and row["prompts"] == 5


def test_ties_have_their_mean_rank() -> None:
    """The formula on dense ranks, as one released script has it, is another number."""
    a, b = np.array([[1.0, 1, 2, 3, 3, 4]]), np.array([[1.0, 2, 2, 2, 5, 6]])
    found = float(correlations(a, b, ALL)[0])
    assert found == pytest.approx(stats.spearmanr(a[0], b[0]).statistic)
    dense = [stats.rankdata(x[0], method="dense") for x in (a, b)]
    wrong = 1 - 6 * float(((dense[0] - dense[1]) ** 2).sum()) / (6 * 35)
    assert abs(found - wrong) > 0.03


def test_layers_are_not_pooled() -> None:
    reference = drawn(0)
    layers = np.stack([-np.abs(reference), np.abs(reference)])[:, :, None]
    trace = made(np.abs(reference), layers=layers)
    found = interp.trace_agreement({"t": trace}, {"r": made(np.abs(reference))}, absolute=False)
    assert found.table()["mean"].round(6).tolist() == [-1, 1, 1]  # pooled, the second would be 0
    assert found.layers["t"] == (0, 1, None) and found.table()["layer"].isna().tolist() == [False, False, True]
    assert found.interval("t", "r", 0).mean == pytest.approx(-1)
    with pytest.raises(BadInput, match="no layer 5"):
        found.interval("t", "r", 5)
    assert "t with r 1.000" in repr(found)


def test_what_does_not_vary_is_dropped_or_counts_nothing() -> None:
    a = np.array([[1.0, 2, 3], [2, 2, 2], [1, 2, 3]])
    b = np.array([[1.0, 2, 3], [1, 2, 3], [3, 2, 1]])
    dropped = interp.trace_agreement({"a": made(a)}, {"b": made(b)})
    assert dropped.table()[["mean", "prompts", "undefined"]].values.tolist() == [[0.0, 2, 1]]
    zero = interp.trace_agreement({"a": made(a[:2])}, {"b": made(b[:2])}, undefined="zero")
    assert zero.table()[["mean", "prompts", "undefined"]].values.tolist() == [[0.5, 2, 1]]
    rounding = np.array([[0.1, 0.1 + 1e-17, 0.1 + 2e-17]])
    assert math.isnan(correlations(rounding, b[:1], ALL[:, :3])[0])


def test_padding_and_excluded_sources_are_compared_in_neither() -> None:
    a, b = drawn(2, 2, 6), drawn(3, 2, 6)
    mask = np.array([[False, False, True, True, True, True], [True] * 6])
    whole = interp.trace_agreement({"a": made(a, mask)}, {"b": made(b, mask)}).values["a", "b"][0]
    assert whole[0] == pytest.approx(stats.spearmanr(abs(a[0, 2:]), abs(b[0, 2:])).statistic)
    wild = b.copy()
    wild[0, 2], wild[1, 0] = 1e9, -1e9
    for exclude in ("first", excluded_sources("first", mask), torch.from_numpy(excluded_sources("first", mask))):
        one = interp.trace_agreement({"a": made(a, mask)}, {"b": made(b, mask)}, exclude=exclude)
        other = interp.trace_agreement({"a": made(a, mask)}, {"b": made(wild, mask)}, exclude=exclude)
        np.testing.assert_array_equal(one.values["a", "b"], other.values["a", "b"])
    assert excluded_sources("ends", mask).tolist() == [[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]
    assert excluded_sources([0, -1], mask).tolist() == [[1, 0, 0, 0, 0, 1]] * 2
    left = b.copy()
    left[1, 4] = np.nan  # a source that a method leaves out
    found = interp.trace_agreement({"a": made(a, mask)}, {"b": made(left, mask)}).values["a", "b"][0, 1]
    kept = [0, 1, 2, 3, 5]
    assert found == pytest.approx(stats.spearmanr(abs(a[1, kept]), abs(b[1, kept])).statistic)
    for wrong in ([6], np.zeros((2, 5), dtype=bool), 1.5):
        with pytest.raises(BadInput, match="expected None"):
            interp.trace_agreement({"a": made(a)}, {"b": made(b)}, exclude=wrong)


def test_the_largest_over_rows() -> None:
    values = drawn(4, 6, 5).reshape(2, 3, 5)
    np.testing.assert_array_equal(one_target("x", values, "max"), values.max(1))
    np.testing.assert_allclose(one_target("x", values, "mean"), values.mean(1))
    reference = drawn(5, 2, 5)
    found = interp.trace_agreement({"a": made(values)}, {"b": made(reference)}, target="max", absolute=False)
    exact = [stats.spearmanr(*pair).statistic for pair in zip(values.max(1), reference, strict=True)]
    np.testing.assert_allclose(found.values["a", "b"][0], exact)
    with pytest.raises(BadInput, match="3 targets"):
        interp.trace_agreement({"a": made(values)}, {"b": made(reference)}, target=3)


def test_top_and_shuffled_sources() -> None:
    a = drawn(6, 400, 30)
    draw = np.random.default_rng(0)
    b = np.stack([draw.permutation(row) for row in a])
    for how in ("spearman", "kendall", "pearson"):
        found = interp.trace_agreement({"a": made(a)}, {"b": made(b)}, how=how).interval("a", "b")
        assert found.low < 0 < found.high and abs(found.mean) < 0.03
    shared = interp.trace_agreement({"a": made(a)}, {"b": made(b)}, how="topk", top=6).interval("a", "b")
    assert shared.mean == pytest.approx(6 / 30, abs=0.03)
    clusters = interp.trace_agreement({"a": made(a[:20])}, {"b": made(b[:20])}, cluster=[0, 1] * 10)
    assert clusters.interval("a", "b").n_clusters == 2


def test_other_prompts_and_names_are_refused() -> None:
    a, b = made(drawn(0)), made(drawn(1, 5, 8))
    with pytest.raises(BadInput, match="same sources"):
        interp.trace_agreement({"a": a}, {"b": b})
    with pytest.raises(BadInput, match="at least one"):
        interp.trace_agreement({"a": a}, {})
    with pytest.raises(BadInput, match="ndarray"):
        interp.trace_agreement({"a": a}, {"b": a.values})  # type: ignore[dict-item]
    with pytest.raises(BadInput, match="cluster"):
        interp.trace_agreement({"a": a}, {"b": a}, cluster=[1])
    with pytest.raises(BadInput, match="top=0"):
        interp.trace_agreement({"a": a}, {"b": a}, how="topk", top=0)
    for options in ({"how": "cosine"}, {"undefined": "nan"}, {"exclude": "bos"}):
        with pytest.raises(UnknownName):
            interp.trace_agreement({"a": a}, {"b": a}, **options)


def test_traces_of_a_model_with_themselves() -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, [[1, 2, 3, 4, 5], [6, 7, 8]], answers=[(3, 4), (5, 6)])
    raw = interp.trace(model, batch, "raw", each_layer=True)
    gone = interp.trace(model, batch, "occlusion")
    found = interp.trace_agreement({"raw": raw, "gone": gone}, {"raw": raw, "gone": gone}).table()
    own = found[(found.trace == found.reference) & found.layer.isna()]
    assert own["mean"].tolist() == pytest.approx([1, 1])
    assert len(found) == 2 * (3 + 1) + 2


def test_the_protocol_of_subject_and_verb_by_hand() -> None:
    """Blank-out by forwards of our own, the gradient by autograd, rho by scipy; every layer by itself."""
    model = tiny_gpt2(check=True)
    ids = [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 1, 2]]
    batch = interp.encode(model, ids, answers=[(3, 4), (5, 6)])
    found = interp.sva_agreement(model, batch, ["raw"], ["blank-out", "gradient", "input-gradient"], replacement=0)
    at = interp.At(interp.Site.RESID_PRE, 0)

    def gap(row: list[int], answers: list[int]) -> float:
        logits = interp.run(model, interp.encode(model, [row])).logits
        assert logits is not None
        p = logits[0, -1].double().softmax(-1)
        return float(p[answers[0]] - p[answers[1]])

    def right_logit(logits: torch.Tensor, own: interp.Batch) -> torch.Tensor:
        assert own.answers is not None
        return logits[torch.arange(len(own)), own.read_at].gather(1, own.answers[:, :1])[:, 0]

    run = interp.run(model, batch, read=[at], grad=right_logit)
    assert run.grad is not None
    sums = run.grad[at].sum(-1).abs() / run.grad[at].norm(dim=-1)
    assert float(sums.max()) < 1e-4  # behind a LayerNorm the sum over channels says nothing
    for prompt, row in enumerate(ids):
        answers = batch.answers[prompt].tolist()
        whole = gap(row, answers)
        references = {
            "blank-out": [abs(whole - gap([*row[:t], 0, *row[t + 1 :]], answers)) for t in range(6)],
            "gradient": run.grad[at][prompt].norm(dim=-1).tolist(),
            "input-gradient": (run.grad[at] * run[at])[prompt].sum(-1).abs().tolist(),
        }
        for layer in range(3):
            pattern = interp.At(interp.Site.PATTERN, layer)
            relevance = interp.run(model, batch, read=[pattern])[pattern][prompt].mean(0)[-1].numpy()
            for name, numbers in references.items():
                exact = stats.spearmanr(relevance, numbers).statistic
                assert found.values["raw", name][layer, prompt] == pytest.approx(exact, abs=1e-9)


def test_the_protocol_refuses_before_it_traces() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3]])
    with pytest.raises(BadInput, match="give replacement="):
        interp.sva_agreement(model, batch, ["raw"])
    with pytest.raises(BadInput, match="right and a wrong"):
        interp.sva_agreement(model, batch, ["raw"], replacement=0)
    for methods, references in (["rawest"], ["blank-out"]), (["raw"], ["lime"]):
        with pytest.raises(UnknownName):
            interp.sva_agreement(model, batch, methods, references, replacement=0)
    with pytest.raises(BadInput, match="a list of methods"):
        interp.sva_agreement(model, batch, [], replacement=0)
