"""Ranks and spectra against planted matrices, explicit products and every family."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import REPRESENTATIVE, Case, load_case
from tiny_models import BEYOND, TINY
from torch import Tensor

import interp
from interp import BadInput, HeadScores, Unsupported
from interp.model import head_weights as head_weights_module
from interp.model import shared_reads
from interp.model.head_weights import HeadWeights, head_weights
from interp.model.shared_reads import sharing_reads
from interp.scores import SCORES
from interp.scores.catalogue.weights import ENTRIES
from interp.scores.weights.spectra import effective_rank, nuclear_norm, singular_values, stable_rank

SPECTRA = [name for name, entry in ENTRIES.items() if entry.function.startswith("interp.scores.weights.spectra")]
EVERYONE = [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow) for name in [*TINY, *BEYOND]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(drawn(rows, columns, seed=seed)).Q


# ---- the statistics -------------------------------------------------------------------------------------------------


def test_rank_one_and_rotations() -> None:
    """The card's own checks: rank 1 gives 1 and 1, an orthogonal W gives d_head; scaling changes nothing."""
    one = singular_values(drawn(20, 1) @ drawn(1, 6, seed=1), drawn(6, 20, seed=2))
    turn = singular_values(orthonormal(20, 6), orthonormal(20, 6, seed=1).T)
    for statistic, low, high in ((stable_rank, 1, 6), (effective_rank, 1, 6), (nuclear_norm, 1, math.sqrt(6))):
        assert float(statistic(one)) == pytest.approx(low, abs=1e-6)
        assert float(statistic(turn)) == pytest.approx(high, abs=1e-9)
        some = singular_values(drawn(20, 6), drawn(6, 20, seed=1))
        assert float(statistic(some)) == pytest.approx(float(statistic(1e8 * some)), rel=1e-12)
        assert low < float(statistic(some)) < high
        assert math.isnan(float(statistic(torch.zeros(6))))


def test_written_out() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 0.0]).double()
    assert float(stable_rank(values)) == 24 / 16
    assert float(effective_rank(values)) == pytest.approx(2**1.5)  # shares 1/2, 1/4, 1/4: 3/2 bits
    assert float(nuclear_norm(values)) == pytest.approx(8 / math.sqrt(24))


def test_singular_values_without_the_product() -> None:
    left, right = drawn(3, 20, 5), drawn(3, 5, 17, seed=1)
    left[1, :, 2] = 0  # of lower rank
    found = singular_values(left, right)
    torch.testing.assert_close(found, torch.linalg.svdvals(left @ right)[:, :5], atol=1e-10, rtol=1e-10)


def test_a_full_rank_form_finds_the_nearest_neighbour_and_low_ranks_do_not() -> None:
    """The card's toy: keys on the sphere, W_QK = beta I solves it as beta grows; rank-r projections degrade."""
    keys = torch.nn.functional.normalize(drawn(40, 16), dim=-1)
    queries = torch.nn.functional.normalize(keys + 0.1 * drawn(40, 16, seed=1), dim=-1)
    nearest = (queries @ keys.T).argmax(-1)

    def hits(form: Tensor) -> float:
        mass = torch.softmax(queries @ form @ keys.T, dim=-1)
        return float(mass.gather(1, nearest[:, None]).mean())

    growing = [hits(beta * torch.eye(16).double()) for beta in (1, 10, 100)]
    assert growing == sorted(growing) and growing[-1] > 0.95
    ranks = []
    for rank in (2, 4, 8, 16):
        basis = orthonormal(16, rank, seed=3)
        ranks.append(hits(100 * basis @ basis.T))
        assert float(stable_rank(singular_values(basis, basis.T))) == pytest.approx(rank)
    assert ranks == sorted(ranks) and ranks[0] < 0.5


# ---- heads ----------------------------------------------------------------------------------------------------------


def whole(weights: HeadWeights, form: str, distance: int = 0) -> Tensor:
    """``[head, d_model, d_model]`` the explicit product."""
    if form == "qk":
        turned = weights.q if distance == 0 else weights.q @ torch.linalg.matrix_power(weights.turn, distance)  # type: ignore[arg-type]
        return turned @ weights.per_query_head(weights.k).transpose(1, 2)
    return weights.per_query_head(weights.v) @ weights.o


def scored(case: Case, name: str, **options: object) -> HeadScores:
    label = f"{name} here"
    return interp.score(case.model, case.batch(), {label: {"score": name, **options}})[label]


