"""Sensitivity of a head to a named span: taken out, hidden, replaced."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case

import interp
from interp import At, Site
from interp.errors import BadInput, UnknownName, Unsupported

CaseOf = Callable[[str], Case]


def sensitivity(model: interp.Model, batch: interp.Batch, **options: object) -> np.ndarray:
    return interp.score(model, batch, {"x": {"score": "span_sensitivity", **options}})["x"].per_prompt


def test_removal_is_context_divergence() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    own = sensitivity(model, batch, span=slice(1, 3), by="removal", relative=True)
    other = interp.score(model, batch, {"x": {"score": "context_divergence", "span": slice(1, 3), "relative": True}})[
        "x"
    ]
    np.testing.assert_array_equal(own, other.per_prompt)


def test_masking_is_a_run_with_the_span_knocked_out() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4, 5]])
    member = torch.tensor([[False, True, True, False, False]])
    reads = [At(Site.Z, layer) for layer in range(3)]
    plain = interp.run(model, batch, reads, kernels="eager")
    hidden = interp.run(model, batch, reads, [interp.knockout(~member, member)])
    expected = [(plain[at][0, -1] - hidden[at][0, -1]).norm(dim=-1).tolist() for at in reads]
    np.testing.assert_allclose(sensitivity(model, batch, span=slice(1, 3), by="masking")[0], expected, rtol=1e-5)


def test_what_cannot_be_seen_has_no_effect_by_any_road() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4, 5]])
    for by in ("removal", "masking", "replacement"):
        found = sensitivity(model, batch, span=slice(3, 4), by=by, at=2)
        assert np.abs(found).max() == 0, by
        assert sensitivity(model, batch, span=slice(1, 2), by=by, at=2).min() > 0, by


def test_the_hand_built_induction_head_depends_on_what_it_copies() -> None:
    """After ``a b c a`` the induction head L1.H0 looks at b; without it, it puts out something else."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]))
    for by in ("masking", "replacement"):
        found = sensitivity(model, batch, span=slice(2, 3), by=by, relative=True)[0]
        assert found[1, 0] > 0.3, by
        assert found[0, 0] < 1e-6, by  # the previous-token head stands before c and sees c alone


def test_replacements_depend_on_the_prompt_and_the_seed_alone() -> None:
    model = tiny_gpt2()
    rows = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]
    batch = interp.encode(model, rows)
    own = sensitivity(model, batch, span=slice(1, 3), by="replacement")
    turned = sensitivity(model, batch.select([1, 0]), span=slice(1, 3), by="replacement")
    np.testing.assert_allclose(turned[::-1], own, rtol=1e-5, atol=1e-6)
    wanted = {"x": {"score": "span_sensitivity", "span": slice(1, 3), "by": "replacement"}}
    other = interp.score(model, batch, wanted, seed=1)["x"].per_prompt
    assert not np.allclose(other, own)


def test_images_may_be_hidden_and_taken_out_but_not_said_in_words(case_of: CaseOf) -> None:
    case = case_of("llava")
    batch = case.batch(2, 5)
    image = batch.inputs["input_ids"] == 98
    for by in ("removal", "masking"):
        assert sensitivity(case.model, batch, span=image, by=by).min() > 0.01
    with pytest.raises(BadInput, match="holds image tokens"):
        sensitivity(case.model, batch, span=image, by="replacement")


@pytest.mark.parametrize("by", ["removal", "masking", "replacement"])
def test_encoder_decoders(case_of: CaseOf, by: str) -> None:
    case = case_of("bart")
    found = sensitivity(case.model, case.batch(2, 6), span=slice(1, 3), by=by)
    assert np.abs(found[:, 0]).max() < 1e-5 and found[:, 1:, :2].min() > 0.001


def test_bad_requests_are_refused(case_of: CaseOf) -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, [[1, 2, 3, 4, 5]])
    with pytest.raises(UnknownName, match="Did you mean 'removal'"):
        sensitivity(model, batch, span=0, by="removing")
    with pytest.raises(BadInput, match="span is missing"):
        sensitivity(model, batch)
    with pytest.raises(BadInput, match="draws=0"):
        sensitivity(model, batch, span=0, draws=0)
    bypass = case_of("gptj")
    with pytest.raises(Unsupported, match="cannot be edited"):
        sensitivity(bypass.model, bypass.batch(2, 5), span=slice(1, 2), by="masking")
