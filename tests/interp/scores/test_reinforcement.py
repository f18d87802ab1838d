"""Reinforcement of the heads that rest on the image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conformance.support import Case

import interp
from interp import At, Site
from interp.errors import BadAddress, BadInput, Unsupported
from interp.model.direct_paths import direct_slopes
from interp.scores.divergence.divergence import aware_divergence
from interp.scores.divergence.reinforcement import above_median, reinforced_heads

CaseOf = Callable[[str], Case]
FAMILIES = ["llava", "qwen2_vl", "smolvlm"]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_chosen_with_those_below_amplified(case_of: CaseOf, name: str) -> None:
    """Against one forward per layer, each with the heads of the layers below scaled by hand."""
    case = case_of(name)
    batch = case.batch(2, 6)
    found = reinforced_heads(case.model, batch, by=3.0, outliers=False)
    ids = batch.inputs["input_ids"]
    words = ids[:, [0, *range(ids.shape[1] - 5, ids.shape[1])]]
    without = interp.run(case.model, interp.encode(case.model, words), read=[At(Site.Z)])
    edits: list[interp.Edit] = []
    for layer in range(2):
        seen = interp.run(case.model, batch, read=[At(Site.Z, layer)], edits=edits)[At(Site.Z, layer)]
        expected = aware_divergence(seen[:, -1], without[At(Site.Z, layer)][:, -1], outliers=False)
        np.testing.assert_allclose(found.divergence.per_prompt[:, layer], expected, rtol=1e-4, atol=1e-5)
        picked = above_median(expected)
        np.testing.assert_array_equal(found.chosen[:, layer], picked)
        assert picked.sum(-1).tolist() == [2, 2]  # half of four heads
        factor = torch.where(picked, 3.0, 1.0)
        edits.append(interp.scale(At(Site.Z, layer, pos=-1), factor, axes="batch head"))
    plain = interp.score(case.model, batch, {"x": {"score": "vision_divergence", "outliers": False}})["x"].per_prompt
    np.testing.assert_allclose(found.divergence.per_prompt[:, 0], plain[:, 0], rtol=1e-4)
    assert not np.allclose(found.divergence.per_prompt[:, 1], plain[:, 1], rtol=1e-4), "the second has seen the first"
    by_hand = interp.run(case.model, batch, edits=edits).logits
    own = interp.run(case.model, batch, edits=list(found.edits)).logits
    assert own is not None and by_hand is not None
    torch.testing.assert_close(own, by_hand, rtol=1e-4, atol=1e-5)


def test_ties_at_the_median_leave_out_all_that_are_tied() -> None:
    assert above_median(torch.tensor([1.0, 2.0, 3.0, 4.0])).sum() == 2
    assert above_median(torch.tensor([1.0, 2.0, 3.0])).sum() == 1
    assert above_median(torch.tensor([1.0, 2.0, 2.0, 2.0])).sum() == 0
    outliers = aware_divergence(torch.tensor([[9.0], [1.0], [1.2], [1.1]]), torch.tensor([[3.0], [0.5], [0.5], [0.5]]))
    assert outliers[0] == 0 and not above_median(outliers)[0], "a head set to 0 is never chosen"


def test_a_factor_of_one_changes_nothing(case_of: CaseOf) -> None:
    case = case_of("llava")
    batch = case.batch(2, 6)
    found = reinforced_heads(case.model, batch, by=1.0)
    plain = interp.run(case.model, batch).logits
    same = interp.run(case.model, batch, edits=list(found.edits)).logits
    assert plain is not None and same is not None and torch.equal(plain, same)
    own = interp.score(case.model, batch, "vision_divergence")["vision_divergence"].per_prompt
    np.testing.assert_allclose(found.divergence.per_prompt, own, rtol=1e-4, atol=1e-5)


def test_only_named_layers_are_amplified(case_of: CaseOf) -> None:
    case = case_of("llava")
    batch = case.batch(2, 6)
    found = reinforced_heads(case.model, batch, layers=[1])
    assert not found.chosen[:, 0].any() and found.chosen[:, 1].any()
    assert {head.layer for head in found.heads(0)} == {1} and "Reinforcement(25% of 2x4 heads" in repr(found)
    with pytest.raises(BadAddress, match="layers \\[7\\] have no heads"):
        reinforced_heads(case.model, batch, layers=[7])


def test_amplified_heads_move_the_attention_output_towards_what_they_write(case_of: CaseOf) -> None:
    """cos(x + sum of the others + a w, w) rises with a for what a head writes, w (the paper's proposition 1)."""
    case = case_of("llava")
    batch = case.batch(3, 6)
    at = At(Site.RESULT, 1)
    seen = interp.run(case.model, batch, read=[at, At(Site.RESID_PRE, 1)])
    results = seen[at][:, -1]  # [batch, head, d_model]
    base = seen[At(Site.RESID_PRE, 1)][:, -1] + results.sum(1)
    for head in range(results.shape[1]):
        own = results[:, head]
        angles = torch.stack(
            [torch.cosine_similarity(base + (factor - 1) * own, own, dim=-1) for factor in (1.0, 1.5, 2.0, 4.0)]
        )
        assert bool((angles.diff(dim=0) > 0).all())


def test_generation_goes_on_with_the_same_heads(case_of: CaseOf) -> None:
    """The second token is that of a teacher-forced run in which both last rows are scaled."""
    case = case_of("llava")
    batch = case.batch(1, 6)
    found = reinforced_heads(case.model, batch, by=8.0)
    out = interp.generate(case.model, batch, edits=list(found.edits), max_new_tokens=2)
    new = out.new_tokens
    longer = torch.cat([batch.inputs["input_ids"], new[:, :1]], dim=1)
    teacher = interp.encode(
        case.model, inputs={**batch.inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
    )
    factor = torch.where(torch.from_numpy(found.chosen[0]), 8.0, 1.0)
    edits = [interp.scale(At(Site.Z, layer, pos=slice(-2, None)), factor[layer]) for layer in range(2)]
    logits = interp.run(case.model, teacher, edits=edits).logits
    assert logits is not None and int(logits[0, -1].argmax()) == int(new[0, 1])


def test_bad_requests_are_refused(case_of: CaseOf) -> None:
    gpt2, llava = case_of("gpt2"), case_of("llava")
    with pytest.raises(Unsupported, match="takes no images"):
        reinforced_heads(gpt2.model, gpt2.batch(2))
    with pytest.raises(BadInput, match="by=-1"):
        reinforced_heads(llava.model, llava.batch(2), by=-1)
    with pytest.raises(BadInput, match="ddof=3"):
        reinforced_heads(llava.model, llava.batch(2), ddof=3)


def test_slopes_of_direct_paths_give_the_direct_effect(case_of: CaseOf) -> None:
    """``<z, slope>`` is what ``direct_paths`` says of each head."""
    case = case_of("llama")
    batch = interp.encode(case.model, torch.tensor([[11, 12, 13, 14, 15]]), answers=[(20, 21)])
    slopes = direct_slopes(case.model, batch, interp.logit_difference)["text"]
    seen = interp.run(case.model, batch, read=[At(Site.Z)])
    effects = interp.direct_attribution(case.model, batch).heads.per_prompt
    for layer, slope in slopes.items():
        made = (seen[At(Site.Z, layer)].double() * slope.double()).sum((1, 3))
        np.testing.assert_allclose(made, effects[:, layer], rtol=1e-4, atol=1e-6)
