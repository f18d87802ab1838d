"""Exact interventions: on paper, against plain hooks on the Hugging Face module, and in what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BEYOND, TINY
from torch import Tensor

import interp
from interp import At, BadInput, Batch, Model, Site, Unsupported
from interp.attribution.interventions import replaced_by_others

Change = Callable[[Tensor], Tensor]  # z [batch, pos, head, d_head] -> z

LOGITS = "answers"
WITH_TEXT = ("gpt2", "llama", "gemma2", "bert", "gpt_neox", "falcon")


@pytest.fixture(scope="module")
def handmade() -> tuple[Model, Batch, Batch]:
    """The model, prompts that end in a repetition, and the same with another last token."""
    model = interp.load("handmade")
    answers = [(4, 5), (6, 4)]
    clean = interp.encode(model, torch.tensor([[0, 3, 4, 3], [0, 5, 6, 5]]), answers=answers)
    corrupted = interp.encode(model, torch.tensor([[0, 3, 4, 7], [0, 5, 6, 8]]), answers=answers)
    return model, clean, corrupted


def tiny(name: str, seed: int = 0, batch: int = 2, **more: Any) -> tuple[Model, Batch]:
    """A tiny model of a family with a batch that has answers."""
    made = TINY[name]()
    model = interp.load(made.hf, check=False)
    answers = [(1, 2), (3, 4), (5, 6)] if made.kind == "vision" else [(11, 12), (13, 14), (15, 16)]
    return model, interp.encode(model, inputs=made.inputs(batch, seed=seed), answers=answers[:batch], **more)


def hooked(model: Model, batch: Batch, changes: Mapping[tuple[str, int], Change]) -> Tensor:
    """``[batch]`` the logit difference of the plain model with z changed by hooks of this test's own."""
    with ExitStack() as guard, torch.no_grad():
        for (name, index), change in changes.items():
            layer = model.stacks[name].layer(index)

            def hook(module: Any, args: Any, change: Change = change, layer: Any = layer) -> Any:
                x = args[0]
                z = x.reshape(len(batch), -1, layer.n_heads, layer.d_head)
                return (change(z).reshape(x.shape), *args[1:])

            handle = layer.out.register_forward_pre_hook(hook)
            guard.callback(handle.remove)
        logits = model.hf(**batch.inputs).logits
    if logits.ndim == 2:
        logits = logits[:, None]
    else:
        logits = logits[torch.arange(len(batch)), batch.read_at][:, None]
    assert batch.answers is not None
    return logits[:, 0].gather(1, batch.answers)[:, 0] - logits[:, 0].gather(1, batch.answers)[:, 1]


def every_z(model: Model, batch: Batch) -> dict[tuple[str, int], Tensor]:
    """z of every attention, recorded by hooks of this test's own."""
    found: dict[tuple[str, int], Tensor] = {}

    def keep(place: tuple[str, int]) -> Change:
        def change(z: Tensor) -> Tensor:
            found[place] = z.clone()
            return z

        return change

    places = [(name, i) for name, stack in model.stacks.items() for i, layer in enumerate(stack.layers) if layer]
    hooked(model, batch, {place: keep(place) for place in places})
    return found


def swap(heads: Any, value: Tensor | float) -> Change:
    """A change that puts ``value`` (z of the same shape, or a number) at some heads."""

    def change(z: Tensor) -> Tensor:
        made = z.clone()
        made[:, :, heads] = value[:, :, heads] if isinstance(value, Tensor) else value
        return made

    return change


def by_hooks(
    model: Model, batch: Batch, stack: str, change: Callable[[int, int], Mapping[tuple[str, int], Change]]
) -> np.ndarray:
    """``[prompt, layer, head]`` effects, one plain forward for each head."""
    base = hooked(model, batch, {})
    found = model.stacks[stack]
    grid = np.full((len(batch), found.n_layers, max(map(found.n_heads, range(found.n_layers)))), np.nan)
    for layer in range(found.n_layers):
        for head in range(found.n_heads(layer)):
            grid[:, layer, head] = (hooked(model, batch, change(layer, head)) - base).numpy()
    return grid


def difference(run: interp.Run) -> Tensor:
    """``[batch]`` the logit difference of a run."""
    assert run.logits is not None
    return interp.logit_difference(run.logits, run.batch)


