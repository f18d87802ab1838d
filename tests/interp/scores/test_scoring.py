"""How a scoring is run: the plan, one forward, options, null prompts, parts of a batch, files, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from torch import Tensor

import interp
from interp import At, Batch, Model, Site
from interp.model.row_blocks import Block
from interp.model.streaming import stream
from interp.scores.null_prompts import null_prompts
from interp.scores.prompts import repeated_random
from interp.scores.score import plan_scores

SHARED = ["previous_token", "induction", "duplicate_token"]


@pytest.fixture(scope="module")
def induction() -> Model:
    return interp.load("induction")


@pytest.fixture(scope="module")
def batch(induction: Model) -> Batch:
    return interp.encode(induction, repeated_random(induction, [1, 2, 3], 12, 2))


@contextmanager
def counting(model: Model) -> Iterator[list[int]]:
    """A list that grows by the number of prompts of each forward."""
    seen: list[int] = []
    handle = model.hf.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def test_the_plan_is_told_first_and_kept(induction: Model, batch: Batch) -> None:
    told: list[str] = []
    done: list[int] = []
    with counting(induction) as forwards:
        found = interp.score(
            induction, batch, [*SHARED, "prefix_matching"], tell=lambda text: told.append(text) or
            (done.append(-1) if not forwards else None), progress=done.append,
        )  # fmt: skip
    assert done == [-1, 1, 1] and forwards == [3, 3]
    assert found.plan is not None and found.plan.forwards == 2
    assert "1 forward of the prompts (stack text): previous_token, induction, duplicate_token" in told[0]
    assert "four_repeats" in told[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_of_a_batch(induction: Model, batch: Batch, size: int) -> None:
    whole = interp.score(induction, batch, SHARED)
    with counting(induction) as forwards:
        parts = interp.score(induction, batch, SHARED, batch_size=size)
    assert sum(forwards) == 3 and max(forwards) == min(size, 3)
    assert parts.plan is not None and parts.plan.forwards == len(forwards) == -(-3 // size)
    assert plan_scores(induction, batch, SHARED, batch_size=size).forwards == len(forwards)
    for name in SHARED:
        np.testing.assert_allclose(parts[name].per_prompt, whole[name].per_prompt, atol=1e-6)


def test_columns_to_leave_out_go_with_their_prompts(induction: Model, batch: Batch) -> None:
    left_out = torch.zeros_like(batch.mask)
    left_out[0, 0] = left_out[1, 3] = left_out[2, 5] = True
    whole = interp.score(induction, batch, SHARED, exclude_sinks=left_out)
    parts = interp.score(induction, batch, SHARED, exclude_sinks=left_out, batch_size=1)
    for name in SHARED:
        np.testing.assert_allclose(parts[name].per_prompt, whole[name].per_prompt, atol=1e-6)


def test_leaving_out_the_start_by_hand(induction: Model, batch: Batch) -> None:
    pattern = interp.run(induction, batch, read="blocks.1.attn.hook_pattern")["blocks.1.attn.hook_pattern"]
    rest = pattern.clone()
    rest[..., 0] = 0
    rest = rest / rest.sum(-1, keepdim=True).clamp(min=1e-30)
    expected = rest.diagonal(-1, -2, -1)[..., 1:].mean(-1)  # the second row's neighbour is what is left out
    for sinks in ("first", 1, True, torch.arange(batch.width).eq(0).expand(3, -1)):
        found = interp.score(induction, batch, "previous_token", exclude_sinks=sinks)["previous_token"]
        np.testing.assert_allclose(found.per_prompt[:, 1], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_null_prompts_keep_all_but_the_content(induction: Model, kind: str) -> None:
    batch = interp.encode(induction, [[0, 5, 6, 7], [0, 8, 9]])
    null = null_prompts(induction, batch, kind, seed=3)
    assert null.ids is not None and batch.ids is not None
    assert torch.equal(null.mask, batch.mask) and torch.equal(null.ids[:, 0], batch.ids[:, 0])
    assert torch.equal(null.ids[~batch.mask], batch.ids[~batch.mask])
    assert torch.equal(null.inputs["input_ids"], null.ids) and not torch.equal(null.ids, batch.ids)
    assert null.tokens[0] == tuple(induction.tokenizer.convert_ids_to_tokens(null.ids[0].tolist()))
    if kind == "shuffled":
        assert sorted(null.ids[0].tolist()) == [0, 5, 6, 7]
    alone = null_prompts(induction, batch.select([1]), kind, seed=3)
    assert alone.ids is not None
    assert torch.equal(alone.ids[0], null.ids[1]), "a draw depends on the prompt, not on the batch around it"
    other = null_prompts(induction, batch, "random", seed=4)
    assert other.ids is not None and not torch.equal(other.ids, null.ids)


def test_nulls_set_a_value_against_chance(induction: Model, batch: Batch) -> None:
    found = interp.score(induction, batch, ["induction", "previous_token"], null="shuffled", draws=9)
    null = found.nulls["induction"]
    assert null.sample_axis == "permutation" and null.samples.shape == (9, 2, 4)
    assert found.plan is not None and found.plan.forwards == 10
    table = found.table().set_index("head")
    assert table.loc["L1.H0", "induction p"] == 0.1
    # a shuffled prompt still says each token twice: an induction head finds its copies there as well, less surely
    assert 0.4 < table.loc["L1.H0", "induction null"] < 0.8 < table.loc["L1.H0", "induction"]
    by_hand = [
        interp.score(induction, null_prompts(induction, batch, "shuffled", draw), "induction")["induction"].values
        for draw in range(9)
    ]
    np.testing.assert_allclose(null.samples, np.stack(by_hand), atol=1e-6)
    again = interp.score(induction, batch, "induction", null="shuffled", draws=9)
    np.testing.assert_array_equal(again.nulls["induction"].samples, null.samples)


def test_draws_without_a_value_are_no_evidence(induction: Model, batch: Batch) -> None:
    """Random tokens, none said twice, have no induction score: no p stands beside the heads'."""
    found = interp.score(induction, batch, ["induction", "previous_token"], null="random", draws=3)
    assert np.isnan(found.nulls["induction"].samples).all()
    table = found.table()
    assert table["induction p"].isna().all() and table["previous_token p"].between(0.25, 1).all()


