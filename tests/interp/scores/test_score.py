"""``score`` on models whose heads are known, and what every score must keep."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import interp
from interp import zoo
from interp.errors import BadInput, UnknownName
from interp.model.handle import Model
from interp.scores import SCORES
from interp.scores.prompts import ordinary_tokens, repeated_random

OF_THE_BATCH = ["previous_token", "duplicate_token", "induction"]
FIVE = [*OF_THE_BATCH, "prefix_matching", "copying"]


@pytest.fixture(scope="module")
def handmade() -> Model:
    return interp.load("handmade")


@pytest.fixture(scope="module")
def induction() -> Model:
    return interp.load("induction")


def test_handmade_scores_are_those_derived_on_paper(handmade: Model) -> None:
    s = 13
    ids = repeated_random(handmade, [0, 1], s, 2)
    found = interp.score(handmade, interp.encode(handmade, ids), OF_THE_BATCH)
    width, second = 2 * s + 1, range(s + 1, 2 * s + 1)
    before = sum(1 / (i + 1) for i in range(1, width)) / (width - 1)
    later = sum(1 / (i + 1) for i in second) / s
    wanted = {
        "previous_token": [[1, 0], [1 / (width - 1), before]],
        "duplicate_token": [[0, 1], [0, later]],
        "induction": [[0, 0], [1, later]],
    }
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name].per_prompt, np.array([values, values]), atol=1e-6, err_msg=name)


def test_the_trained_model_scores_what_its_card_says(induction: Model) -> None:
    """Two roads: the card was measured with transformers alone, on diagonals."""
    from interp.zoo.repeats import evaluation_rows

    card = json.loads((zoo.path("induction") / "card.json").read_text())["measured"]
    batch = interp.encode(induction, evaluation_rows(64))
    for name, values in interp.score(induction, batch, ["previous_token", "induction"]).items():
        np.testing.assert_allclose(values.values, card[name], atol=2e-3, err_msg=name)


def test_the_known_heads_win_every_score(induction: Model) -> None:
    batch = interp.encode(induction, repeated_random(induction, [1, 2, 3], 20, 2))
    found = interp.score(induction, batch, FIVE)
    winners = {name: str(found[name].top(1, by="value").label[0]) for name in found if name != "duplicate_token"}
    assert winners == {
        "previous_token": "L0.H0",
        "induction": "L1.H0",
        "prefix_matching": "L1.H0",
        "copying": "L1.H0",
    }
    assert found["prefix_matching"].values[1, 0] > 0.8


@pytest.mark.parametrize("name", FIVE)
def test_shape_range_and_order(induction: Model, name: str) -> None:
    low, high = SCORES[name].range
    ids = repeated_random(induction, [5, 6], 12, 2)
    found = interp.score(induction, interp.encode(induction, ids), name)[name]
    assert found.per_prompt.shape == (2, 2, 4) and found.quantity == "score"
    assert (found.values >= low - 1e-6).all() and (found.values <= high + 1e-6).all()
    turned = interp.score(induction, interp.encode(induction, ids.flip(0)), name)[name]
    np.testing.assert_allclose(turned.per_prompt[::-1], found.per_prompt, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FIVE)
def test_padding_changes_nothing(induction: Model, name: str, side: str) -> None:
    ids = repeated_random(induction, [7], 9, 2)
    alone = interp.score(induction, interp.encode(induction, ids), name)[name].per_prompt[0]
    padding = torch.full((1, 6), 1)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], dim=1)
    mask = padded != 1
    beside = interp.score(induction, interp.encode(induction, padded, mask=mask), name)[name].per_prompt[0]
    np.testing.assert_allclose(beside, alone, atol=1e-5)


def test_all_at_once_equals_one_by_one(induction: Model) -> None:
    batch = interp.encode(induction, repeated_random(induction, [8, 9], 10, 2))
    together = interp.score(induction, batch, FIVE)
    for name in FIVE:
        np.testing.assert_array_equal(
            interp.score(induction, batch, [name])[name].per_prompt, together[name].per_prompt
        )


def test_a_prompt_without_repeats_has_no_induction_score(handmade: Model) -> None:
    found = interp.score(handmade, interp.encode(handmade, torch.tensor([[0, 3, 4, 5]])), OF_THE_BATCH)
    assert np.isnan(found["induction"].per_prompt).all() and np.isnan(found["duplicate_token"].per_prompt).all()
    np.testing.assert_allclose(found["previous_token"].values[0, 0], 1, atol=1e-6)


def test_bad_requests_are_refused(handmade: Model) -> None:
    batch = interp.encode(handmade, torch.tensor([[0, 3, 4, 3]]))
    with pytest.raises(UnknownName, match="Did you mean 'induction'"):
        interp.score(handmade, batch, "inductoin")
    with pytest.raises(BadInput, match="no names"):
        interp.score(handmade, batch, [])
    with pytest.raises(BadInput, match="25 distinct tokens"):
        interp.score(handmade, batch, "prefix_matching")


def test_random_prompts_are_a_function_of_their_seed(induction: Model) -> None:
    rows = repeated_random(induction, [3, 4, 3], 25, 4)
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[:1], repeated_random(induction, [3], 25, 4))
    assert rows.shape == (3, 101) and (rows[:, 0] == 0).all()
    assert torch.equal(rows[:, 1:26], rows[:, 76:]) and len(set(rows[0, 1:26].tolist())) == 25
    assert min(ordinary_tokens(induction)) == 3 and len(ordinary_tokens(induction)) == 417