def close(made: np.ndarray, expected: np.ndarray) -> None:
    """Equal to rounding, and not because everything is 0."""
    assert np.nanmax(np.abs(expected)) > 1e-3
    np.testing.assert_allclose(made, expected, atol=2e-5, rtol=2e-4)


# ---- on paper -------------------------------------------------------------------------------------------------------

# one path, TOKEN -> L0.H0 -> key of L1.H0 -> 10 votes for the answer; heads L0.H1 and L1.H1 reach no logit
ON_PAPER: Mapping[str, tuple[dict[str, Any], list[list[float]]]] = {
    "zero": ({}, [[-10, 0], [-10, 0]]),
    # its query 0, a head of layer 1 attends to each of 4 places: a quarter of the votes for the answer, <bos> has none
    "zero-q": ({"site": "q"}, [[-10, 0], [-7.5, 0]]),
    "zero-v": ({"site": "v"}, [[-10, 0], [-10, 0]]),
    "zero-pattern": ({"site": "pattern"}, [[-10, 0], [-10, 0]]),
    # even attention of L0.H0 writes a mixture whose best match is never the place after the earlier copy
    "uniform": ({}, [[-10, 0], [-7.5, 0]]),
    # z of L1.H1 is the mean value of the four tokens, <bos> included
    "mean_of_others": ({}, [[-10, 0], [-7.5, 0]]),
    "mean_of_others-zero": ({"mode": "zero"}, [[-10, 0], [-10, 0]]),
    "all_but_one": ({}, [[0, -10], [0, -10]]),
    # the other prompt's votes: prompt 0 gets none for its answers, prompt 1 gets 10 for its wrong one
    "resample": ({}, [[-10, 0], [-15, 0]]),
    "mean": ({}, [[-10, 0], [-15, 0]]),
    "zero-other_heads": ({"freeze": "other_heads"}, [[0, 0], [-10, 0]]),
    "zero-patterns": ({"freeze": "patterns"}, [[0, 0], [-10, 0]]),
    "zero-norms": ({"freeze": "norms"}, [[-10, 0], [-10, 0]]),
    "all_but_one-other_heads": ({"freeze": "other_heads"}, [[0, 0], [0, -10]]),
    "zero-last": ({"pos": -1}, [[0, 0], [-10, 0]]),  # L0.H0 must write at the place after the earlier copy, place 2
    "zero-third": ({"pos": 2}, [[-10, 0], [0, 0]]),
}


@pytest.mark.parametrize("case", ON_PAPER)
def test_the_effects_of_the_handmade_model_are_those_on_paper(case: str, handmade: Any) -> None:
    model, clean, _ = handmade
    options, expected = ON_PAPER[case]
    scores = interp.attribute(model, clean, case.split("-", maxsplit=1)[0], **options)
    np.testing.assert_allclose(scores.values, expected, atol=2e-3)
    assert (scores.quantity, scores.sample_axis) == ("effect", "prompt")
    assert scores.sense == (1 if case.startswith("all_but_one") else -1)


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("z", [[0, 0], [10, 0]]),
        ("q", [[0, 0], [10, 0]]),  # asks for the repeated token again
        ("pattern", [[0, 0], [10, 0]]),
        ("k", [[0, 0], [0, 0]]),  # the keys of places 0 to 2 are those of the corrupted prompt
        ("v", [[0, 0], [0, 0]]),
    ],
)
def test_patching_is_what_paper_says_in_both_directions(site: str, expected: list[list[float]], handmade: Any) -> None:
    model, clean, corrupted = handmade
    denoised = interp.attribute(model, corrupted, "patch", source=clean, site=site)
    np.testing.assert_allclose(denoised.values, expected, atol=1e-3)
    assert denoised.sense == 1 and denoised.unit == ("kv" if site in "kv" else "query")
    noised = interp.attribute(model, clean, "patch", source=corrupted, site=site, direction="noise")
    np.testing.assert_allclose(noised.values, -np.array(expected), atol=1e-3)
    assert noised.sense == -1
    np.testing.assert_allclose(noised.importance(), denoised.importance(), atol=1e-3)


