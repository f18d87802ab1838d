"""Attribution patching, against exact patches where the model is linear and against differences along the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case, double_case
from conformance.test_gradients import InDouble
from linear_model import linear_model, prompts
from torch import Tensor

import interp
from interp import At, Batch, Model, Site
from interp.attribution.attribution_patching import along_gradient, attribution_patching
from interp.attribution.request import Request

CORRUPTED = ([3, 5, 2, 7, 4], [8, 2, 6, 9, 1], [4, 4, 5, 1, 2])
CLEAN = ([6, 5, 1, 7, 2], [8, 9, 6, 3, 1], [4, 7, 7, 1, 5])


def both(model: Model) -> tuple[Batch, Batch]:
    return prompts(model, *CORRUPTED), prompts(model, *CLEAN)


def test_the_formula_on_numbers() -> None:
    """One position, one head: (2 - 1) 3 + (0 - 4) 0.5 = 1; for a pattern the sum is over keys."""
    change, slope = torch.tensor([1.0, -4.0]), torch.tensor([3.0, 0.5])
    assert along_gradient(change.view(1, 1, 1, 2), slope.view(1, 1, 1, 2), Site.Z).item() == 1.0
    kept = along_gradient(change.view(1, 1, 1, 2).expand(1, 3, 2, 2), slope.expand(1, 3, 2, 2), Site.PATTERN)
    assert kept.shape == (1, 3, 2) and (kept == 1).all()


@pytest.mark.parametrize("site", ["z", "v", "pattern"])
@pytest.mark.parametrize("by", ["head", "position", "kv"])
def test_exact_where_the_model_is_linear_between_the_two_runs(site: str, by: Any) -> None:
    model = linear_model()
    batch, source = both(model)
    asked: dict[str, Any] = {"source": source, "site": site, "by": by}
    estimate = interp.attribute(model, batch, "attribution_patching", **asked)
    exact = interp.attribute(model, batch, "patch", **asked)
    assert estimate.unit == exact.unit and estimate.positions == exact.positions
    assert estimate.sense == exact.sense == 1 and estimate.quantity == exact.quantity == "effect"
    np.testing.assert_allclose(estimate.samples, exact.samples, rtol=1e-5, atol=1e-8)
    assert np.abs(exact.samples).max() > 0.1


def test_queries_are_not_linear() -> None:
    """The control of the test above: through the softmax the estimate is another number."""
    model = linear_model()
    batch, source = both(model)
    estimate = interp.attribute(model, batch, "attribution_patching", source=source, site="q")
    exact = interp.attribute(model, batch, "patch", source=source, site="q")
    assert np.abs(estimate.samples - exact.samples).max() > 1e-3


@pytest.mark.parametrize(("name", "stack"), [("llama", "text"), ("gemma2", "text"), ("t5", "cross"), ("bert", "text")])
@pytest.mark.parametrize("site", [Site.Z, Site.Q, Site.K, Site.V, Site.PATTERN])
def test_the_slope_on_the_way_to_the_source(case_of: Callable[[str], Case], name: str, stack: str, site: Site) -> None:
    """d/du metric(a + u (a_source - a)) at u = 0, for every head at once and for one head."""
    case = double_case(case_of(name))
    model = case.model
    answers = torch.tensor([[7, 9], [11, 6]])
    batch, source = (
        replace(interp.encode(model, inputs=case.tiny.inputs(2, 5, seed)), answers=answers) for seed in (0, 1)
    )
    with InDouble():
        found = attribution_patching(model, batch, Request(source=source, site=site, stack=stack))
        at = At(site, 1, stack=stack)
        taken = interp.run(model, source, [at], kernels=interp.run(model, batch, [at], grad=first_answer).kernels)[at]

        def towards(heads: tuple[int, ...], step: float) -> list[Any]:
            def move(x: Tensor, ctx: Any) -> Tensor:
                axis = site.axes.index("head")
                return x + step * (taken.index_select(axis, torch.tensor(heads)) - x)

            return [interp.custom(at.with_(heads=heads), move)]

        width = model.stack(stack).width(site, 1)
        step = 1e-5
        for heads in [(head,) for head in range(width)]:
            ends = interp.sweep(model, batch, [towards(heads, step), towards(heads, -step)], interp.logit_difference)
            wanted = ((ends.values[0] - ends.values[1]) / (2 * step)).tolist()
            assert found.samples[:, 1, heads[0]] == pytest.approx(wanted, rel=1e-5, abs=1e-8)
    assert np.abs(found.samples[:, 1]).max() > 1e-4


def first_answer(logits: Tensor, batch: Batch) -> Tensor:
    """``[batch]`` any smooth number of every prompt."""
    return logits.flatten(1)[:, 0]


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_its_own_run_as_source_changes_nothing(site: str) -> None:
    model = tiny_gpt2()
    batch, _ = both(model)
    assert (interp.attribute(model, batch, "attribution_patching", source=batch, site=site).samples == 0).all()


def test_direction_names_which_side_helps() -> None:
    """The numbers depend on the batch that is edited alone; noise turns the sense."""
    model = linear_model()
    corrupted, clean = both(model)
    denoise = interp.attribute(model, corrupted, "attribution_patching", source=clean)
    same = interp.attribute(model, corrupted, "attribution_patching", source=clean, direction="noise")
    assert denoise.sense == 1 and same.sense == -1
    np.testing.assert_array_equal(denoise.samples, same.samples)
    back = interp.attribute(model, replace(clean, answers=corrupted.answers), "attribution_patching", source=corrupted)
    np.testing.assert_allclose(back.samples, -denoise.samples, rtol=1e-6, atol=1e-9)  # of a linear model


def test_a_run_is_as_good_a_source_as_its_batch() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch, source = both(model)
    read = interp.run(model, source, [At(Site.Z)])
    by_run = attribution_patching(model, batch, Request(source=read, batch_size=2))
    by_batch = attribution_patching(model, batch, Request(source=source))
    np.testing.assert_allclose(by_run.samples, by_batch.samples, rtol=1e-9)


def test_positions_sum_to_the_head_and_can_be_chosen() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch, source = both(model)
    whole = attribution_patching(model, batch, Request(source=source, site=Site.V))
    kept = attribution_patching(model, batch, Request(source=source, site=Site.V, by="position"))
    np.testing.assert_allclose(kept.samples.sum(-1), whole.samples, rtol=1e-10)
    chosen = attribution_patching(model, batch, Request(source=source, site=Site.V, pos=0))
    np.testing.assert_allclose(chosen.samples, kept.samples[..., 0], rtol=1e-10)


def test_normalised_as_the_exact_patch_is() -> None:
    model = linear_model()
    batch, source = both(model)
    batch = replace(batch, answers=source.answers)
    asked: dict[str, Any] = {"source": source, "normalise": True}
    estimate = interp.attribute(model, batch, "attribution_patching", **asked)
    exact = interp.attribute(model, batch, "patch", **asked)
    np.testing.assert_allclose(estimate.samples, exact.samples, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(estimate.values, exact.values, rtol=1e-5, atol=1e-8)
    assert estimate.sense == exact.sense
    np.testing.assert_allclose(np.isnan(estimate.samples).sum(), np.isnan(exact.samples).sum())


def test_pairs_that_do_not_fit_are_refused() -> None:
    model = tiny_gpt2()
    batch, source = both(model)
    short = prompts(model, *[row[:4] for row in CLEAN])
    with pytest.raises(interp.BadInput, match="unequal lengths"):
        attribution_patching(model, batch, Request(source=short))
    with pytest.raises(interp.BadInput, match="1 source prompts for 3"):
        attribution_patching(model, batch, Request(source=source.select([0])))
    with pytest.raises(interp.BadInput, match="source= is missing"):
        attribution_patching(model, batch, Request())
    with pytest.raises(interp.BadInput, match="source is a Tensor"):
        attribution_patching(model, batch, Request(source=torch.zeros(3)))
    with pytest.raises(interp.BadInput, match=r"site=Site\.SCORES"):
        attribution_patching(model, batch, Request(source=source, site=Site.SCORES))
    with pytest.raises(interp.BadInput, match="has not read At"):
        attribution_patching(model, batch, Request(source=interp.run(model, source, read=[interp.At(Site.Z, 0)])))
