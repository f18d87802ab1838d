"""The door: every method by its name, what the results say of themselves, and what is refused before any forward."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny_models import TINY
from torch import Tensor

import interp
from interp import At, BadAddress, BadInput, Batch, Head, HeadScores, Model, Site, Unsupported
from interp.attribution import METHODS
from interp.attribution.request import By, Freeze, Request
from interp.errors import UnknownName


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Batch, Batch]:
    """A tiny GPT-2, prompts with answers, and as many others."""
    made = TINY["gpt2"]()
    model = interp.load(made.hf, check=False)
    answers = [(11, 12), (13, 14), (15, 16)]
    return (
        model,
        interp.encode(model, inputs=made.inputs(3), answers=answers),
        interp.encode(model, inputs=made.inputs(3, seed=1), answers=answers),
    )


@pytest.fixture
def no_forward(pair: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Batch, Batch]:
    """The same, with a model that may not run."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward was run")

    monkeypatch.setattr(pair[0].hf, "forward", refuse)
    return pair


def shortfall(logits: Tensor, batch: Batch) -> Tensor:
    """``[batch]`` minus the logit difference: a metric of which less is better."""
    return -interp.logit_difference(logits, batch)


shortfall.positions, shortfall.sense = "answers", -1  # type: ignore[attr-defined]

NEEDED: dict[str, dict[str, Any]] = {"noise": {"std": 0.1}}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_registry_gives_a_table_that_says_what_it_is(name: str, pair: Any) -> None:
    model, batch, source = pair
    row = METHODS[name]
    more = {"source": source} if row.needs == "source" else {}
    scores = interp.attribute(model, batch, name, **more, **NEEDED.get(name, {}))
    assert isinstance(scores, HeadScores) and scores.values.shape == (2, 4)
    assert np.isfinite(scores.values).all() and np.abs(scores.values).max() > 0
    assert (scores.quantity, scores.sense) == (row.quantity, row.sense)
    assert scores.stacks == (model.default_stack,)
    about = scores.metadata
    assert about["method"] == name and about["metric"] == "logit_difference" and about["model"] == model.name
    other_way = interp.attribute(model, batch, name, metric=shortfall, **more, **NEEDED.get(name, {}))
    assert other_way.sense == -row.sense  # less of it is better: the same heads help
    np.testing.assert_allclose(other_way.importance(), scores.importance(), atol=1e-5)


def test_the_registry_names_functions_of_the_one_signature() -> None:
    for row in METHODS.values():
        module, function = row.function.split(":")
        found = getattr(importlib.import_module(module), function)
        assert list(inspect.signature(found).parameters) == ["model", "batch", "request"], row.function
        assert inspect.getdoc(found)
        assert set(row.sites) <= {site.value for site in Site}
        assert set(row.by) <= set(get_args(By)) and set(row.freeze) <= set(get_args(Freeze))
        assert str(row) == row.summary and "\n" not in row.summary and row.source and row.cost
        assert row.sense == 0 or row.kind != "gates"


def test_the_metadata_says_how_the_numbers_were_made(pair: Any) -> None:
    model, batch, source = pair
    about = interp.attribute(
        model, source, "patch", source=batch, site="q", by="position", freeze="norms", direction="noise"
    ).metadata
    assert {key: about[key] for key in ("method", "site", "by", "freeze", "direction", "prompts", "mode")} == {
        "method": "patch", "site": "q", "by": "position", "freeze": "norms", "direction": "noise", "prompts": 3,
        "mode": "patch",
    }  # fmt: skip
    assert "eager where attention is edited" in about["kernels"]
    assert interp.attribute(model, batch, "mean").metadata["mode"] == "mean-self"
    with_reference = interp.attribute(model, batch, "mean", reference=source, positions=False).metadata
    assert (with_reference["mode"], with_reference["mean over"]) == ("mean", "prompts and positions")
    assert with_reference["option positions"] is False