def test_only_the_last_position_of_the_induction_head_restores_the_metric(handmade: Any) -> None:
    model, clean, corrupted = handmade
    scores = interp.attribute(model, corrupted, "patch", source=clean, by="position")
    expected = np.zeros((2, 2, 4))
    expected[1, 0, 3] = 10
    np.testing.assert_allclose(scores.values, expected, atol=1e-3)
    assert scores.positions == ("0", "1", "2", "3")


def test_positions_that_are_padding_are_nan(handmade: Any) -> None:
    model, _, _ = handmade
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    ids = torch.tensor([[0, 3, 4, 3, 1], [0, 5, 6, 7, 5]])
    batch = interp.encode(model, ids, mask=mask, answers=[(4, 5), (6, 4)])
    scores = interp.attribute(model, batch, "zero", by="position")
    assert np.isnan(scores.per_prompt[0, :, :, 4]).all() and np.isfinite(scores.per_prompt[1]).all()
    assert scores.per_prompt[0, 1, 0, 3] == pytest.approx(-10, abs=1e-3)
    assert scores.per_prompt[1, 1, 0, 4] == pytest.approx(-10, abs=1e-3)


def test_normalised_effects_are_ratios_of_means(handmade: Any) -> None:
    model, clean, corrupted = handmade
    pairs: list[tuple[Batch, Batch, Any]] = [(corrupted, clean, "denoise"), (clean, corrupted, "noise")]
    for batch, source, direction in pairs:
        shares = interp.attribute(model, batch, "patch", source=source, direction=direction, normalise=True)
        np.testing.assert_allclose(shares.values, [[0, 0], [1, 0]], atol=1e-3)
        assert shares.sense == 1


# ---- against hooks on the plain model --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", WITH_TEXT)
def test_zero_mean_and_patch_equal_plain_hooks(family: str) -> None:
    model, batch = tiny(family)
    _, source = tiny(family, seed=1)
    z, other = every_z(model, batch), every_z(model, source)
    name = model.default_stack
    close(
        interp.attribute(model, batch, "zero").per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], 0.0)}),
    )
    means = {place: value.mean(0, keepdim=True).expand_as(value) for place, value in other.items()}
    close(
        interp.attribute(model, batch, "mean", reference=source).per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], means[name, layer])}),
    )
    flat = {place: value.mean((0, 1), keepdim=True).expand_as(value) for place, value in other.items()}
    close(
        interp.attribute(model, batch, "mean", reference=source, positions=False).per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], flat[name, layer])}),
    )
    alone = {place: value.flip(0) for place, value in z.items()}  # of two prompts, the others' mean is the other one
    close(
        interp.attribute(model, batch, "mean").per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], alone[name, layer])}),
    )
    close(
        interp.attribute(model, batch, "patch", source=source).per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], other[name, layer])}),
    )
    run = interp.run(model, source, read=[At(Site.Z, layer=layer) for layer in range(2)])
    np.testing.assert_array_equal(
        interp.attribute(model, batch, "patch", source=run).per_prompt,
        interp.attribute(model, batch, "patch", source=source).per_prompt,
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_others_resampling_and_keeping_one_equal_plain_hooks(family: str) -> None:
    model, batch = tiny(family)
    name, z = model.default_stack, every_z(model, batch)
    heads = model.stack().n_heads(0)

    def others(head: int) -> Change:
        def change(x: Tensor) -> Tensor:
            made = x.clone()
            made[:, :, head] = x[:, :, [h for h in range(heads) if h != head]].mean(2)
            return made

        return change

    close(
        interp.attribute(model, batch, "mean_of_others").per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): others(head)}),
    )
    close(  # of two prompts, nobody draws its own
        interp.attribute(model, batch, "resample").per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], z[name, layer].flip(0))}),
    )

    def rest(head: int) -> list[int]:
        return [h for h in range(heads) if h != head]

    close(
        interp.attribute(model, batch, "all_but_one").per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap(rest(head), 0.0)}),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_one_position_at_a_time_equals_plain_hooks(family: str) -> None:
    model, batch = tiny(family)
    _, source = tiny(family, seed=1)
    name, other = model.default_stack, every_z(model, source)
    scores = interp.attribute(model, batch, "patch", source=source, by="position").per_prompt

    def at(column: int, layer: int, head: int) -> Change:
        def change(z: Tensor) -> Tensor:
            made = z.clone()
            made[:, column, head] = other[name, layer][:, column, head]
            return made

        return change

    for column in (0, 3, batch.width - 1):
        close(
            scores[..., column],
            by_hooks(model, batch, name, lambda layer, head, c=column: {(name, layer): at(c, layer, head)}),
        )


