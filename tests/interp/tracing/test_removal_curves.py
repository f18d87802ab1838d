"""Deletion and insertion: planted orders, random bands, the same sets by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from torch import Tensor

import interp
from interp import BadInput, Batch, UnknownName
from interp.metrics.declare import declared
from interp.tracing.protocols.removal_curves import random_orders

IDS = [[1, 2, 3, 4, 5, 6], [6, 7, 8, 1], [9, 10, 11, 12, 2]]
SHARES = (0, 0.25, 0.5, 0.75, 1)


def worth_of(token: Tensor) -> Tensor:
    return torch.sin(token.double() * 1.7) * 3


@declared(positions="answers")
def additive(logits: Tensor, batch: Batch) -> Tensor:
    return (worth_of(batch.inputs["input_ids"]) * batch.inputs["attention_mask"]).sum(-1)


def prompts(side: str = "left") -> tuple[interp.Model, Batch]:
    model = tiny_gpt2(check=True)
    return model, interp.encode(model, IDS, answers=[(3, 4), (5, 6), (7, 8)], padding_side=side)


def test_the_best_order_of_a_sum_by_hand() -> None:
    """Taking the most valuable tokens first is the fastest fall there is, and no random order is below it."""
    model, batch = prompts()
    worth = worth_of(batch.inputs["input_ids"])
    found = interp.removal_curves(model, batch, {"best": worth, "worst": -worth}, by="remove", metric=additive,
                                  shares=SHARES, draws=40)  # fmt: skip
    for row, prompt in enumerate(IDS):
        values = np.sort(worth_of(torch.tensor(prompt[:-1])).numpy())[::-1]
        last = float(worth_of(torch.tensor(prompt[-1])))
        gone = [round(share * len(values)) for share in SHARES]
        down = [last + values[count:].sum() for count in gone]
        up = [last + values[:count].sum() for count in gone]
        np.testing.assert_allclose(found.values["deletion"]["best"][row], down, atol=1e-9)
        np.testing.assert_allclose(found.values["insertion"]["best"][row], up, atol=1e-9)
    for direction, sign in (("deletion", 1), ("insertion", -1)):
        area, null = found.area(direction), found.random_area(direction)
        assert null.shape == (40, 3)
        assert (sign * (null - area["best"]) >= -1e-9).all() and (sign * (area["worst"] - null) >= -1e-9).all()
        assert found.p(direction)["best"] == pytest.approx(1 / 41) and found.p(direction)["worst"] == 1
        low, high = found.band(direction)
        assert (low <= high).all() and low[0] == pytest.approx(high[0]) and low[-1] == pytest.approx(high[-1])
    table = found.table()
    assert table["weights"].tolist() == ["best", "worst"] * 2 and table["better"].tolist() == [1, 0, 1, 0]
    assert len(found.points()) == 2 * 2 * 5 and "40 random orders" in repr(found)


@pytest.mark.parametrize("by", ["hide", "replace", "remove"])
def test_every_point_by_a_forward_of_its_own(by: str) -> None:
    model, batch = prompts()
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0))
    own = {"replacement": 0} if by == "replace" else {}
    found = interp.removal_curves(model, batch, {"w": weights}, by=by, shares=(0, 0.4, 1), draws=0, **own)
    for row, prompt in enumerate(IDS):
        numbers = weights[row][batch.mask[row]][:-1]
        answers = [batch.answers[row].tolist()]
        for place, share in enumerate((0, 0.4, 1)):
            first = numbers.argsort(descending=True)[: round(share * len(numbers))].tolist()
            rest = [t for t in range(len(numbers)) if t not in first]
            for direction, gone in (("deletion", first), ("insertion", rest)):
                here = interp.encode(model, [prompt], answers=answers)
                blank = [0 if t in gone else x for t, x in enumerate(prompt)]
                edits: list[interp.Edit] = []
                if by == "remove":
                    here = interp.encode(model, [[x for t, x in enumerate(prompt) if t not in gone]], answers=answers)
                elif by == "replace":
                    here = interp.encode(model, [blank], answers=answers)
                elif gone:
                    member = torch.zeros(1, len(prompt), dtype=torch.bool)
                    member[0, gone] = True
                    edits = [interp.knockout(~member, member)]
                logits = interp.run(model, here, edits=edits).logits
                assert logits is not None
                exact = float(interp.answer_logprob(logits, here)[0])
                assert found.values[direction]["w"][row, place] == pytest.approx(exact, abs=1e-4)


def test_random_weights_lie_in_the_band_and_orders_belong_to_prompts() -> None:
    model, batch = prompts()
    weights = random_orders(batch.mask, batch.content_keys.tolist(), 1, seed=99)[0]
    found = interp.removal_curves(model, batch, {"random": weights}, draws=60, shares=SHARES)
    low, high = np.quantile(found.random_area().mean(1), [0.005, 0.995])
    assert low <= found.area()["random"].mean() <= high and found.p()["random"] > 0.01
    turned = interp.removal_curves(model, batch.select([2, 0, 1]), {"random": weights[[2, 0, 1]]}, draws=60,
                                   shares=SHARES)  # fmt: skip
    np.testing.assert_allclose(turned.random["deletion"], found.random["deletion"][:, [2, 0, 1]], atol=1e-4)
    right = prompts("right")[1]
    other = interp.removal_curves(model, right, {"same": torch.zeros(right.mask.shape)}, draws=60, shares=SHARES)
    np.testing.assert_allclose(other.random["insertion"], found.random["insertion"], atol=1e-3)


def test_traces_as_orders_and_few_draws() -> None:
    model, batch = prompts()
    trace = interp.trace(model, batch, "occlusion")
    numbers = torch.from_numpy(trace.values[:, -1])
    found = interp.removal_curves(model, batch, {"trace": trace, "numbers": numbers}, draws=5, directions=["deletion"])
    np.testing.assert_array_equal(found.values["deletion"]["trace"], found.values["deletion"]["numbers"])
    assert math.isnan(found.p()["trace"]) and list(found.values) == ["deletion"]
    with pytest.raises(BadInput, match="'deletion'"):
        found.area("insertion")
    none = interp.removal_curves(model, batch, {"trace": trace}, draws=0)
    assert none.table()["random"].isna().all()
    with pytest.raises(BadInput, match="draws= at least 1"):
        none.band()


def test_patches_of_an_image_go_in_their_pixels() -> None:
    """The digit model: patches that occlusion finds matter more than the same number of random ones."""
    from interp.zoo.digits import digit_images, pixel_values

    model = interp.load("digits-vit")
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(digit_images(6).images)})
    blank = interp.trace(model, batch, "blank-out")
    found = interp.removal_curves(model, batch, {"blank": blank}, by="replace", draws=20)
    assert found.p("deletion")["blank"] == found.p("insertion")["blank"] == pytest.approx(1 / 21)
    hidden = interp.removal_curves(model, batch, {"blank": blank}, by="hide", draws=0)
    assert hidden.area()["blank"].mean() < hidden.values["deletion"]["blank"][:, 0].mean()


def test_refusals() -> None:
    model, batch = prompts()
    good = torch.zeros(batch.mask.shape)
    for options, said in (
        ({"shares": (0, 0.5)}, "rise from 0 to 1"),
        ({"draws": -1}, "draws=-1"),
        ({"directions": []}, "deletion, insertion"),
        ({"directions": "deletion"}, "expected a list"),
    ):
        with pytest.raises(BadInput, match=said):
            interp.removal_curves(model, batch, {"w": good}, **options)
    with pytest.raises(BadInput, match="expected \\[batch, source\\]"):
        interp.removal_curves(model, batch, {"w": good[:, :2]})
    with pytest.raises(BadInput, match="no weights"):
        interp.removal_curves(model, batch, {})
    with pytest.raises(UnknownName, match="way of taking away"):
        interp.removal_curves(model, batch, {"w": good}, by="erase")  # type: ignore[arg-type]


def test_a_target_that_a_prompt_lacks_gives_no_order() -> None:
    """The last of all targets is no row of shorter prompts: their sources would go in the order of their places."""
    model, batch = prompts()
    every = interp.trace(model, batch, "raw", targets="all")
    with pytest.raises(BadInput, match=r"'raw' has no numbers in prompts \[1, 2\]"):
        interp.removal_curves(model, batch, {"raw": every}, draws=0)
    with pytest.raises(BadInput, match=r"no numbers in prompts \[1, 2\]"):
        interp.faithfulness_gap(model, batch, every, share=0.5, draws=0)
