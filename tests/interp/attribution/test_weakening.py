"""Ordered weakening: by paper on a model whose heads add up, against loops of single runs, and the random null."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from sum_of_heads import prompts, sum_of_heads

import interp
from interp import At, BadInput, Batch, Head, HeadScores, Model, Site
from interp.attribution.weakening import WeakeningCurves, weakening_curves

STRENGTHS = np.array([[0.5, 1.0, 4.0, 2.0, 0.0, 1.5], [3.0, 0.25, 0.75, 5.0, 0.1, 2.5]])
TINY = tiny_gpt2()
ORDER = [Head(1, 0), Head(0, 1), Head(2, 1), Head(1, 1), Head(0, 0), Head(2, 0)]  # least relevant first


@pytest.fixture(scope="module")
def added() -> Model:
    return sum_of_heads(STRENGTHS.tolist())


def tiny_batch(*, ragged: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1, 13, (4, 5), generator=generator).tolist()
    ids = [row[: 5 - (place % 2)] for place, row in enumerate(rows)] if ragged else rows
    spans = {"word": [range(1, 3), range(1, 2), range(2, 4), range(0, 1)]}
    return interp.encode(TINY, ids, answers=[(2, 3)] * 4, spans=spans)


def of_strengths() -> HeadScores:
    return HeadScores.from_array(STRENGTHS, name="strength", quantity="contribution", sense=1)


def brute(batch: Batch, edits: list[Any]) -> np.ndarray:
    logits = interp.run(TINY, batch, edits=edits).logits
    assert logits is not None
    return interp.logit_difference(logits, batch).double().numpy()


@pytest.mark.parametrize("factor", [0.0, 0.5, -2.0])
def test_a_sum_of_heads_weakens_along_the_partial_sums(added: Model, factor: float) -> None:
    batch, weights = prompts(added)
    curves = weakening_curves(added, batch, of_strengths(), factor=factor, steps=12, random=0)
    ascending = np.sort(STRENGTHS.ravel())
    lost = {
        "most": np.concatenate([[0.0], np.cumsum(ascending[::-1])]),
        "least": np.concatenate([[0.0], np.cumsum(ascending)]),
    }
    for name, partial in lost.items():
        expected = (STRENGTHS.sum() - (1 - factor) * partial)[:, None] * np.array(weights)
        np.testing.assert_allclose(getattr(curves, name), expected, atol=5e-4)
    between = (1 - factor) * (lost["most"] - lost["least"])[1:-1].sum() / 12 * np.mean(weights)
    assert curves.gap.mean == pytest.approx(between, rel=1e-4) and curves.gap.low > 0
    assert curves.weakened.tolist() == list(range(13)) and curves.order[0] == Head(1, 3)


def test_random_orders_lie_between_and_are_no_match(added: Model) -> None:
    batch, weights = prompts(added)
    curves = weakening_curves(added, batch, of_strengths(), steps=6, random=60)
    middle = curves.random.mean((0, 2))
    assert (curves.most.mean(1)[1:-1] < middle[1:-1]).all() and (middle[1:-1] < curves.least.mean(1)[1:-1]).all()
    line = STRENGTHS.sum() * (1 - curves.share) * np.mean(weights)
    assert np.abs(middle - line).max() < 4 * STRENGTHS.std() * 12**0.5 * np.mean(weights) / 60**0.5
    assert curves.p == pytest.approx(1 / 61)
    few = weakening_curves(added, batch, of_strengths(), steps=6, random=3)
    assert few.p is None and few.random.shape == few.random_reversed.shape == (3, 7, 8)


def test_a_random_ranking_has_no_gap_to_speak_of(added: Model) -> None:
    batch, _ = prompts(added)
    generator = np.random.default_rng(0)
    found = [
        weakening_curves(
            added, batch, HeadScores.from_array(generator.normal(size=(2, 6)), name="nonsense", sense=1), steps=3,
            random=20, seed=draw,
        )
        for draw in range(24)
    ]  # fmt: skip
    gaps, ps = [curves.gap.mean for curves in found], [curves.p for curves in found]
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / 24**0.5
    assert np.mean(np.array(ps, dtype=float) <= 0.1) <= 0.3 and np.mean(np.array(ps, dtype=float)) > 0.35


def test_every_point_at_z_equals_a_run_of_its_own() -> None:
    batch = tiny_batch()
    curves = weakening_curves(TINY, batch, ORDER, factor=-0.5, steps=6, random=0)
    for step in range(7):
        most = [interp.scale(At(Site.Z, head.layer, heads=(head.index,)), -0.5) for head in ORDER[::-1][:step]]
        least = [interp.scale(At(Site.Z, head.layer, heads=(head.index,)), -0.5) for head in ORDER[:step]]
        np.testing.assert_allclose(curves.most[step], brute(batch, most), atol=1e-5)
        np.testing.assert_allclose(curves.least[step], brute(batch, least), atol=1e-5)


def test_a_map_weakened_at_every_key_is_z_weakened() -> None:
    batch = tiny_batch()
    maps = weakening_curves(TINY, batch, ORDER, factor=-2.0, site=Site.PATTERN, steps=3, random=2)
    outputs = weakening_curves(TINY, batch, ORDER, factor=-2.0, steps=3, random=2)
    for name in ("most", "least", "random"):
        np.testing.assert_allclose(getattr(maps, name), getattr(outputs, name), atol=2e-5)


@pytest.mark.parametrize("keys", ["word", 0, slice(1, 3)])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_map_weakened_at_chosen_keys_equals_the_map_set_by_hand(keys: Any, batch_size: int | None) -> None:
    batch = tiny_batch(ragged=True)
    curves = weakening_curves(
        TINY, batch, ORDER, factor=-2.0, site="pattern", keys=keys, steps=3, random=0, batch_size=batch_size
    )
    first, second = ([place in places for place in range(5)] for places in ((0,), (1, 2)))
    members = {"word": batch.spans["word"], "0": torch.tensor([first] * 4)}
    member = members.get(str(keys), torch.tensor([second] * 4))

    def by_hand(x: torch.Tensor, ctx: Any) -> torch.Tensor:
        changed = x.clone()
        for row in range(len(batch)):
            changed[row][..., member[row]] *= -2.0
        return changed

    for step, count in enumerate((0, 2, 4, 6)):
        edits = [interp.custom(At(Site.PATTERN, head.layer, heads=(head.index,)), by_hand) for head in ORDER[:count]]
        np.testing.assert_allclose(curves.least[step], brute(batch, edits), atol=1e-5)


def test_a_name_ranks_on_other_prompts(added: Model) -> None:
    batch, _ = prompts(added)
    curves = weakening_curves(added, batch, "zero", steps=2, random=0)
    assert curves.order[0] == Head(1, 3) and curves.most.shape == (3, 4) and curves.metadata["disjoint"] is True


def test_the_table_and_the_file_hold_all(added: Model, tmp_path: Path) -> None:
    batch, _ = prompts(added)
    curves = weakening_curves(added, batch, of_strengths(), factor=0.5, steps=4, random=21)
    rows = curves.table()
    assert list(rows.columns) == [
        "weakened", "share", "most", "most_low", "most_high", "least", "least_low", "least_high", "random",
        "random_low", "random_high",
    ]  # fmt: skip
    np.testing.assert_allclose(rows["most"], curves.most.mean(1))
    back = WeakeningCurves.open(curves.save(tmp_path / "curves.safetensors"))
    np.testing.assert_array_equal(back.random_reversed, curves.random_reversed)
    assert (str(back), back.order, back.metadata) == (str(curves), curves.order, curves.metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "q"}, r"expected Site\.Z or Site\.PATTERN"),
        ({"keys": 0}, r"give site=Site\.PATTERN"),
        ({"factor": float("nan")}, "expected a finite number"),
        ({"factor": "strong"}, "expected a finite number"),
        ({"site": "pattern", "keys": "nowhere"}, "Unknown span 'nowhere'"),
        ({"steps": -1}, "at least one step"),
    ],
)
def test_what_cannot_be_is_refused(added: Model, changes: dict[str, Any], message: str) -> None:
    batch, _ = prompts(added)
    with pytest.raises(BadInput, match=message):
        weakening_curves(added, batch, of_strengths(), **{"random": 0, **changes})


def test_a_metric_to_be_minimised_gives_the_same_gap(added: Model) -> None:
    def negative(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return -interp.logit_difference(logits, batch)

    negative.sense = -1  # type: ignore[attr-defined]
    batch, _ = prompts(added)
    plain = weakening_curves(added, batch, of_strengths(), steps=4, random=20)
    turned = weakening_curves(added, batch, of_strengths(), metric=negative, steps=4, random=20)
    np.testing.assert_allclose(turned.most, -plain.most, atol=1e-5)
    assert turned.gap.mean == pytest.approx(plain.gap.mean, rel=1e-5) and turned.p == plain.p


def test_a_change_of_kernels_is_not_an_effect() -> None:
    """Maps are edited in the eager kernel, which differs from the plain one in bfloat16; a factor of 1 does nothing."""
    model = tiny_gpt2(dtype=torch.bfloat16)
    ids = torch.randint(1, 13, (6, 9), generator=torch.Generator().manual_seed(0))
    batch = interp.encode(model, ids, answers=[(2, 3)] * 6)
    plain, eager = (interp.run(model, batch, kernels=kernels).logits for kernels in (None, "eager"))
    assert plain is not None and eager is not None
    values = interp.logit_difference(plain, batch)
    assert float((interp.logit_difference(eager, batch) - values).abs().max()) > 1e-3
    curves = weakening_curves(model, batch, ORDER, factor=1.0, site=Site.PATTERN, steps=6, random=0)
    np.testing.assert_allclose(curves.most, np.broadcast_to(values.numpy(), (7, 6)), atol=1e-6)