def test_a_key_value_head_takes_its_query_heads_with_it() -> None:
    model, batch = tiny("llama")
    stack = model.stack()
    group = stack.n_heads(0) // stack.n_kv_heads(0)
    assert group > 1
    scores = interp.attribute(model, batch, "zero", by="kv")
    assert scores.unit == "kv" and scores.values.shape == (2, stack.n_kv_heads(0))
    base = hooked(model, batch, {})
    for layer in range(2):
        for head in range(stack.n_kv_heads(layer)):
            members = list(range(head * group, (head + 1) * group))
            expected = hooked(model, batch, {("text", layer): swap(members, 0.0)}) - base
            np.testing.assert_allclose(scores.per_prompt[:, layer, head], expected, atol=2e-5)
    # v of a key/value head 0 is z of its query heads 0
    np.testing.assert_allclose(
        interp.attribute(model, batch, "zero", site=Site.V).per_prompt, scores.per_prompt, atol=2e-5
    )


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("name", ["encoder", "decoder", "cross"])
def test_every_stack_of_an_encoder_decoder_equals_plain_hooks(family: str, name: str) -> None:
    model, batch = tiny(family)
    scores = interp.attribute(model, batch, "zero", stack=name)
    assert scores.stacks == (name,) and scores.default_stack == "decoder"
    close(scores.per_prompt, by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], 0.0)}))


@pytest.mark.parametrize(("family", "name"), [("vit", "vision"), ("llava", "vision"), ("llava", "text")])
def test_vision_stacks_equal_plain_hooks(family: str, name: str) -> None:
    model, batch = tiny(family)
    _, source = tiny(family, seed=1)
    z = every_z(model, source)
    close(
        interp.attribute(model, batch, "patch", source=source, stack=name).per_prompt,
        by_hooks(model, batch, name, lambda layer, head: {(name, layer): swap([head], z[name, layer])}),
    )
    by_position = interp.attribute(model, batch, "zero", stack=name, by="position")
    assert by_position.per_prompt.shape[-1] == z[name, 0].shape[1]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["q", "k", "v", "pattern"])
def test_edits_inside_attention_equal_one_run_for_each(family: str, site: str) -> None:
    model, batch = tiny(family)
    _, source = tiny(family, seed=1)
    scores = interp.attribute(model, batch, "patch", source=source, site=site)
    for layer in range(2):
        at = At(site, layer=layer)
        read = interp.run(model, source, read=[at], kernels={("text", layer): "eager"})
        base = difference(interp.run(model, batch, kernels={("text", layer): "eager"}))
        for head in range(model.stack().width(Site(site), layer)):
            where = at.with_(heads=(head,))
            expected = difference(interp.run(model, batch, edits=[interp.patch(where, read[where])])) - base
            np.testing.assert_allclose(scores.per_prompt[:, layer, head], expected, atol=2e-5, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TINY, *BEYOND])
def test_every_stack_of_every_family_equals_one_run_for_each(family: str) -> None:
    made = {**TINY, **BEYOND}[family]()
    answers = {"clip": [(1, 0), (0, 1)], "siglip": [(1, 0), (0, 1)]}.get(family, [(1, 2), (3, 4)])
    model = interp.load(made.hf, check=False)
    batch, source = (interp.encode(model, inputs=made.inputs(seed=seed), answers=answers) for seed in (0, 1))
    for name, stack in model.stacks.items():
        zeroed = interp.attribute(model, batch, "zero", stack=name).per_prompt
        patched = interp.attribute(model, batch, "patch", source=source, stack=name).per_prompt
        base = difference(interp.run(model, batch))
        for layer in range(stack.n_layers):
            for head in range(stack.n_heads(layer)):
                at = At(Site.Z, layer=layer, heads=(head,), stack=name)
                for scores, edit in ((zeroed, interp.zero(at)), (patched, interp.patch(at, source))):
                    expected = difference(interp.run(model, batch, edits=[edit])) - base
                    np.testing.assert_allclose(scores[:, layer, head], expected, atol=2e-5, rtol=1e-4)
            assert np.isnan(zeroed[:, layer, stack.n_heads(layer) :]).all()