@pytest.mark.parametrize("fold", ["gain", "none"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "falcon-grouped", "deepseek_v3"])
def test_equals_the_explicit_matrices(family: str, fold: str) -> None:
    case = load_case(family)
    stack = case.model.stack()
    for name, form, statistic in (
        ("qk_stable_rank", "qk", stable_rank),
        ("qk_effective_rank", "qk", effective_rank),
        ("ov_stable_rank", "ov", stable_rank),
        ("ov_effective_rank", "ov", effective_rank),
        ("ov_nuclear_norm", "ov", nuclear_norm),
    ):
        found = scored(case, name, fold=fold).values
        for layer in range(stack.n_layers):
            values = torch.linalg.svdvals(whole(head_weights(case.model, stack, layer, fold=fold), form))
            np.testing.assert_allclose(found[layer], statistic(values).cpu(), rtol=1e-6)


def test_spectra_are_the_largest_singular_values() -> None:
    case = load_case("llama")
    found = scored(case, "ov_spectrum", k=5)
    assert found.positions == ("1", "2", "3", "4", "5") and found.sample_axis is None
    values = torch.linalg.svdvals(whole(head_weights(case.model, case.model.stack(), 1), "ov"))
    np.testing.assert_allclose(found.values[1], values[:, :5], rtol=1e-8)
    long = scored(case, "qk_spectrum", k=20).values
    assert np.isnan(long[..., 12:]).all() and np.isfinite(long[..., :12]).all(), "d_head is 12"
    shares = scored(case, "qk_spectrum", k=12, normalise=True).values
    np.testing.assert_allclose(shares.sum(-1), 1)


def test_distances_turn_the_queries() -> None:
    case = load_case("llama")
    weights = head_weights(case.model, case.model.stack(), 0)
    at_three = stable_rank(torch.linalg.svdvals(whole(weights, "qk", 3)))
    np.testing.assert_allclose(scored(case, "qk_stable_rank", distances=(3,)).values[0], at_three, rtol=1e-8)
    several = [stable_rank(torch.linalg.svdvals(whole(weights, "qk", distance))) for distance in (0, 1, 7)]
    found = scored(case, "qk_stable_rank", distances=(0, 1, 7)).values[0]
    np.testing.assert_allclose(found, torch.stack(several).mean(0), rtol=1e-8)
    mean_form = torch.stack([whole(weights, "qk", distance) for distance in (0, 1, 7)]).mean(0)
    found = scored(case, "qk_effective_rank", distances=(0, 1, 7), average="forms").values[0]
    np.testing.assert_allclose(found, effective_rank(torch.linalg.svdvals(mean_form)), rtol=1e-6)


def test_the_share_that_depends_on_the_distance() -> None:
    case = load_case("gpt_neox")  # half of a head's entries are turned
    weights = head_weights(case.model, case.model.stack(), 1)
    forms = torch.stack([whole(weights, "qk", distance) for distance in range(12)])
    share = 1 - forms.mean(0).square().sum((1, 2)) / forms.square().sum((2, 3)).mean(0)
    found = scored(case, "qk_distance_share", distances=tuple(range(12))).values[1]
    np.testing.assert_allclose(found, share, rtol=1e-8)
    assert ((found > 0) & (found < 1)).all()
    assert (np.abs(scored(load_case("gpt2"), "qk_distance_share").values) < 1e-12).all(), "no rotation"


def test_per_query_head_under_grouped_keys() -> None:
    """Query heads of one group share K and V, and differ in Q and O: no value is that of a whole group."""
    case = load_case("mixtral")
    for name in ("qk_stable_rank", "ov_stable_rank"):
        found = scored(case, name).values
        assert found.shape == (2, 4) and len(np.unique(found.round(9))) == 8


@pytest.mark.parametrize("family", EVERYONE)
def test_every_family_and_stack(family: str) -> None:
    """A number within the declared range for every head, or a refusal that says why."""
    case = load_case(family)
    for stack in case.model.stacks:
        for name in SPECTRA:
            entry = ENTRIES[name]
            try:
                found = interp.score(case.model, case.batch(), name, stack=stack)[name]
            except Unsupported as error:
                gated = family in ("afmoe", "qwen3_next") and name.startswith("ov")
                assert gated or (name == "qk_distance_share" and "distances" in str(error)), (stack, name, str(error))
                continue
            values = found.values[found.exists[stack]]
            there = values[np.isfinite(values)]
            layers = [layer.index for layer in case.model.stack(stack).layers if layer]
            assert np.isfinite(found.values[layers][..., 0] if values.ndim > 1 else found.values[layers]).all()
            assert (there >= entry.range[0] - 1e-9).all() and (there <= entry.range[1]).all(), (stack, name)
            assert found.sample_axis is None and found.unit == "query"