def test_metrics_by_name_and_by_function(pair: Any) -> None:
    model, batch, _ = pair
    by_name = interp.attribute(model, batch, "zero", metric="logit_difference")
    np.testing.assert_array_equal(by_name.values, interp.attribute(model, batch, "zero").values)
    from_clean = interp.attribute(model, batch, "zero", metric="kl")
    assert from_clean.sense == 1 and (from_clean.per_prompt >= -1e-6).all() and from_clean.values.max() > 0

    def mine(logits: Tensor, batch: Batch) -> Tensor:
        return logits[:, -1, 11].float()

    named = interp.attribute(model, batch, "zero", metric=mine)
    assert named.metadata["metric"] == "mine"
    expected = interp.run(model, batch, edits=[interp.zero(At(Site.Z, layer=1, heads=(2,)))]).logits
    plain = interp.run(model, batch).logits
    assert expected is not None and plain is not None
    np.testing.assert_allclose(named.per_prompt[:, 1, 2], (expected - plain)[:, -1, 11], atol=2e-5)


def test_clusters_progress_and_stacks(pair: Any) -> None:
    model, batch, _ = pair
    told: list[int] = []
    scores = interp.attribute(model, batch, "zero", cluster=["a", "a", "b"], progress=told.append)
    assert scores.cluster == ("a", "a", "b") and sum(told) == 8
    made = TINY["llava"]()
    llava = interp.load(made.hf, check=False)
    images = interp.encode(llava, inputs=made.inputs(), answers=[(11, 12), (13, 14)])
    one = interp.attribute(llava, images, "zero", heads=[Head(1, 0, "vision")])  # the heads say which stack
    assert one.stacks == ("vision",) and one.top(3).label.tolist() == ["vision.L1.H0"]
    with pytest.raises(BadAddress, match="not on stack 'text'"):
        interp.attribute(llava, images, "zero", stack="text", heads=[Head(1, 0, "vision")])


def test_layers_without_attention_are_nan() -> None:
    from tiny_models import BEYOND

    made = BEYOND["lfm2"]()
    model = interp.load(made.hf, check=False)
    batch = interp.encode(model, inputs=made.inputs(), answers=[(11, 12), (13, 14)])
    scores = interp.attribute(model, batch, "zero")
    assert np.isnan(scores.values[0]).all() and np.isfinite(scores.values[1]).all()
    assert not scores.exists["text"][0].any() and scores.exists["text"][1].all()


@pytest.mark.parametrize(
    ("method", "more", "error", "words"),
    [
        ("zeros", {}, UnknownName, "Did you mean 'zero'"),
        ("zero", {"metric": "logit_diference"}, UnknownName, "logit_difference"),
        ("zero", {"metric": 3}, BadInput, "expected a metric"),
        ("zero", {"site": "resid_pre"}, BadInput, "works at Site.Z"),
        ("uniform", {"site": "q"}, BadInput, "works at Site.PATTERN"),
        ("zero", {"site": "zed"}, BadAddress, "site"),
        ("zero", {"by": "token"}, BadInput, "Unknown by 'token'"),
        ("all_but_one", {"by": "position"}, BadInput, "is not offered"),
        ("zero", {"freeze": "everything"}, BadInput, "Unknown freeze"),
        ("zero", {"direction": "noise"}, BadInput, "for methods that patch"),
        ("patch", {"direction": "both", "source": "batch"}, BadInput, "Unknown direction"),
        ("zero", {"std": 0.1}, BadInput, "has no options of its own"),
        ("noise", {"sigma": 0.1}, BadInput, "std: standard deviation"),
        ("patch", {}, BadInput, "source= is missing"),
        ("patch", {"source": torch.zeros(3)}, BadInput, "expected a Batch"),
        ("zero", {"source": "batch"}, BadInput, "source= has no meaning"),
        ("zero", {"reference": "batch"}, BadInput, "reference= has no meaning"),
        ("mean", {"reference": torch.zeros(3)}, BadInput, "expected a Batch"),
        ("zero", {"normalise": True}, BadInput, "for methods that patch"),
        ("zero", {"stack": "vision"}, BadAddress, "stack"),
        ("zero", {"heads": [(0, 9)]}, BadAddress, "Head 9 is not there"),
        ("zero", {"heads": [(7, 0)]}, BadAddress, "Layer 7 is not there"),
        ("zero", {"heads": []}, BadInput, "names no head"),
        ("zero", {"heads": [0.1]}, BadAddress, "is not a head"),
        ("zero", {"pos": 50}, BadAddress, "outside the shortest prompt"),
        ("zero", {"pos": "subject"}, BadAddress, "span"),
        ("zero", {"pos": 1, "by": "position"}, BadInput, "leave pos= out"),
        ("zero", {"batch_size": 0}, BadInput, "at least 1"),
        ("zero", {"cluster": ["a"]}, BadInput, "one label per prompt"),
        ("noise", {"std": "much"}, BadInput, "expected a finite number"),
        ("noise", {"std": 0.1, "seed": "x"}, BadInput, "expected an int"),
        ("zero", {"seed": "x"}, BadInput, "expected an int of at least 0"),
        ("mean", {"positions": "yes"}, BadInput, "expected True, False"),
    ],
)
def test_what_cannot_be_is_refused_before_any_forward(
    method: str, more: dict[str, Any], error: type[Exception], words: str, no_forward: Any
) -> None:
    model, batch, source = no_forward
    given = {key: source if value == "batch" else value for key, value in more.items() if value is not None}
    with pytest.raises(error, match=words):
        interp.attribute(model, batch, method, **given)


