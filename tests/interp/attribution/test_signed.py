"""Signed contributions: the three matrices by their definition, their overlap, and the rescaling they ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY

import interp
from interp import At, BadInput, HeadScores, Site
from interp.attribution.signed import SignedContributions, positive_overlap, rescaling, signed_contributions


def tiny() -> tuple[interp.Model, interp.Batch]:
    """A tiny model that answers some of its prompts right."""
    made = TINY["gpt2"]()
    model = interp.load(made.hf, check=False)
    inputs: Any = made.inputs(6)
    said = interp.run(model, interp.encode(model, inputs=inputs), logits="last").logits
    assert said is not None
    best = said[:, 0].argmax(-1).tolist()
    return model, interp.encode(model, inputs=inputs, answers=[(b, 3) if i % 2 else (4, b) for i, b in enumerate(best)])


def test_the_handmade_model_on_paper() -> None:
    model = interp.load("handmade")
    # one repetition that is answered right with p = e^10 / (e^10 + 15), and one whose answer given is a wrong one
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3], [0, 5, 6, 5]]), answers=[(4, 5), (4, 6)])
    found = signed_contributions(model, batch, mode="zero")
    right, wrong, even = np.exp(10) / (np.exp(10) + 15), 1 / (np.exp(10) + 15), 1 / 16
    assert found.correct.tolist() == [True, False]
    path = np.array([[1, 0], [1, 0]])  # either head of the path ablated leaves all 16 words alike
    np.testing.assert_allclose(found.positive.values, path * (right - even), atol=1e-4)
    np.testing.assert_allclose(found.negative.values, path * (even - wrong), atol=1e-4)
    np.testing.assert_allclose(found.signed.values, path * ((right - even) + (wrong - even)) / 2, atol=1e-4)
    assert np.isnan(found.positive.per_prompt[1]).all() and np.isnan(found.negative.per_prompt[0]).all()


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_the_three_matrices_follow_their_definition(mode: str) -> None:
    model, batch = tiny()
    found = signed_contributions(model, batch, mode=mode)
    assert batch.answers is not None and found.correct.tolist() == [False, True] * 3

    def probabilities(edits: list[interp.Edit]) -> np.ndarray:
        logits = interp.run(model, batch, edits=edits).logits
        assert logits is not None and batch.answers is not None
        shares = logits[torch.arange(6), batch.read_at].softmax(-1)
        return shares[torch.arange(6), batch.answers[:, 0]].numpy()

    def replaced(head: int) -> Any:
        def change(z: torch.Tensor, ctx: Any) -> torch.Tensor:
            made = z.clone()
            rest = [other for other in range(4) if other != head]
            made[:, :, head] = z[:, :, rest].mean(2) if mode == "mean" else 0
            return made

        return change

    base = probabilities([])
    for layer in range(2):
        for head in range(4):
            fall = base - probabilities([interp.custom(At(Site.Z, layer=layer), replaced(head))])
            place = (layer, head)
            assert found.positive.values[place] == pytest.approx(np.maximum(fall[found.correct], 0).mean(), abs=1e-6)
            assert found.negative.values[place] == pytest.approx(np.maximum(-fall[~found.correct], 0).mean(), abs=1e-6)
            assert found.signed.values[place] == pytest.approx(fall.mean(), abs=1e-6)
    assert found.positive.values.max() > 1e-4 and found.negative.values.max() > 1e-4


def contributions(values: list[list[float]]) -> SignedContributions:
    """Contributions whose positive part is given."""
    table = HeadScores.from_array(np.array(values)[None], name="positive", quantity="contribution", sense=1,
                                  sample_axis="prompt")  # fmt: skip
    return SignedContributions(table, table, table, np.array([True]))


def test_overlap_of_levels_is_the_jaccard_index_of_their_foremost_heads() -> None:
    levels = {
        "object": contributions([[0.9, 0.8, 0.0], [0.7, 0.0, 0.0]]),
        "relation": contributions([[0.0, 0.5, 0.0], [0.4, 0.0, 0.3]]),
        "none": contributions([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    }
    table = positive_overlap(levels, k=3)
    assert table.loc["object", "relation"] == 2 / 4 and table.loc["relation", "relation"] == 1
    assert table.loc["object", "none"] == 0 and np.isnan(table.loc["none", "none"])
    assert positive_overlap(levels, k=1).loc["object", "relation"] == 0
    with pytest.raises(BadInput, match="k=0"):
        positive_overlap(levels, k=0)


def test_rescaling_multiplies_z_by_the_clipped_factor() -> None:
    model, batch = tiny()
    signed = HeadScores.from_array([[0.002, -0.004, 0.0, np.nan], [0.001, 0.0, -0.001, 0.004]], name="s", sense=1,
                                   stack="text")  # fmt: skip
    z = interp.run(model, batch, read=[At(Site.Z, layer=0)])[At(Site.Z, layer=0)]

    def factors(**options: Any) -> torch.Tensor:
        edits = rescaling(signed, **options)
        changed = interp.run(model, batch, read=[At(Site.Z, layer=0)], edits=edits)[At(Site.Z, layer=0)]
        return (changed / z).mean((0, 1, 3))

    torch.testing.assert_close(factors(), torch.tensor([1.002, 0.996, 1.0, 1.0]))
    torch.testing.assert_close(factors(normalise=True), torch.tensor([1.5, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(factors(strength=4.0, normalise=True), torch.tensor([2.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(factors(at_least=0.003, normalise=True), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    plain = interp.run(model, batch).logits
    still = interp.run(model, batch, edits=rescaling(signed, strength=0.0)).logits
    assert plain is not None and still is not None and torch.equal(plain, still)