def test_neither_prompts_nor_padding_matter() -> None:
    case = load_case("gpt2")
    ids = torch.tensor([[1, 7, 8, 9], [1, 9, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    names = [*SPECTRA, "ov_copying", "qk_copying", "q_composition", "k_composition", "v_composition"]
    expected = interp.score(case.model, case.batch(), names)
    for batch in (
        interp.encode(case.model, ids, mask=mask),
        interp.encode(case.model, ids.flip(1), mask=mask.flip(1)),
    ):
        for sinks in (None, "first"):
            found = interp.score(case.model, batch, names, exclude_sinks=sinks)
            for name in names:
                np.testing.assert_array_equal(found[name].values, expected[name].values)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qk_stable_rank", {"distances": (-1,)}, r"distances=\(-1,\); expected whole numbers of positions from 0 on"),
        ("qk_stable_rank", {"distances": ()}, "expected whole numbers"),
        ("qk_stable_rank", {"average": "mean"}, "Unknown average 'mean'"),
        ("ov_stable_rank", {"fold": "all"}, "Unknown fold 'all'"),
        ("ov_spectrum", {"k": 0}, "k=0; expected how many singular values"),
        ("qk_distance_share", {"distances": (4,)}, "no two different ones"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        scored(load_case("gpt2"), name, **options)


def test_refusals() -> None:
    gated = load_case("qwen3_next")
    with pytest.raises(Unsupported, match=r"no layer of stack 'text' \(qwen3_next\) has an OV matrix: .*gate"):
        scored(gated, "ov_stable_rank")
    with pytest.raises(Unsupported, match=r"no power of one rotation.*only distances=\(0,\)"):
        interp.score(
            load_case("t5").model, load_case("t5").batch(), {"far": {"score": "qk_stable_rank", "distances": (2,)}},
            stack="cross",
        )  # fmt: skip


def test_a_head_of_zeros_is_nan() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
    found = interp.score(model, batch, ["qk_stable_rank", "ov_effective_rank", "ov_nuclear_norm", "qk_distance_share"])
    for name in found:
        assert np.isnan(found[name].values[1, 1]), "L1.H1 has no query, key or output"
        assert np.isfinite(found[name].values[0]).all()


def test_scores_of_one_scoring_share_their_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is read once for each fold, whatever is asked for; nothing is kept for the next scoring."""
    case = load_case("llama")
    batch, n_layers = case.batch(), case.model.stack().n_layers
    reads: list[tuple[int, str]] = []
    own = head_weights_module._read

    def counting(stack: Any, layer: int, wirings: Any, fold: str) -> Any:
        reads.append((layer, fold))
        return own(stack, layer, wirings, fold)

    monkeypatch.setattr(head_weights_module, "_read", counting)
    names = [name for name, entry in SCORES.items() if entry.needs == "weights" and entry.where in ("any", "text")]
    wanted: dict[str, dict[str, Any]] = {name: {} for name in names}
    wanted["unfolded"] = {"score": "ov_stable_rank", "fold": "none"}
    together = interp.score(case.model, batch, wanted)
    assert sorted(reads) == sorted((layer, fold) for layer in range(n_layers) for fold in ("gain", "none"))
    assert case.model.reads == []
    for name in names:  # each by itself
        np.testing.assert_array_equal(together[name].values, interp.score(case.model, batch, name)[name].values)
    before = interp.score(case.model, batch, "ov_spectrum")["ov_spectrum"].values
    with torch.no_grad():
        for layer in range(n_layers):
            case.model.stack().layer(layer).out.weight.data.mul_(2)  # type: ignore[union-attr]
    after = interp.score(case.model, batch, "ov_spectrum")["ov_spectrum"].values
    np.testing.assert_allclose(after, 2 * before, rtol=1e-12)


def test_a_shared_read_is_bounded_and_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    case = load_case("llama")
    stack = case.model.stack()
    with sharing_reads(case.model):
        first = head_weights(case.model, stack, 0)
        assert head_weights(case.model, stack, 0) is first
        projection = stack.layer(0).attention.get_submodule("q_proj")
        with torch.no_grad():
            projection.weight.mul_(2)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(head_weights(case.model, stack, 0).q, 2 * first.q)
    monkeypatch.setattr(shared_reads, "MOST_BYTES", 0)
    with sharing_reads(case.model):
        one, other = (head_weights(case.model, stack, 0) for _ in range(2))
        assert one is not other and torch.equal(one.q, other.q)


def test_a_scoring_after_training_sees_the_new_gains() -> None:
    """On the induction zoo model: norms doubled between two scorings double both sides of the QK form."""
    model = interp.load("induction")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
    names = {"qk_spectrum": {"k": 1}}
    before = interp.score(model, batch, names)["qk_spectrum"].values
    with torch.no_grad():
        for module in model.hf.modules():
            if "Norm" in type(module).__name__:
                module.weight.mul_(2)  # type: ignore[operator, union-attr]
    after = interp.score(model, batch, names)["qk_spectrum"].values
    np.testing.assert_allclose(after, 4 * before, rtol=1e-4)
