"""Layers drawn anew: what a trace does not see it does not change with, and the model stays as found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, fingerprint

import interp
from interp import BadInput, UnknownName
from interp.model.randomised import LOGITS, randomised_copy
from interp.tracing.protocols.randomisation import _changes

CaseOf = Callable[[str], Case]
IDS = [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9]]


def test_attention_of_the_first_layer_does_not_see_the_layers_above() -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS)
    found = interp.randomisation_check(model, batch, "raw", layer=0)
    table = found.table().set_index(["mode", "part"])
    for mode in ("cascading", "independent"):
        assert [table.loc[(mode, part), "unchanged"] for part in ("logits", "2", "1", "0")] == [True] * 3 + [False]
        assert table.loc[(mode, "1"), "similarity"] == pytest.approx(1)
    top = interp.randomisation_check(model, batch, "raw", layer=2, modes=["independent"])
    assert top.flagged == (("independent", "logits"),) and "unchanged by logits" in repr(top)
    middle = interp.randomisation_check(model, batch, "raw", layer=1, modes=["cascading"])
    assert middle.flagged == (("cascading", "logits"), ("cascading", "2"))


def test_what_explains_the_answer_changes_with_every_layer() -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS)
    found = interp.randomisation_check(model, batch, "occlusion")
    assert found.flagged == () and found.layers == ("logits", "2", "1", "0")
    assert (found.change["cascading"] > 1e-3).all()
    again = interp.randomisation_check(model, batch, "occlusion")
    np.testing.assert_array_equal(found.similarity["cascading"], again.similarity["cascading"])
    other = interp.randomisation_check(model, batch, "occlusion", seed=1)
    assert not np.array_equal(found.change["cascading"], other.change["cascading"])


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llava", "vit", "llama", "gpt_oss"])
def test_the_model_and_the_random_numbers_stay_as_found(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 5)
    before, state = fingerprint(case.hf), torch.get_rng_state()
    found = interp.randomisation_check(case.model, batch, "raw", exclude=None)
    assert fingerprint(case.hf) == before and torch.equal(torch.get_rng_state(), state)
    assert (found.change["cascading"][-1] > 0).all() and found.layers[0] == "logits"


@pytest.mark.parametrize("draw", ["initialise", "shuffle", "normal"])
def test_the_parts_that_are_drawn_and_only_those(case_of: CaseOf, draw: str) -> None:
    case = case_of("gpt2")
    copied = randomised_copy(case.model, case.model.stack(), draw=draw, seed=3)
    own = {name: value.clone() for name, value in case.hf.named_parameters()}
    last = case.model.stack().n_layers - 1

    def changed(layers: list[int]) -> set[str]:
        of = copied.with_random(layers)
        return {name for name, value in of.hf.named_parameters() if name in own and not torch.equal(value, own[name])}

    prefix = f"{case.model.stack().path}.{last}."
    assert all(name.startswith(prefix) for name in changed([last])) and f"{prefix}attn.c_attn.weight" in changed([last])
    assert changed([]) == set()
    assert changed([LOGITS]) == set()  # tied: GPT-2's own name of that matrix is the embedding's, which stays
    head = copied.with_random([LOGITS]).hf
    assert not torch.equal(head.get_output_embeddings().weight, head.get_input_embeddings().weight)
    if draw == "shuffle":
        name = f"{prefix}attn.c_attn.weight"
        values = dict(copied.with_random([last]).hf.named_parameters())[name]
        torch.testing.assert_close(values.flatten().sort().values, own[name].flatten().sort().values)
    plain = copied.with_random([])
    batch = case.batch(2, 5)
    found, exact = interp.run(plain, batch).logits, interp.run(case.model, batch).logits
    assert found is not None and exact is not None and torch.equal(found, exact)


def test_the_answer_that_the_model_gave_is_explained_in_every_copy() -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS)
    logits = interp.run(model, batch).logits
    assert logits is not None
    said = logits[torch.arange(2), batch.read_at].argmax(-1)
    fixed = interp.encode(model, IDS, answers=said.tolist())
    one = interp.randomisation_check(model, batch, "blank-out", modes=["independent"], replacement=0)
    other = interp.randomisation_check(model, fixed, "blank-out", modes=["independent"], replacement=0)
    np.testing.assert_array_equal(one.change["independent"], other.change["independent"])


def test_names() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, IDS)
    for options in ({"method": "rawest"}, {"modes": ["upwards"]}, {"draw": "zero"}, {"how": "cosine"}):
        with pytest.raises(UnknownName):
            interp.randomisation_check(model, batch, **{"method": "raw", **options})
    with pytest.raises(BadInput, match="expected a list"):
        interp.randomisation_check(model, batch, "raw", modes="cascading")  # type: ignore[arg-type]
    counted: list[int] = []
    interp.randomisation_check(model, batch, "raw", modes=["cascading"], progress=counted.append)
    assert sum(counted) == 5


@pytest.mark.parametrize("options", [{"target": 3}, {"exclude": "middle"}, {"top": 0, "how": "topk"}])
def test_what_cannot_be_compared_is_refused_before_anything_runs(options: dict[str, object]) -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, IDS)
    counted: list[int] = []
    with pytest.raises(BadInput):
        interp.randomisation_check(model, batch, "raw", progress=counted.append, **options)  # type: ignore[arg-type]
    assert not counted


def test_numbers_that_are_gone_have_changed() -> None:
    kept = np.ones((2, 2), dtype=bool)
    own, other = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[1.0, np.nan], [1.0, 2.0]])
    assert _changes(own, other, kept).tolist() == [np.inf, 0.0]
    assert _changes(own, other, np.array([[True, False]] * 2)).tolist() == [0.0, 0.0]


def test_the_metric_named_is_the_one_that_the_method_explains() -> None:
    model = tiny_gpt2(check=True)
    batch = interp.encode(model, IDS, answers=[3, 4])
    for method in ("gradient-input", "occlusion"):
        found = interp.randomisation_check(model, batch, method, modes=["independent"])
        assert found.about["metric"] == interp.trace(model, batch, method).metadata["metric"]
        assert found.about["answers"] == "given"


def test_an_interruption_leaves_the_model_as_found() -> None:
    model = tiny_gpt2(check=True)
    batch, before, drawn = interp.encode(model, IDS), fingerprint(model.hf), torch.random.get_rng_state()
    counted: list[int] = []

    def interrupted(number: int) -> None:
        counted.append(number)
        if len(counted) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interp.randomisation_check(model, batch, "gradient-input", progress=interrupted)
    assert fingerprint(model.hf) == before and torch.equal(torch.random.get_rng_state(), drawn)