def test_null_prompts_leave_masks_that_look_like_ids() -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, torch.ones(1, 6, dtype=torch.long))
    null = null_prompts(model, batch, "random", seed=0)
    assert torch.equal(null.inputs["attention_mask"], batch.inputs["attention_mask"])
    assert null.ids is not None and torch.equal(null.inputs["input_ids"], null.ids)
    assert len(set(null.ids[0].tolist())) == 6


def test_groups_within_options_go_with_their_prompts(induction: Model, batch: Batch) -> None:
    late = torch.zeros_like(batch.mask)
    late[0, 20:] = late[1, 10:] = late[2, 15:] = True
    options = {"entropy": {"queries": {"late": late, "all": None}}}
    whole = interp.score(induction, batch, options)["entropy"]
    parts = interp.score(induction, batch, options, batch_size=1)["entropy"]
    np.testing.assert_allclose(parts.per_prompt, whole.per_prompt, atol=1e-6)


def test_what_is_said_of_prompts_is_of_all_of_them(induction: Model) -> None:
    batch = interp.encode(induction, [[0, *range(5, 10)], [0, 5, 6], [0, *range(5, 13)]])
    names = ["mean_distance", "secondary_sink_mass"]
    whole = interp.score(induction, batch, names)
    parts = interp.score(induction, batch, names, batch_size=1)
    for name in names:
        assert parts[name].metadata["tokens"] == [6, 3, 9] == whole[name].metadata["tokens"]
    assert parts["secondary_sink_mass"].metadata["classes"] == whole["secondary_sink_mass"].metadata["classes"]


def test_the_plan_counts_what_finds_sinks(induction: Model, batch: Batch) -> None:
    names = ["entropy", "layer_similarity"]
    with counting(induction) as forwards:
        found = interp.score(induction, batch, names, exclude_sinks="detected")
    assert found.plan is not None and found.plan.forwards == 2
    assert len(forwards) == found.plan.forwards + 1, "layer_similarity runs one of its own"
    assert "1 forward to find sinks" in str(found.plan)


def test_labels_and_options(induction: Model, batch: Batch) -> None:
    found = interp.score(induction, batch, {"a": {"score": "induction"}, "previous_token": {}})
    assert list(found) == ["a", "previous_token"] and found["a"].name == "a"
    assert found["a"].metadata["score"] == "induction"
    with pytest.raises(KeyError, match="score of this scoring"):
        found["b"]


def test_files(induction: Model, batch: Batch, tmp_path: Path) -> None:
    found = interp.score(induction, batch, SHARED, null="random", draws=2)
    opened = type(found).open(found.save(tmp_path / "scores"))
    assert list(opened) == SHARED and list(opened.nulls) == SHARED
    np.testing.assert_array_equal(opened["induction"].per_prompt, found["induction"].per_prompt)
    assert opened.table().equals(found.table())
    with pytest.raises(interp.BadInput, match=r"no scores\.json"):
        type(found).open(tmp_path)


