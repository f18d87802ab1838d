"""The average indirect effect, head by head, against plain runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from linear_model import prompts

import interp
from interp import At, HeadScores, Site
from interp.attribution.aie import average_indirect_effect, mean_at_answer, mediating_heads
from interp.metrics import probability

SHUFFLED = ([3, 5, 2, 7, 4], [8, 2, 6, 9, 1], [4, 4, 5, 1, 2])
CLEAN = ([6, 5, 1], [8, 9, 6])  # other prompts, of another length


def test_each_head_is_replaced_by_its_mean_at_the_last_token() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    shuffled, clean = prompts(model, *SHUFFLED), prompts(model, *CLEAN)
    found = average_indirect_effect(model, shuffled, clean)
    z = interp.run(model, clean, [At(Site.Z)])[At(Site.Z)]  # [layer, prompt, pos, head, d_head]
    plain = interp.run(model, shuffled).logits
    assert plain is not None and shuffled.answers is not None
    right = shuffled.answers[:, 0]
    before = plain[:, -1].softmax(-1).gather(1, right[:, None])[:, 0]
    for layer in range(3):
        for head in range(2):
            mean = z[layer, :, -1, head].mean(0)

            def put(x: torch.Tensor, ctx: object, mean: torch.Tensor = mean) -> torch.Tensor:
                return torch.cat([x[:, :-1], mean.expand_as(x[:, -1:])], dim=1)

            edited = interp.run(model, shuffled, edits=[interp.custom(At(Site.Z, layer, heads=(head,)), put)]).logits
            assert edited is not None
            after = edited[:, -1].softmax(-1).gather(1, right[:, None])[:, 0]
            np.testing.assert_allclose(found.samples[:, layer, head], (after - before).numpy(), rtol=1e-5, atol=1e-8)
    assert found.quantity == "effect" and found.sense == 1 and found.metadata["clean_prompts"] == 2
    assert np.abs(found.samples).min() > 1e-6


def test_its_own_value_changes_nothing() -> None:
    model = tiny_gpt2()
    one = prompts(model, SHUFFLED[0])
    np.testing.assert_allclose(average_indirect_effect(model, one, one).samples, 0, atol=1e-7)


def test_the_last_token_is_the_one_that_predicts_the_answer() -> None:
    """Right padding: the mean is taken, and put, at the last real token."""
    model = tiny_gpt2(dtype=torch.float64)
    bare = prompts(model, *CLEAN)
    padded = interp.encode(
        model,
        torch.tensor([[*row, 0, 0] for row in CLEAN]),
        mask=torch.tensor([[1, 1, 1, 0, 0]] * 2),
        answers=bare.answers,
    )
    for layer, mean in mean_at_answer(model, padded).items():
        np.testing.assert_allclose(mean.numpy(), mean_at_answer(model, bare)[layer].numpy(), rtol=1e-9)
    other = prompts(model, *SHUFFLED)
    np.testing.assert_allclose(
        average_indirect_effect(model, padded, other).samples,
        average_indirect_effect(model, bare, other).samples,
        rtol=1e-6,
        atol=1e-10,
    )


def test_another_metric_and_what_is_refused() -> None:
    model = tiny_gpt2()
    shuffled, clean = prompts(model, *SHUFFLED), prompts(model, *CLEAN)
    by_loss = average_indirect_effect(model, shuffled, clean, metric="loss")
    assert by_loss.sense == -1 and by_loss.metadata["metric"] == "loss"
    assert average_indirect_effect(model, shuffled, clean).metadata["metric"] == probability.__name__
    with pytest.raises(interp.BadInput, match="clean is a list"):
        average_indirect_effect(model, shuffled, [[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(interp.BadInput, match="needs answers"):
        average_indirect_effect(model, interp.encode(model, torch.tensor([[1, 2, 3]])), clean)
    with pytest.raises(interp.BadInput, match="it needs one"):
        average_indirect_effect(model, shuffled, clean, metric=lambda logits, batch: logits[:, -1, :1])


def test_mediating_heads_stand_three_deviations_above_the_mean() -> None:
    """15 zeros and one 9: mean 0.5625, deviation 2.18, border 7.1. Two nines: border 10.05, nobody."""
    values = np.zeros((4, 4))
    values[2, 1] = 9.0
    table = HeadScores.from_array(values, name="aie", sense=1)
    assert [str(head) for head in mediating_heads(table)] == ["L2.H1"]
    values[0, 3] = 9.0
    two = HeadScores.from_array(values, name="aie", sense=1)
    assert mediating_heads(two) == []
    assert [str(head) for head in mediating_heads(two, deviations=2)] == ["L0.H3", "L2.H1"]
    values[2, 1] = 9.5
    first, _ = mediating_heads(HeadScores.from_array(values, name="aie", sense=1), 2)
    assert str(first) == "L2.H1"