def test_pairs_of_unequal_shape_are_refused_before_any_forward(no_forward: Any) -> None:
    model, batch, source = no_forward
    made = TINY["gpt2"]()
    longer = interp.encode(model, inputs=made.inputs(3, length=9))
    with pytest.raises(BadInput, match=r"0 \(9 and 7 tokens\)"):
        interp.attribute(model, batch, "patch", source=longer)
    with pytest.raises(BadInput, match="2 prompts and the batch 3"):
        interp.attribute(model, batch, "patch", source=source.select([0, 1]))
    for wrong, words in ((source.inputs["input_ids"], "the batch is a Tensor"), (model, "the batch is a Model")):
        with pytest.raises(BadInput, match=words):
            interp.attribute(model, wrong)
    with pytest.raises(BadInput, match="the model is a GPT2LMHeadModel"):
        interp.attribute(model.hf, batch)


def test_a_family_that_cannot_is_refused_before_any_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    made = TINY["gpt_neo"]()
    model = interp.load(made.hf, check=False)
    batch = interp.encode(model, inputs=made.inputs(), answers=[(11, 12), (13, 14)])
    monkeypatch.setattr(model.hf, "forward", None)
    cases: list[dict[str, Any]] = [{"site": "q"}, {"site": "pattern"}, {"freeze": "patterns"}]
    for more in cases:
        with pytest.raises(Unsupported):
            interp.attribute(model, batch, "zero", **more)


def test_metrics_that_are_not_one_number_per_prompt_are_refused(pair: Any) -> None:
    model, batch, _ = pair
    cases: list[tuple[Any, str]] = [
        (lambda logits, batch: logits.mean(), "one number per prompt"),
        (lambda logits, batch: logits[:, -1, :2], "one number per prompt"),
        (lambda logits, batch: logits[:, -1, 0] * torch.nan, "NaN or infinity"),
        (lambda logits, batch: 3.0, "one number per prompt"),
    ]
    for metric, words in cases:
        with pytest.raises(BadInput, match=words):
            interp.attribute(model, batch, "zero", metric=metric)


def test_a_request_is_what_the_methods_see(pair: Any) -> None:
    request = Request()
    assert (request.site, request.by, request.freeze, request.metric_name) == (
        Site.Z,
        "head",
        "none",
        "logit_difference",
    )
    assert request.metric_sense == 1 and request.logits(pair[0]) == "answers"
    assert Request(metric=interp.loss).metric_sense == -1 and Request(metric=interp.loss).logits(pair[0]) == "all"


def test_every_file_of_methods_is_in_the_registry() -> None:
    room = Path(inspect.getfile(METHODS["zero"].__class__)).parent
    modules = {row.function.split(":")[0].rpartition(".")[2] for row in METHODS.values()}
    assert modules <= {path.stem for path in room.glob("*.py")}