# ---- the direct effect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert", "gpt_neox"])
def test_the_direct_effect_holds_every_later_head_at_its_clean_z(family: str) -> None:
    model, batch = tiny(family)
    _, source = tiny(family, seed=1)
    name, clean, other = model.default_stack, every_z(model, batch), every_z(model, source)

    def change(layer: int, head: int) -> dict[tuple[str, int], Change]:
        held: dict[tuple[str, int], Change] = {
            place: swap(slice(None), value) for place, value in clean.items() if place != (name, layer)
        }
        return {**held, (name, layer): swap([head], other[name, layer])}

    expected = by_hooks(model, batch, name, change)
    close(interp.attribute(model, batch, "patch", source=source, freeze="other_heads").per_prompt, expected)
    whole = interp.attribute(model, batch, "patch", source=source).per_prompt
    assert np.abs(whole[:, 0] - expected[:, 0]).max() > 1e-3  # a first-layer head also acts through later heads
    np.testing.assert_allclose(whole[:, -1], expected[:, -1], atol=2e-5)  # a last-layer head has no later ones


def test_the_direct_effect_in_a_decoder_holds_both_kinds_of_attention() -> None:
    model, batch = tiny("t5")
    clean = every_z(model, batch)

    def change(layer: int, head: int) -> dict[tuple[str, int], Change]:
        held: dict[tuple[str, int], Change] = {
            place: swap(slice(None), value)
            for place, value in clean.items()
            if place[0] != "encoder" and place != ("decoder", layer)
        }
        return {**held, ("decoder", layer): swap([head], 0.0)}

    scores = interp.attribute(model, batch, "zero", stack="decoder", freeze="other_heads")
    close(scores.per_prompt, by_hooks(model, batch, "decoder", change))


def test_frozen_patterns_let_only_values_change() -> None:
    model, batch = tiny("gpt2")
    stack = model.stack()
    read = interp.run(model, batch, read=[At(Site.PATTERN, layer=1)], kernels={("text", 1): "eager"})
    pattern = read[At(Site.PATTERN, layer=1)]
    scores = interp.attribute(model, batch, "zero", freeze="patterns")
    base = difference(interp.run(model, batch, kernels={("text", 1): "eager"}))
    for head in range(stack.n_heads(0)):
        edits = [interp.zero(At(Site.Z, layer=0, heads=(head,)))]
        values = interp.run(model, batch, read=[At(Site.V, layer=1)], edits=edits)[At(Site.V, layer=1)]
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, values)
        expected = hooked(model, batch, {("text", 0): swap([head], 0.0), ("text", 1): swap(slice(None), z)}) - base
        np.testing.assert_allclose(scores.per_prompt[:, 0, head], expected, atol=2e-5, rtol=2e-4)
    assert np.abs(scores.values - interp.attribute(model, batch, "zero").values)[0].max() > 1e-3


# ---- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
@pytest.mark.parametrize("freeze", ["none", "other_heads", "patterns", "norms"])
def test_patching_a_prompt_with_itself_does_nothing(site: str, freeze: Any) -> None:
    for family in ("gpt2", "llama"):
        model, batch = tiny(family)
        scores = interp.attribute(model, batch, "patch", source=batch, site=site, freeze=freeze)
        assert np.abs(scores.per_prompt).max() < 2e-6


def test_neutral_interventions_do_nothing() -> None:
    model, batch = tiny("llama")
    assert np.abs(interp.attribute(model, batch, "noise", std=0.0).values).max() < 2e-6
    twice = batch.select([0, 0])
    assert np.abs(interp.attribute(model, twice, "mean").values).max() < 2e-6  # the other prompt is the same
    assert np.abs(interp.attribute(model, twice, "resample").values).max() < 2e-6


def test_the_order_of_prompts_and_the_size_of_forwards_change_nothing() -> None:
    model, batch = tiny("llama", batch=3)
    whole = interp.attribute(model, batch, "noise", std=0.5, seed=3).per_prompt
    small = interp.attribute(model, batch, "noise", std=0.5, seed=3, batch_size=1).per_prompt
    turned = interp.attribute(model, batch.select([2, 0, 1]), "noise", std=0.5, seed=3).per_prompt
    np.testing.assert_allclose(small, whole, atol=2e-5)
    np.testing.assert_allclose(turned, whole[[2, 0, 1]], atol=2e-5)
    assert np.abs(whole - interp.attribute(model, batch, "noise", std=0.5, seed=4).per_prompt).max() > 1e-3