def test_detected_sinks_are_those_that_receive_most(induction: Model, batch: Batch) -> None:
    maps = [interp.run(induction, batch, read=[At(Site.PATTERN, layer=layer)])[At(Site.PATTERN, layer=layer)]
            for layer in range(2)]  # fmt: skip
    expected = torch.zeros_like(batch.mask)
    for pattern in maps:
        for key in range(batch.width - 8):
            expected[:, key] |= pattern[:, :, key + 1 :, key].mean((1, 2)) > 0.1
    found = interp.sink_columns(induction, batch, eps=0.1)
    assert torch.equal(found, expected) and found.any()
    with counting(induction) as forwards:
        left_out = interp.score(induction, batch, SHARED, exclude_sinks="detected")
    assert left_out.plan is not None and left_out.plan.forwards == len(forwards) == 2
    by_hand = interp.score(induction, batch, SHARED, exclude_sinks=interp.sink_columns(induction, batch))
    for name in SHARED:
        np.testing.assert_array_equal(left_out[name].per_prompt, by_hand[name].per_prompt)


REFUSED: list[tuple[Any, Mapping[str, Any], str]] = [
    ("inductoin", {}, "Did you mean 'induction'"),
    ([], {}, "no names"),
    ({"induction": {"window": 3}}, {}, "option of score 'induction'"),
    ({"induction": 3}, {}, "expected a mapping"),
    ("induction", {"batch_size": 0}, "batch_size=0"),
    ("induction", {"draws": -1}, "draws=-1"),
    ("induction", {"null": "shufled"}, "Did you mean 'shuffled'"),
    ("induction", {"stack": "vision"}, "stack"),
    ("induction", {"block": 0}, "block=0"),
    ("induction", {"block": True}, "block=True"),
    ("induction", {"seed": "x"}, "seed='x'"),
    ("induction", {"exclude_sinks": "bos"}, "span"),
    ("induction", {"exclude_sinks": -2}, "exclude_sinks=-2"),
    ("induction", {"exclude_sinks": 25}, "without any key"),
    ("induction", {"exclude_sinks": torch.ones(3, 4, dtype=torch.bool)}, r"\[3, 4\]"),
    ("prefix_matching", {"exclude_sinks": torch.zeros(3, 25, dtype=torch.bool)}, "draws its own prompts"),
]


@pytest.mark.parametrize(("names", "options", "message"), REFUSED)
def test_refused_before_any_forward(
    induction: Model, batch: Batch, names: Any, options: Mapping[str, Any], message: str
) -> None:
    with counting(induction) as forwards, pytest.raises(interp.HeadscopeError, match=message):
        interp.score(induction, batch, names, **options)
    assert not forwards


def test_a_batch_is_no_tensor(induction: Model) -> None:
    with pytest.raises(interp.BadInput, match=r"interp\.encode"):
        interp.score(induction, torch.tensor([[0, 1]]), "induction")  # type: ignore[arg-type]


class Raising:
    """A watcher that raises at the second block."""

    maps, logits, layered, rows, sites = True, False, False, None, frozenset[Site]()

    def __init__(self, error: BaseException) -> None:
        self.error, self.seen = error, 0

    def features(self, layer: int, n_keys: int, rows: Tensor) -> Tensor | None:
        return None

    def start(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        pass

    def block(self, block: Block, products: Tensor | None) -> None:
        self.seen += 1
        if self.seen == 2:
            raise self.error

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        pass


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_the_model_is_as_found_after_an_error(error: BaseException) -> None:
    model = tiny_gpt2()
    batch = interp.encode(model, torch.tensor([[1, 2, 3, 4]]))
    before = model.hf(**batch.inputs).logits
    state = {name: (dict(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
             for name, module in model.hf.named_modules()}  # fmt: skip
    implementation = model.hf.config._attn_implementation
    with pytest.raises(type(error)):
        stream(model, batch, [Raising(error)], entries=1)
    assert model.hf.config._attn_implementation == implementation
    for name, module in model.hf.named_modules():
        old, hooks, pre_hooks = state[name]
        assert module.__dict__.keys() == old.keys()
        assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == (hooks, pre_hooks)
    assert torch.equal(model.hf(**batch.inputs).logits, before)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_relations_of_tokens_are_not_taken_apart_with_the_prompts(induction: Model) -> None:
    """A square relation whose side is the number of prompts holds for every prompt; labels are one list per prompt."""
    batch = interp.encode(induction, torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10], [0, 5, 5, 6], [0, 9, 9, 9]]))
    options = {
        "graph_distance": {
            "nodes": torch.arange(4).expand(4, -1),
            "adjacency": torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0) > 0,
        },
        "relation_attention": {"labels": [[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]},
    }
    whole = interp.score(induction, batch, options)
    parts = interp.score(induction, batch, options, batch_size=2)
    for name in options:
        np.testing.assert_allclose(parts[name].samples, whole[name].samples, atol=1e-6)
