"""True regions: planted numbers, chance by counting orders, ties, and the shapes whose places are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conformance.support import Case
from sklearn.metrics import roc_auc_score

import interp
from interp import BadInput, Trace, UnknownName
from interp.tracing.protocols.localisation import auroc, iou, mass, pointing

CaseOf = Callable[[str], Case]
REGION = np.array([True, False, True, False, False])


def made(values: np.ndarray) -> Trace:
    prompts, sources = values.shape
    words = (tuple(map(str, range(sources))),) * prompts
    targets, mask = np.zeros((prompts, 1), dtype=int), np.ones(values.shape, dtype=bool)
    return Trace("made", values[:, None], targets, mask, words, (("x",),) * prompts, "vision")


def test_by_hand() -> None:
    numbers = np.array([3.0, 2.0, 1.0, 0.0, -4.0])
    assert pointing(numbers, REGION) == 1 and mass(numbers, REGION) == pytest.approx(4 / 6)
    assert auroc(numbers, REGION) == pytest.approx(5 / 6) and iou(numbers, REGION) == pytest.approx(1 / 3)
    assert pointing(-numbers, REGION) == 0
    assert pointing(np.array([1.0, 1, 0, 1, 0]), REGION) == pytest.approx(1 / 3)  # ties: the share inside
    assert np.isnan(mass(-np.ones(5), REGION))


def test_auroc_is_sklearns_with_ties() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        numbers, region = draw.integers(0, 4, 12).astype(float), draw.random(12) < 0.4
        if region.any() and not region.all():
            assert auroc(numbers, region) == pytest.approx(roc_auc_score(region, numbers))


@pytest.mark.parametrize("measure", [pointing, mass, auroc, iou])
def test_chance_is_the_mean_over_all_orders(measure: Callable[[np.ndarray, np.ndarray], float]) -> None:
    numbers = np.array([5.0, 3.0, 3.0, 1.0, 0.5])
    mean = np.mean([measure(np.array(order), REGION) for order in itertools.permutations(numbers)])
    chance = interp.localisation({"x": made(numbers[None])}, REGION[None]).chance[measure.__name__][0]
    assert chance == pytest.approx(mean)


def test_ties_stand_for_the_mean_over_their_orders() -> None:
    """Numbers with ties score what slightly different numbers score on average; even numbers are at chance."""
    numbers = np.array([2.0, 1.0, 1.0, 1.0, 0.0])
    for measure in (pointing, auroc, iou):
        broken = [
            measure(numbers + 1e-6 * np.array([0, *order, 0]), REGION) for order in itertools.permutations((1, 2, 3))
        ]
        assert measure(numbers, REGION) == pytest.approx(np.mean(broken), abs=1e-5)
    even = interp.localisation({"even": made(np.ones((1, 5)))}, REGION[None])
    for name, found in even.values["even"].items():
        assert found[0] == pytest.approx(even.chance[name][0])


def test_knowing_everything_and_nothing() -> None:
    draw = np.random.default_rng(0)
    regions = draw.random((300, 12)) < 0.3
    regions[0] = False  # nothing to point at
    right = made(regions + 0.01 * draw.random(regions.shape))
    noise = made(draw.random(regions.shape))
    found = interp.localisation({"right": right, "noise": noise}, regions)
    table = found.table().set_index(["trace", "measure"])
    usable = int((regions.any(1) & ~regions.all(1)).sum())
    for measure in ("pointing", "auroc", "iou"):
        assert table.loc[("right", measure), "mean"] == 1
    for measure in ("pointing", "mass", "auroc", "iou"):
        row = table.loc[("noise", measure)]
        assert row["above_low"] <= 0 <= row["above_high"] and row["prompts"] == usable
        assert table.loc[("right", measure), "above_low"] > 0
    assert np.isnan(found.values["right"]["pointing"][0]) and "chance" in repr(found)


def test_columns_and_patches_without_a_number() -> None:
    values = np.array([[9.0, 0.0, 1.0, 5.0, 2.0]])
    region = np.array([[False, True, False]])
    found = interp.pointing_game({"x": made(values)}, region, columns=[2, 3, 4])
    assert found.values["x"]["pointing"][0] == 1
    per_prompt = interp.region_iou({"x": made(values)}, torch.from_numpy(region), columns=torch.tensor([[2, 3, 4]]))
    assert per_prompt.values["x"]["iou"][0] == 1
    values[0, 3] = np.nan  # the only patch of the region has no number
    assert np.isnan(interp.pointing_game({"x": made(values)}, region, columns=[2, 3, 4]).values["x"]["pointing"][0])
    signed = made(np.array([[-9.0, 1.0, 0.0]]))
    assert interp.pointing_game({"x": signed}, region).values["x"]["pointing"][0] == 1
    assert interp.pointing_game({"x": signed}, region, absolute=True).values["x"]["pointing"][0] == 0


def test_patches_as_columns(case_of: CaseOf) -> None:
    vit = case_of("vit")
    assert interp.patch_columns(vit.model, vit.batch(2)).tolist() == [[1, 2, 3, 4]] * 2
    llava = case_of("llava")
    batch = llava.batch(2, 5)
    assert interp.patch_columns(llava.model, batch).tolist() == [[1, 2, 3, 4]] * 2
    assert interp.patch_columns(llava.model, batch, "vision").shape == (2, 4)
    packed = case_of("idefics3")
    with pytest.raises(BadInput, match="no single patches"):
        interp.patch_columns(packed.model, packed.batch(2, 5), grid=(2, 2, 0))


def test_refusals() -> None:
    trace = made(np.ones((1, 5)))
    with pytest.raises(BadInput, match="no traces"):
        interp.localisation({}, REGION[None])
    with pytest.raises(BadInput, match="columns="):
        interp.localisation({"x": trace}, REGION[None, :3])
    with pytest.raises(BadInput, match="True and False"):
        interp.localisation({"x": trace}, REGION[None].astype(float))
    with pytest.raises(BadInput, match="whole numbers from 0 to 4"):
        interp.localisation({"x": trace}, REGION[None], columns=[0, 1, 2, 3, 5])
    with pytest.raises(BadInput, match=r"\[prompt, patch\] of 1 prompts"):
        interp.localisation({"x": trace}, REGION[None], columns=[[0, 1, 2, 3, 4]] * 2)
    with pytest.raises(BadInput, match="target=3"):
        interp.localisation({"x": trace}, REGION[None], target=3)
    with pytest.raises(UnknownName, match="measure"):
        interp.localisation({"x": trace}, REGION[None], measures=("dice",))


def test_the_shape_that_is_asked_for() -> None:
    """A vision-language model with known circuits: covering patches finds the asked shape above chance."""
    pytest.importorskip("PIL")
    from interp.zoo.shapes import CLEAR, random_picture
    from interp.zoo.shapes_text import vision_items

    model = interp.load("shapes-vlm")
    draw = np.random.default_rng(1)
    pictures = [random_picture(draw, count=2, contrast=CLEAR) for _ in range(8)]
    pairs = [(picture, item) for picture, item in zip(pictures, vision_items(pictures, ("color",), draw), strict=True)
             if item.about is not None]  # fmt: skip
    regions = np.stack([item.about.patches.ravel() for _, item in pairs])
    batch = interp.encode(
        model,
        [f"<image> {item.prompt}" for _, item in pairs],
        images=[picture.pixels for picture, _ in pairs],
        answers=[(item.answer, item.wrong) for _, item in pairs],
    )
    found = interp.trace(model, batch, "blank-out", metric=interp.logit_difference)
    columns = interp.patch_columns(model, batch)
    measures = ("pointing", "mass", "iou")
    seen = interp.localisation({"blank-out": found}, regions, columns=columns, measures=measures).table()
    assert len(pairs) > 4 and (seen["above_low"] > 0).all()