@pytest.mark.parametrize("freeze", ["none", "other_heads", "patterns", "norms"])
@pytest.mark.parametrize("by", ["head", "position"])
def test_padding_changes_nothing(freeze: Any, by: Any) -> None:
    model, batch = tiny("llama")
    assert batch.ids is not None
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    padded = interp.encode(model, batch.ids, mask=mask, answers=[(11, 12), (13, 14)])
    alone = interp.encode(model, batch.ids[:1, 2:], answers=[(11, 12)])
    made = interp.attribute(model, padded, "zero", freeze=freeze, by=by).per_prompt[0]
    expected = interp.attribute(model, alone, "zero", freeze=freeze, by=by).per_prompt[0]
    if by == "position":
        assert np.isnan(made[..., :2]).all()
        made = made[..., 2:]
    close(made, expected)


def test_restricting_heads_and_positions() -> None:
    model, batch = tiny("gpt2")
    whole = interp.attribute(model, batch, "zero")
    some = interp.attribute(model, batch, "zero", heads=["L1.H2", (0, 1)])
    assert some.exists["text"].sum() == 2 and np.isnan(some.per_prompt).sum() == 2 * 6
    np.testing.assert_allclose(some.per_prompt[:, 1, 2], whole.per_prompt[:, 1, 2], atol=1e-6)
    by_position = interp.attribute(model, batch, "zero", by="position")
    last = torch.full((2, 1), batch.width - 1)
    np.testing.assert_allclose(
        interp.attribute(model, batch, "zero", pos=last).per_prompt, by_position.per_prompt[..., -1], atol=2e-5
    )
    every = torch.arange(batch.width).flip(0).expand(2, -1)  # all positions, in another order
    others: dict[str, Any] = {"source": batch.select([1, 0])}
    for method, more in (("zero", {}), ("mean", {}), ("patch", others)):
        np.testing.assert_allclose(
            interp.attribute(model, batch, method, pos=every, **more).per_prompt,
            interp.attribute(model, batch, method, **more).per_prompt,
            atol=2e-5,
        )


def test_a_layer_of_one_head_falls_back_to_zero() -> None:
    edit = replaced_by_others(At(Site.Z, layer=0, heads=(0,)))
    assert edit.function is not None
    assert torch.equal(edit.function(torch.ones(1, 2, 1, 3), None), torch.zeros(1, 2, 1, 3))  # type: ignore[arg-type]


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(handmade: Any) -> None:
    model, clean, _ = handmade
    one = clean.select([0])
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("mean", {}, "one prompt has no others"),
        ("resample", {}, "one prompt has no other"),
        ("noise", {}, "std= is missing"),
        ("noise", {"std": -1.0}, "std=-1.0"),
        ("mean_of_others", {"mode": "median"}, "Unknown mode"),
        ("all_but_one", {"mode": "median"}, "Unknown mode"),
        ("all_but_one", {"reference": clean}, "mode='mean'"),
        ("mean", {"reference": clean, "positions": 3}, "positions=3"),
    ]
    for method, more, words in cases:
        with pytest.raises(BadInput, match=words):
            interp.attribute(model, one, method, **more)
    with pytest.raises(BadInput, match="has not read"):
        interp.attribute(model, clean, "patch", source=interp.run(model, clean, read=[At(Site.Z, layer=1)]))


def test_no_difference_to_divide_by_is_refused_with_the_prompts(handmade: Any) -> None:
    model, clean, corrupted = handmade
    with pytest.raises(BadInput, match=r"prompts \[0, 1\] have nothing to divide by"):
        interp.attribute(model, clean, "patch", source=clean, normalise=True)
    # one of three pairs is no pair: it has no ratio, and the ratio of the means is that of the others
    batch, source = corrupted.select([0, 1, 0]), clean.select([0, 1, 0])
    assert source.ids is not None and batch.ids is not None
    ids = torch.cat([source.ids[:2], batch.ids[2:]])
    broken = interp.encode(model, ids, answers=source.answers)
    scores = interp.attribute(model, batch, "patch", source=broken, normalise=True)
    assert np.isnan(scores.per_prompt[2]).all() and scores.metadata["which prompts have no ratio"] == [2]
    np.testing.assert_allclose(scores.values, [[0, 0], [1, 0]], atol=1e-3)


