"""Composition scores against explicit d_model x d_model products, planted heads, chance and every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import REPRESENTATIVE, counted_forwards, load_case
from tiny_models import BEYOND, TINY
from torch import Tensor

import interp
from interp import BadInput, Composition, Unsupported
from interp.model.head_weights import HeadWeights, head_weights
from interp.scores.weights.composition_chance import chance_score, chance_spread, concentration, random_scores
from interp.scores.weights.composition_pairs import all_pairs, composition_score, forms_of, root
from interp.show.composition import composition_figure

POST = ("bert", "roberta", "distilbert", "electra", "gte", "bart", "opt-post")
GATED = ("afmoe", "qwen3_next")
EVERYONE = [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow) for name in [*TINY, *BEYOND]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(layer: int, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> HeadWeights:
    nothing = [each.new_zeros(each.shape[0], each.shape[2]) for each in (q, k, v)]
    return HeadWeights(layer, q, k, v, o, nothing[0], nothing[1], nothing[2], None, None)


def random_layer(layer: int, heads: int = 3, kv: int = 3, d_model: int = 20, d_head: int = 5) -> HeadWeights:
    return planted(
        layer,
        drawn(heads, d_model, d_head, seed=10 * layer),
        drawn(kv, d_model, d_head, seed=10 * layer + 1),
        drawn(kv, d_model, d_head, seed=10 * layer + 2),
        drawn(heads, d_head, d_model, seed=10 * layer + 3),
    )


def by_whole_matrices(
    weights: dict[int, HeadWeights], kind: str, first: tuple[int, int], second: tuple[int, int]
) -> float:
    """The definition, with every matrix written out."""
    a, b = weights[first[0]], weights[second[0]]
    written = a.per_query_head(a.v)[first[1]] @ a.o[first[1]]
    form = b.q[second[1]] @ b.per_query_head(b.k)[second[1]].T
    read = {"q": form, "k": form.T, "v": b.per_query_head(b.v)[second[1]] @ b.o[second[1]]}[kind]
    return float(composition_score(written, read))


def check(values: np.ndarray, weights: dict[int, HeadWeights], kinds: str) -> int:
    """Every pair against the definition; how many pairs there were."""
    counted = 0
    for place, kind in enumerate(kinds):
        for index in np.ndindex(*values.shape[1:]):
            first, second = index[:2], index[2:]
            there = first[0] in weights and second[0] in weights and first[0] < second[0]
            found = values[(place, *index)]
            if not there:
                assert np.isnan(found)
                continue
            counted += 1
            assert found == pytest.approx(by_whole_matrices(weights, kind, first, second), rel=1e-6)
    return counted


# ---- planted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [3, 1])
def test_equals_whole_matrices(kv: int) -> None:
    weights = {layer: random_layer(layer, kv=kv) for layer in range(3)}
    forms = {layer: forms_of(each, range(3), "qkv") for layer, each in weights.items()}
    values = all_pairs(forms, ("q", "k", "v"), 3, 3)
    assert values.shape == (3, 3, 3, 3, 3) and check(values, weights, "qkv") == 3 * 3 * 9


def test_what_is_written_where_nothing_reads_is_zero_and_the_whole_of_it_one() -> None:
    """An earlier head writes e_0; a later head's queries read e_0 alone, another's e_1 alone."""
    unit = torch.eye(8).double()
    writer = planted(
        0, drawn(2, 8, 1, seed=1), drawn(2, 8, 1, seed=2), drawn(2, 8, 1, seed=3), unit[None, :1].expand(2, -1, -1)
    )
    reader = planted(1, unit[:2, :, None], unit[4:6, :, None], unit[[6, 0], :, None], drawn(2, 1, 8, seed=4))
    forms = {0: forms_of(writer, (0, 1), "qkv"), 1: forms_of(reader, (0, 1), "qkv")}
    values = all_pairs(forms, ("q", "k", "v"), 2, 2)
    np.testing.assert_allclose(values[0, 0, :, 1], [[1, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(values[1, 0, :, 1], 0, atol=1e-12)
    np.testing.assert_allclose(values[2, 0, :, 1], [[0, 1], [0, 1]], atol=1e-12)
    assert np.isnan(values[:, 1]).all() and np.isnan(values[:, :, :, 0]).all()


def test_a_head_of_zeros_composes_with_nobody() -> None:
    weights = random_layer(1)
    weights.o[1] = 0
    forms = {0: forms_of(random_layer(0), range(3), "v"), 1: forms_of(weights, range(3), "v")}
    values = all_pairs(forms, ("v",), 2, 3)[0, 0, :, 1]
    assert np.isnan(values[:, 1]).all() and np.isfinite(values[:, [0, 2]]).all()


def test_the_small_root_has_the_gram_matrix_of_the_tall_one() -> None:
    tall = drawn(3, 30, 6)
    tall[1, :, 3] = tall[1, :, 2]  # of lower rank
    tall[2] = 0
    made = root(tall)
    torch.testing.assert_close(made.transpose(1, 2) @ made, tall.transpose(1, 2) @ tall, atol=1e-10, rtol=1e-10)
    full = root(drawn(2, 30, 6))
    torch.testing.assert_close(full.transpose(1, 2) @ full, drawn(2, 30, 6).transpose(1, 2) @ drawn(2, 30, 6))


# ---- chance ----------------------------------------------------------------------------------------------------------


def test_chance_under_random_rotations() -> None:
    """Mean and spread of the squared score over drawn rotations, for two forms of very unlike spectra."""
    d, draws = 12, 6000
    generator = torch.Generator().manual_seed(0)
    writer = torch.diag(torch.tensor([5.0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]).double())
    reader = torch.diag(torch.tensor([2.0, 2, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0]).double())
    normal = torch.randn(draws, d, d, generator=generator, dtype=torch.float64)
    made = torch.linalg.qr(normal)
    turns = made.Q * made.R.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    squares = ((writer @ turns @ reader).square().sum((1, 2)) / (writer.square().sum() * reader.square().sum())).numpy()
    assert squares.mean() == pytest.approx(1 / d, rel=0.03) and chance_score(d) ** 2 == pytest.approx(1 / d)
    first, second = (np.array(float(concentration(form.T @ form))) for form in (writer, reader))
    assert squares.std() == pytest.approx(float(chance_spread(first, second, d)), rel=0.05)


def test_random_heads_of_the_same_shapes() -> None:
    found = random_scores(48, 8, draws=300)
    assert np.sqrt((found**2).mean()) == pytest.approx(chance_score(48), rel=0.02)
    assert np.array_equal(found, random_scores(48, 8, draws=300))
    with pytest.raises(BadInput, match=r"draws=0; expected a whole number"):
        random_scores(48, 8, draws=0)


def test_excess_counts_standard_deviations() -> None:
    model = interp.load("induction")
    found = interp.composition(model, "k")
    weights = {layer: head_weights(model, model.stack(), layer) for layer in range(2)}
    a = weights[0].v[1] @ weights[0].o[1]
    b = (weights[1].q[3] @ weights[1].k[3].T).T
    d = a.shape[0]
    first, second = (np.array(float(concentration(form.T @ form))) for form in (a, b.T))
    spread = float(chance_spread(first, second, d))
    expected = (float(composition_score(a, b)) ** 2 - 1 / d) / spread
    assert found.excess[0, 0, 1, 1, 3] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(found.excess[0, 1]).all()


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", ["gain", "none", "norm"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "granite", "deepseek_v3", "gemma2"])
def test_models_against_whole_matrices(family: str, fold: str) -> None:
    case = load_case(family)
    stack = case.model.stack()
    found = interp.composition(case.model, fold=fold)
    weights = {layer: head_weights(case.model, stack, layer, fold=fold) for layer in range(stack.n_layers)}
    assert check(found.values, weights, "qkv") == 3 * 16
    assert found.kinds == ("q", "k", "v") and found.d_model == 32


@pytest.mark.parametrize("family", EVERYONE)
def test_every_family_and_stack(family: str) -> None:
    case = load_case(family)
    for name, stack in case.model.stacks.items():
        refused = "cross-attention" if stack.cross else "gate" if family in GATED else None
        refused = refused or ("itself normalised" if stack.family.norm == "post" else None)
        if refused:
            with pytest.raises(Unsupported, match=refused):
                interp.composition(case.model, stack=name)
            if stack.cross or family in GATED:
                continue
        found = interp.composition(case.model, stack=name, fold="none" if refused else "gain")
        layers = [layer.index for layer in stack.layers if layer]
        pairs = sum(
            stack.n_heads(first) * stack.n_heads(second) for first in layers for second in layers if first < second
        )
        assert np.isfinite(found.values).sum() == 3 * pairs
        there = found.values[np.isfinite(found.values)]
        assert ((there > 0) & (there <= 1)).all()


def test_known_circuits_are_found() -> None:
    """The induction head reads by its keys what the previous-token head writes."""
    handmade = interp.composition(interp.load("handmade"))
    assert handmade.top(1)[["kind", "first", "second"]].values.tolist() == [["k", "L0.H0", "L1.H0"]]
    assert handmade.of("k")[0, 1, 1, 0] == pytest.approx(0, abs=1e-7)
    trained = interp.composition(interp.load("induction"), "k")
    assert trained.values[0, 0, :, 1, 0].max() > 1.5 * trained.chance


def test_some_heads_alone() -> None:
    case = load_case("llama")
    whole = interp.composition(case.model)
    some = interp.composition(case.model, "vq", heads=["L0.H1", (1, 2), "1.3"])
    assert some.kinds == ("q", "v") and [str(head) for head in some.heads] == ["L0.H1", "L1.H2", "L1.H3"]
    assert np.isfinite(some.values).sum() == 4
    np.testing.assert_allclose(some.of("v")[0, 1, 1, [2, 3]], whole.of("v")[0, 1, 1, [2, 3]])
    assert some.matrix("q").shape == (3, 3)


def test_single_precision_is_near() -> None:
    case = load_case("llama")
    whole = interp.composition(case.model)
    single = interp.composition(case.model, dtype=torch.float32)
    there = np.isfinite(whole.values)
    np.testing.assert_allclose(single.values[there], whole.values[there], rtol=5e-6)
    assert not np.array_equal(single.values[there], whole.values[there])


def test_no_forward_of_prompts_and_one_probe() -> None:
    case = load_case("gpt2")
    with counted_forwards(case) as calls:
        interp.composition(case.model)
        interp.composition(case.model, "q")
    assert len(calls) == 1


# ---- the result ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def induction() -> Composition:
    return interp.composition(interp.load("induction"))


def test_table_and_top(induction: Composition) -> None:
    rows = induction.table()
    assert list(rows.columns) == ["kind", "first", "second", "value", "chance", "excess"]
    assert len(rows) == 3 * 16 and rows["value"].is_monotonic_decreasing
    assert set(induction.top(4, kind="v")["kind"]) == {"v"} and len(induction.top(4)) == 4
    first = rows.iloc[0]
    layer, head = interp.Head.parse(first["first"])[:2], interp.Head.parse(first["second"])[:2]
    assert induction.of(first["kind"])[(*layer, *head)] == first["value"]
    assert repr(induction).startswith("Composition(q, k, v; 8 heads, largest 0.4")


def test_matrix_is_in_the_order_of_heads(induction: Composition) -> None:
    matrix = induction.matrix("k")
    assert matrix.shape == (8, 8) and np.isnan(matrix[4:]).all() and np.isnan(matrix[:, :4]).all()
    assert matrix[1, 7] == induction.of("k")[0, 1, 1, 3]


def test_saved_and_opened(induction: Composition, tmp_path: Path) -> None:
    again = Composition.open(induction.save(tmp_path / "composition.safetensors"))
    np.testing.assert_array_equal(again.values, induction.values)
    np.testing.assert_array_equal(again.excess, induction.excess)
    assert (again.kinds, again.d_model, again.heads) == (induction.kinds, induction.d_model, induction.heads)
    assert again.metadata == induction.metadata and again.top(3).equals(induction.top(3))
    other = interp.score(
        interp.load("handmade"), interp.encode(interp.load("handmade"), torch.tensor([[0, 3]])), "entropy"
    )
    with pytest.raises(BadInput, match="not of composition"):
        Composition.open(other["entropy"].save(tmp_path / "other.safetensors"))


def test_per_head(induction: Composition) -> None:
    k = induction.of("k")
    strongest = induction.per_head("k")
    np.testing.assert_allclose(strongest.values[1], k[0, :, 1].max(0))
    assert np.isnan(strongest.values[0]).all()
    out = induction.per_head("k", side="out", statistic="mean")
    np.testing.assert_allclose(out.values[0], k[0, :, 1].mean(1))
    assert np.isnan(out.values[1]).all()
    model = interp.load("induction")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
    asked = {"k_composition": {}, "mean out": {"score": "k_composition", "side": "out", "statistic": "mean"}}
    scored = interp.score(model, batch, asked)
    np.testing.assert_array_equal(scored["k_composition"].values, strongest.values)
    np.testing.assert_array_equal(scored["mean out"].values, out.values)


def test_figures(induction: Composition) -> None:
    figure = induction.plot("k")
    cells: Any = figure.data[0]
    np.testing.assert_array_equal(cells.z, induction.matrix("k")[:4, 4:])
    assert "L0.H1 \u2192 L1.H3" in cells.text[1][3]
    assert figure.layout.coloraxis.cmin == pytest.approx(induction.chance)
    assert figure.layout.title.text == "key-composition"
    large = np.full((90, 90), np.nan)
    large[:60, 30:] = 0.5
    wide = composition_figure(
        large, [f"L{i // 30}.H{i % 30}" for i in range(90)], [i // 30 for i in range(90)], chance=0.1
    )
    assert wide.layout.xaxis.ticktext == ("L1", "L2") and wide.layout.yaxis.tickvals == (14.5, 44.5)
    with pytest.raises(BadInput, match="nothing to draw"):
        composition_figure(np.full((1, 1), np.nan), ["L0.H0"], [0], chance=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": "x"}, "Unknown kind of composition 'x'"),
        ({"kinds": ""}, "no kind was given"),
        ({"heads": ["L0.H0", "L0.H1"]}, "fewer than two layers"),
        ({"heads": ["L0.H9", "L1.H1"]}, r"head L0\.H9 is not there: layer 0 of stack 'text' has 4 query heads"),
        ({"heads": ["vision.L0.H0", "L1.H1"]}, r"is not of stack 'text'; give stack='vision'"),
        ({"fold": "yes"}, "Unknown fold 'yes'"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        interp.composition(interp.load("induction"), **arguments)  # type: ignore[arg-type]


def test_unknown_words(induction: Composition) -> None:
    only = interp.composition(interp.load("induction"), "q")
    for call in (only.of, only.matrix, only.plot, lambda kind: only.top(kind=kind)):
        with pytest.raises(BadInput, match=r"Unknown kind of composition 'k'\. Known: q"):
            call("k")
    with pytest.raises(BadInput, match="Unknown side 'up'"):
        induction.per_head("q", side="up")
    with pytest.raises(BadInput, match="Unknown statistic 'sum'"):
        induction.per_head("q", statistic="sum")
