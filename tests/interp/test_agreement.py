"""Agreement of tables: against scipy and enumeration, shared prompts drawn together, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

import interp
from interp import AgreementMatrix, HeadScores
from interp.errors import BadInput
from interp.stats import Agreement, rank_statistics, shared_resampling


def table(values: object, name: str = "zero", **changes: object) -> HeadScores:
    settings = {"quantity": "effect", "sense": -1, "sample_axis": "prompt", **changes}
    return HeadScores.from_array(values, name=name, **settings)


@pytest.fixture
def three() -> list[HeadScores]:
    """Tables over the same 30 prompts: the second follows the first, the third has nothing to do with them."""
    generator = np.random.default_rng(0)
    first = np.arange(12.0).reshape(3, 4) + generator.normal(scale=4, size=(30, 3, 4))
    second = -first + generator.normal(scale=1, size=first.shape)
    third = generator.normal(size=first.shape)
    for each in (first, second, third):
        each[:, 2, 3] = np.nan  # no such head
    return [table(first, "zero"), table(second, "direct", quantity="contribution", sense=1), table(third, "mean")]


# ---- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_rank_statistics_are_those_of_scipy(ties: bool) -> None:
    values = np.random.default_rng(1).normal(size=(4, 25))
    values = values.round() if ties else values
    found = rank_statistics(values, top=6)
    for i in range(4):
        for j in range(4):
            assert found.spearman[i, j] == pytest.approx(scipy_stats.spearmanr(values[i], values[j]).statistic)
            assert found.kendall[i, j] == pytest.approx(scipy_stats.kendalltau(values[i], values[j]).statistic)
            if not ties:
                shared = set(np.argsort(values[i])[-6:]) & set(np.argsort(values[j])[-6:])
                assert found.overlap[i, j] == pytest.approx(len(shared) / 6)


def test_tables_that_do_not_vary_have_no_order() -> None:
    found = rank_statistics(np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]))
    assert np.isnan(found.kendall[0]).all() and np.isnan(found.overlap[0]).all() and found.kendall[1, 1] == 1
    with pytest.raises(BadInput, match="top=0"):
        rank_statistics(np.ones((2, 3)), top=0)
    with pytest.raises(BadInput, match="NaN or infinity"):
        rank_statistics(np.array([[1.0, np.nan]]))


def test_the_overlap_by_chance_is_the_mean_over_random_orders() -> None:
    generator = np.random.default_rng(2)
    shares = [rank_statistics(generator.normal(size=(2, 40)), top=10).overlap[0, 1] for _ in range(800)]
    found = interp.agreement(
        table(generator.normal(size=(5, 8)), sample_axis=None), table(generator.normal(size=(5, 8)), sample_axis=None)
    )
    assert isinstance(found, Agreement)
    assert found.expected_overlap == 0.25
    assert np.mean(shares) == pytest.approx(0.25, abs=4 * np.std(shares) / np.sqrt(len(shares)))


# ---- two tables -----------------------------------------------------------------------------------------------------


def test_importance_is_compared_and_nan_cells_are_left_out(three: list[HeadScores]) -> None:
    found = interp.agreement(three[0], three[1], top=3)
    assert isinstance(found, Agreement)
    a, b = (each.importance()[np.isfinite(each.importance())] for each in three[:2])
    assert found.n == 11 and found.top == 3
    assert found.kendall == pytest.approx(scipy_stats.kendalltau(a, b).statistic)
    assert found.spearman == three[0].agreement(three[1], top=3).spearman
    assert "% intervals over 30 prompts." in str(found) and "(27 % expected by chance)" in str(found)


def test_shared_prompts_are_resampled_together(three: list[HeadScores]) -> None:
    found = interp.agreement(three[0], three[1], draws=200, seed=7)
    assert isinstance(found, Agreement) and found.kendall_interval is not None
    weights = shared_resampling([("prompt", 30, None)], draws=200, seed=7)[0]
    assert weights is not None
    by_hand = []
    for draw in weights.weights:
        a = -(draw[:, None] * three[0].samples.reshape(30, 12)[:, :11]).sum(0)
        b = (draw[:, None] * three[1].samples.reshape(30, 12)[:, :11]).sum(0)
        by_hand.append(scipy_stats.kendalltau(a, b).statistic)
    assert found.kendall_interval == pytest.approx(np.quantile(by_hand, [0.025, 0.975]))
    assert found.kendall_interval[0] < found.kendall <= found.kendall_interval[1] + 0.05
    alone = interp.agreement(three[0], three[0], draws=50)
    assert isinstance(alone, Agreement) and alone.kendall_interval == (1.0, 1.0)  # the same draws on both sides


def test_other_samples_are_drawn_apart_and_none_gives_no_interval(three: list[HeadScores]) -> None:
    seeds = table(-three[1].samples[:10], "gates", sample_axis="seed")
    found = interp.agreement(three[0], seeds, draws=50)
    assert isinstance(found, Agreement) and found.resampled == "30 prompts and 10 seeds"
    still = table(three[2].values, "still", sample_axis=None)
    one_sided = interp.agreement(three[0], still, draws=50)
    assert isinstance(one_sided, Agreement) and one_sided.resampled == "30 prompts"
    none = interp.agreement(still, still)
    assert isinstance(none, Agreement) and none.kendall_interval is None and "interval" not in str(none)


def test_clusters_are_drawn_whole_and_must_be_the_same(three: list[HeadScores]) -> None:
    repeated = [np.repeat(each.samples[:6], 5, axis=0) for each in three]
    labels = np.repeat(np.arange(6), 5)
    free = interp.agreement(table(repeated[0]), table(repeated[1], sense=1), draws=200)
    tied = interp.agreement(table(repeated[0], cluster=labels), table(repeated[1], sense=1), draws=200)
    assert isinstance(free, Agreement) and isinstance(tied, Agreement)
    assert free.kendall_interval and tied.kendall_interval
    assert np.ptp(tied.kendall_interval) > np.ptp(free.kendall_interval)
    assert tied.resampled == "6 clusters of 30 prompts"
    with pytest.raises(BadInput, match="over 30 prompts have different cluster labels"):
        interp.agreement(table(repeated[0], cluster=labels), table(repeated[1], cluster=labels[::-1]))


def test_a_single_prompt_leaves_no_interval() -> None:
    one = table(np.arange(6.0).reshape(1, 2, 3))
    found = interp.agreement(one, one)
    assert isinstance(found, Agreement) and found.kendall == 1 and found.kendall_interval is None


def test_sizes_compare_signed_with_unsigned_tables(three: list[HeadScores]) -> None:
    unsigned = table(np.abs(three[0].values), "size", sense=0, sample_axis=None)
    with pytest.raises(BadInput, match=r"'zero' says whether .* and 'size' does not; .* by='abs'"):
        interp.agreement(three[0], unsigned)
    found = interp.agreement(three[0], unsigned, by="abs")
    assert isinstance(found, Agreement) and found.spearman == 1.0


def test_weights_of_samples_are_kept() -> None:
    values = np.random.default_rng(3).normal(size=(8, 3, 3))
    weights = np.arange(1.0, 9.0)
    found = interp.agreement(table(values, weights=weights), table(np.average(values, 0, weights)[None]))
    assert isinstance(found, Agreement) and found.kendall == 1.0


# ---- several tables -------------------------------------------------------------------------------------------------


def test_several_tables_make_a_matrix_whose_pairs_are_those_of_two(three: list[HeadScores]) -> None:
    matrix = interp.agreement(*three, draws=60)
    assert isinstance(matrix, AgreementMatrix) and matrix.names == ("zero", "direct", "mean")
    pair = interp.agreement(three[0], three[2], draws=60)
    assert matrix.of("zero", "mean") == pair == matrix.of(0, -1)
    rows = matrix.table()
    assert [tuple(row) for row in rows[["first", "second"]].to_numpy()] == [
        ("zero", "direct"), ("zero", "mean"), ("direct", "mean"),
    ]  # fmt: skip
    assert rows["kendall"].tolist() == matrix.values.kendall[[0, 0, 1], [1, 2, 2]].tolist()
    assert (rows["kendall_low"] <= rows["kendall_high"]).all()
    assert np.allclose(np.diag(matrix.values.kendall), 1) and np.allclose(
        matrix.values.overlap, matrix.values.overlap.T
    )
    assert repr(matrix).startswith("AgreementMatrix(zero, direct, mean; 11 heads, Kendall ")
    assert matrix._repr_html_().count("<tr>") == 4
    with pytest.raises(BadInput, match=r"Unknown table 'maen'\. Did you mean 'mean'"):
        matrix.of("maen", 0)


def test_the_matrix_is_drawn_with_its_intervals(three: list[HeadScores]) -> None:
    matrix = interp.agreement(*three, draws=30, names=["a", "b", "c"])
    assert isinstance(matrix, AgreementMatrix)
    figure = matrix.plot("spearman")
    assert np.array_equal(np.asarray(figure.data[0].z, dtype=float), matrix.values.spearman)
    assert list(figure.layout.xaxis.ticktext) == ["a", "b", "c"] and "95 % interval" in figure.data[0].text[0][1]
    assert matrix.plot("overlap").layout.coloraxis.cmin == 0
    with pytest.raises(BadInput, match="Unknown statistic 'kendal'"):
        matrix.plot("kendal")


def test_tables_of_one_name_are_numbered_and_stacks_join(three: list[HeadScores]) -> None:
    matrix = interp.agreement(three[0], three[0], three[1], draws=5)
    assert isinstance(matrix, AgreementMatrix) and matrix.names == ("zero 1", "zero 2", "direct")
    both = [
        HeadScores.concat(
            [each, table(each.samples * 2, each.name, quantity=each.quantity, sense=each.sense, stack="vision")]
        )
        for each in three[:2]
    ]
    found = interp.agreement(*both, draws=5)
    assert isinstance(found, Agreement) and found.n == 22


@pytest.mark.parametrize(
    ("second", "changes", "message"),
    [
        (table(np.zeros((2, 3, 3))), {}, r"the tables are of different heads \(zero: \{'text': \(2, 2\)\}"),
        (table(np.zeros((2, 2, 2)), unit="kv"), {}, "of different heads"),
        (table(np.zeros((2, 2, 2)), stack="vision"), {}, "of different heads"),
        (3, {}, "a int was given; expected HeadScores"),
        (table(np.ones((2, 2, 2))), {"by": "value"}, "Unknown order 'value'"),
        (table(np.ones((2, 2, 2))), {"names": ["a"]}, r"names=\['a'\] for 2 tables"),
        (table(np.ones((2, 2, 2))), {"confidence": 2.0}, "confidence=2.0"),
        (table([[[1.0, np.nan], [np.nan, np.nan]]] * 2), {}, "have values for 1 heads in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(second: object, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        interp.agreement(table(np.ones((2, 2, 2))), second, **changes)  # type: ignore[arg-type]