def test_patterns_are_refused_where_attention_ignores_the_interface() -> None:
    model, batch = tiny("falcon")
    with pytest.raises(Unsupported):
        interp.attribute(model, batch, "zero", freeze="patterns")
    with pytest.raises(Unsupported):
        interp.attribute(model, batch, "uniform")
    vision, images = tiny("qwen2_vl")
    with pytest.raises(Unsupported, match="packs the rows"):
        interp.attribute(vision, images, "zero", stack="vision", by="position")
    encoder, pairs = tiny("t5")
    with pytest.raises(Unsupported, match="are the encoder's"):
        interp.attribute(encoder, pairs, "zero", stack="cross", site="k", by="position")


@pytest.mark.parametrize("site", [Site.Z, Site.Q, Site.V, Site.PATTERN])
def test_columns_before_the_first_difference_of_a_pair_are_left_alone(site: Site) -> None:
    """The same numbers as a source whose first tokens were run as well; exactly 0 before the difference."""
    tiny = TINY["llama"]()
    model = interp.load(tiny.hf, check=False)
    ids = tiny.inputs(3, 8)["input_ids"]
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 7) % 80 + 5
    batch, source = (interp.encode(model, each, answers=[(7, 9)] * 3) for each in (ids, other))
    found = interp.attribute(model, batch, "patch", source=source, site=site)
    where = interp.attribute(model, batch, "patch", source=source, site=site, by="position")
    for layer in range(2):
        for head in range(found.values.shape[1]):
            edit = interp.patch(At(site, layer, (head,)), source)
            run = interp.run(model, batch, edits=[edit], logits="answers")
            base = interp.run(model, batch, logits="answers", kernels=run.kernels)
            assert run.logits is not None and base.logits is not None
            expected = interp.logit_difference(run.logits, batch) - interp.logit_difference(base.logits, batch)
            np.testing.assert_allclose(found.samples[:, layer, head], expected.numpy(), atol=2e-6)
    assert (where.samples[..., :5] == 0).all() and (where.samples[..., 5:] != 0).any()


def test_an_edited_run_is_patched_in_from_its_first_column_on() -> None:
    """Left of the first different token an edited source differs as well."""
    tiny = TINY["llama"]()
    model = interp.load(tiny.hf, check=False)
    ids = tiny.inputs(3, 8)["input_ids"]
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 7) % 80 + 5
    batch, prompts = (interp.encode(model, each, answers=[(7, 9)] * 3) for each in (ids, other))
    steer = interp.add(At(Site.RESID_PRE, layer=0, pos=1), torch.linspace(-3, 3, 32), axes="d_model")
    source = interp.run(model, prompts, read=[At(Site.Z)], edits=[steer])
    found = interp.attribute(model, batch, "patch", source=source)
    base = difference(interp.run(model, batch))
    for head in model.heads():
        edited = interp.run(model, batch, edits=[interp.patch(At(Site.Z, head.layer, (head.index,)), source)])
        expected = difference(edited) - base
        np.testing.assert_allclose(found.samples[:, head.layer, head.index], expected.numpy(), atol=2e-6)
    where = interp.attribute(model, batch, "patch", source=source, by="position")
    assert (where.samples[..., 0] == 0).all() and (abs(where.samples[:, 0, :, 1]) > 1e-4).all()


def test_norms_held_still_go_on_from_the_edited_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The licence of the plain model holds while the scales are held: no block below the edit runs again."""
    model, batch = tiny("gpt2")
    interp.attribute(model, batch, "zero", heads=["L1.H0"], freeze="norms")
    block: Any = model.stack().blocks[0]
    own, calls = block.forward, []
    monkeypatch.setattr(block, "forward", lambda *args, **more: calls.append(1) or own(*args, **more))
    interp.attribute(model, batch, "zero", heads=["L1.H0"], freeze="norms")
    assert len(calls) == 2  # what the scales are read from, and the recording
