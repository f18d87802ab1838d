"""Runs: what an address gives back, which positions are unembedded, gradients, kernels, and what is stopped."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from by_hand import batch_of, tiny_gpt2
from tiny_models import TINY
from torch import Tensor

import interp
from interp import At, BadAddress, BadInput, Batch, EditDidNotFire, NotFinite, RunFailed, Site, Unsupported

GPT2 = tiny_gpt2()
PROMPTS = batch_of([[1, 2, 3, 4], [5, 6, 7, 8]])
LEFT = interp.encode(GPT2, [[1, 2, 3, 4], [5, 6]], padding_side="left", answers=[(9, 10), (11, 12)])
ANSWERED = interp.encode(GPT2, PROMPTS.ids, answers=[(9, 10, 3), (11, 12)])


def logits_of(run: interp.Run) -> Tensor:
    assert run.logits is not None
    return run.logits


# ---- reading --------------------------------------------------------------------------------------------------------


def test_an_int_layer_has_no_layer_axis_and_others_come_in_the_order_asked() -> None:
    run = interp.run(GPT2, PROMPTS, read=[At("z")])
    one = run[At("z", 1)]
    assert one.shape == (2, 4, 2, 4)
    assert run[At("z")].shape == (3, 2, 4, 2, 4)
    assert torch.equal(run[At("z", (1,))], one[None])
    swapped = run[At("z", (2, 0))]
    assert torch.equal(swapped[0], run[At("z", 2)]) and torch.equal(swapped[1], run[At("z", 0)])


def test_a_narrower_address_is_a_slice_of_what_was_read() -> None:
    run = interp.run(GPT2, PROMPTS, read=[At("z"), At("pattern", (0, 1), heads=(1, 0))])
    whole = run[At("z", 1)]
    assert torch.equal(run[At("z", 1, heads=1)], whole[:, :, 1:])
    assert torch.equal(run[At("z", 1, heads=(1, 0))], whole[:, :, [1, 0]])
    assert torch.equal(run[At("z", 1, pos=-1)], whole[:, 3:])
    assert torch.equal(run[At("z", 1, pos=slice(1, 3))], whole[:, 1:3])
    columns = torch.tensor([[0, 3], [2, 1]])
    assert torch.equal(run[At("z", 1, pos=columns)], torch.stack([whole[0, [0, 3]], whole[1, [2, 1]]]))
    swapped = run[At("pattern", (0, 1), heads=(1, 0))]
    assert torch.equal(run[At("pattern", 0, heads=0)], swapped[0][:, 1:])
    assert torch.equal(run[At("pattern", 1, heads=1, pos=2)], swapped[1][:, :1, 2:3])


def test_what_was_read_at_positions_is_found_by_any_name_of_them() -> None:
    run = interp.run(GPT2, LEFT, read=[At("z", 1, pos=slice(-2, None))])
    both = run[At("z", 1, pos=slice(-2, None))]
    assert torch.equal(run[At("z", 1, pos=-1)], both[:, 1:])
    assert torch.equal(run[At("z", 1, pos=torch.tensor([[3, 2]]))], both.flip(1))
    assert At("z", 1, pos=0) not in run  # of the first prompt it was not read


def test_the_default_stack_is_named_or_left_out() -> None:
    run = interp.run(GPT2, PROMPTS, read=[At("z", 0), At("q", 0, stack="text")])
    assert torch.equal(run[At("z", 0, stack="text")], run[At("z", 0)])
    assert torch.equal(run[At("q", 0)], run[At("q", 0, stack="text")])
    assert At("z", 0, stack="vision") not in run


@pytest.mark.parametrize("wider", [At("z"), At("z", 2), At("z", (0, 2)), At("q", 0), At("z", 0, stack="vision")])
def test_a_wider_address_is_a_key_error_that_says_what_was_read(wider: At) -> None:
    run = interp.run(GPT2, PROMPTS, read=[At("z", (0, 1))])
    assert wider not in run
    with pytest.raises(KeyError) as caught:
        run[wider]
    assert "was not read. Read: At(Site.Z, layer=(0, 1)). Add it to read=[...]." in str(caught.value)


def test_heads_and_positions_that_were_not_read_are_key_errors() -> None:
    run = interp.run(GPT2, PROMPTS, read=[At("z", 0, heads=1), At("q", 0, pos=-1), At("v", 0)])
    for wider in (
        At("z", 0),
        At("z", 0, heads=0),
        At("z", 0, heads=(0, 1)),
        At("q", 0),
        At("q", 0, pos=0),
        At("v", 0, heads=5),
    ):
        with pytest.raises(KeyError, match="was not read"):
            run[wider]


def test_reads_come_one_layer_at_a_time_and_hook_names_work_at_both_doors() -> None:
    run = interp.run(GPT2, PROMPTS, read=["blocks.1.attn.hook_z", Site.Q])
    assert [at for at, _ in run.reads()] == [At("z", 1), At("q", 0), At("q", 1), At("q", 2)]
    assert torch.equal(run["blocks.1.attn.hook_z"], run[At("z", 1)])
    single = interp.run(GPT2, PROMPTS, read=At("z", 1))  # type: ignore[arg-type]
    assert torch.equal(single[At("z", 1)], run[At("z", 1)])


def test_unequal_widths_are_refused_before_the_run() -> None:
    model = interp.load(TINY["bart"]().hf, check=False)
    assert model.stack("encoder").n_heads(0) == 4 and model.stack("decoder").n_heads(0) == 2
    mixed = interp.load(TINY["qwen3_moe"]().hf, check=False)
    layers = list(mixed.stack().layers)
    assert layers[1] is not None
    narrow = type(layers[1])(**{**vars(layers[1]), "n_heads": 2, "d_head": 2 * layers[1].d_head})
    stack = type(mixed.stack())(**{**vars(mixed.stack()), "layers": (layers[0], narrow)})
    other = type(mixed)(**{**vars(mixed), "stacks": {"text": stack}})
    batch = interp.encode(mixed, [[5, 6, 7]])
    with pytest.raises(BadInput, match=r"the layers have \[2, 4\] heads; read them one layer at a time"):
        interp.run(other, batch, read=[At("z")])
    run = interp.run(other, batch, read=[At("z", 0), At("z", 1)])
    assert (run[At("z", 0)].shape[2], run[At("z", 1)].shape[2]) == (4, 2)


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        (At("z", 3), BadAddress, r"Layer 3 is not there: stack 'text' has 3 layers \(0 to 2\)"),
        (At("z", -1), BadAddress, "Layer -1 is not there"),
        (At("resid_pre", 3), BadAddress, "Layer 3 is not there"),
        (At("z", 0, heads=2), BadAddress, r"Head 2 is not there: layer 0 of stack 'text' has 2 query heads \(0 to 1\)"),
        (At("k", 0, heads=5), BadAddress, "KV head 5 is not there"),
        (At("z", 0, pos=9), BadAddress, "Position 9 is outside the shortest prompt"),
        (At("z", 0, pos="subject"), BadAddress, "Unknown span 'subject'"),
        (At("z", 0, stack="vision"), BadAddress, "Unknown stack 'vision'. Known: text"),
        (At("resid_cross", 0), Unsupported, "its blocks have no cross-attention"),
        ("blocks.9.attn.hook_z", BadAddress, "Layer 9 is not there"),
        ("z", BadAddress, "'z' is not an address"),
    ],
)
def test_addresses_that_are_not_there_are_refused_before_any_forward(
    at: Any, error: type[Exception], message: str
) -> None:
    with counted() as calls, pytest.raises(error, match=message):
        interp.run(GPT2, PROMPTS, read=[at])
    assert not calls


class counted:
    """Inside, forwards of a model are counted."""

    def __init__(self, model: interp.Model = GPT2) -> None:
        self.model, self.calls = model, []

    def __enter__(self) -> list[int]:
        self.handle = self.model.hf.register_forward_pre_hook(lambda *_: self.calls.append(1))
        return self.calls

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_a_stack_that_took_no_part_is_named() -> None:
    model = interp.load(TINY["llava"]().hf, check=False)
    batch = interp.encode(model, [[5, 6, 7]])
    with pytest.raises(
        RunFailed, match=r"was never reached at layers \[0, 1, 2\] of stack 'vision' .* Were the stack's inputs given"
    ):
        interp.run(model, batch, read=[At("z", stack="vision")])
    with pytest.raises(EditDidNotFire, match=r"zero.* did not fire at layers \[0\] of stack 'vision'"):
        interp.run(model, batch, edits=[interp.zero(At("z", 0, stack="vision"))])
    with torch.no_grad():
        assert torch.equal(logits_of(interp.run(model, batch)), model.hf(**batch.inputs).logits)


def test_what_was_read_is_not_reached_by_later_changes() -> None:
    run = interp.run(
        GPT2, PROMPTS, read=[At("resid_pre", 0), At("resid_mid", 0)], edits=[interp.zero(At("resid_mid", 0))]
    )
    torch.testing.assert_close(run[At("resid_mid", 0)], torch.zeros(2, 4, 8))
    plain = interp.run(GPT2, PROMPTS, read=[At("resid_pre", 0)])
    assert torch.equal(run[At("resid_pre", 0)], plain[At("resid_pre", 0)])
    assert not run[At("resid_pre", 0)].requires_grad


# ---- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [ANSWERED, LEFT], ids=["equal", "left"])
def test_chosen_positions_equal_slices_of_all(batch: Batch) -> None:
    everything = logits_of(interp.run(GPT2, batch))
    with torch.no_grad():
        assert torch.equal(everything, GPT2.hf(**batch.inputs).logits)
    rows = torch.arange(2)[:, None]
    columns = torch.tensor([[3, 2, 3], [2, 3, 2]])
    for option, wanted in (("last", torch.tensor([[3], [3]])), ("answers", batch.read_at[:, None]), (columns, columns)):
        run = interp.run(GPT2, batch, logits=option)  # type: ignore[arg-type]
        torch.testing.assert_close(run.logits, everything[rows, wanted])
        assert run.positions is not None and torch.equal(run.positions, wanted)
    assert interp.run(GPT2, batch).positions is None


def test_positions_that_are_not_chosen_are_never_unembedded() -> None:
    widths: list[tuple[int, ...]] = []
    handle = GPT2.hf.lm_head.register_forward_hook(lambda module, args, output: widths.append(tuple(output.shape)))  # type: ignore[union-attr]
    try:
        interp.run(GPT2, PROMPTS, logits="last")
        interp.run(GPT2, PROMPTS, logits=torch.tensor([[0, 1]]))
    finally:
        handle.remove()
    assert widths == [(2, 1, 13), (2, 2, 13)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("first", "logits='first': expected 'all', 'last', 'answers' or columns"),
        (None, "logits=None: expected"),
        (torch.tensor([[4]]), "Columns from 4 to 4"),
        (torch.tensor([0, 1]), r"Columns of shape \[2\]"),
        (torch.tensor([[0], [1], [2]]), r"Columns of shape \[3, 1\]"),
    ],
)
def test_other_positions_are_refused(option: Any, message: str) -> None:
    with counted() as calls, pytest.raises(BadInput, match=message):
        interp.run(GPT2, PROMPTS, logits=option)
    assert not calls


def test_a_classifier_has_no_positions_to_choose() -> None:
    model = interp.load(TINY["vit"]().hf, check=False)
    batch = interp.encode(model, inputs={"pixel_values": torch.randn(2, 3, 8, 8)})
    assert logits_of(interp.run(model, batch)).shape == (2, 7)
    with pytest.raises(BadInput, match="has no unembedding per position; use logits='all'"):
        interp.run(model, batch, logits="last")


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(BadInput, match=r"the batch is a Tensor; expected what interp\.encode"):
        interp.run(GPT2, torch.ones(1, 2, dtype=torch.long))  # type: ignore[arg-type]


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_gradients_agree_with_finite_differences_at_every_site() -> None:
    model = tiny_gpt2(dtype=torch.float64)
    batch = interp.encode(model, [[1, 2, 3, 4], [5, 6, 7]], answers=[(9, 10), (11, 12)])
    sites = [site for site in Site if site not in (Site.RESID_CROSS, Site.SCORES, Site.RESULT)]
    run = interp.run(model, batch, read=[At(site, 1) for site in sites], grad=interp.logit_difference)
    assert run.grad is not None and run.metric is not None
    draw = torch.Generator().manual_seed(1)
    for site in sites:
        at = At(site, 1)
        direction = torch.randn(run[at].shape, generator=draw, dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            nudge = interp.custom(at, lambda x, ctx, step=step, way=direction: x + step * way)
            moved = interp.run(model, batch, edits=[nudge], kernels=run.kernels)
            sides.append(float(interp.logit_difference(logits_of(moved), batch).sum()))
        measured = (sides[0] - sides[1]) / 2e-5
        assert float((run.grad[at] * direction).sum()) == pytest.approx(measured, rel=1e-5, abs=1e-7), site


def test_the_gradient_of_the_last_residual_by_hand() -> None:
    run = interp.run(GPT2, ANSWERED, read=[At("resid_post", 2)], grad=interp.logit_difference, logits="answers")
    hidden = run[At("resid_post", 2)].clone().requires_grad_()
    transformer: Any = GPT2.hf.transformer
    logits = GPT2.hf.lm_head(transformer.ln_f(hidden))  # type: ignore[operator]
    values = logits[0, 3, 9] - (logits[0, 3, 10] + logits[0, 3, 3]) / 2 + logits[1, 3, 11] - logits[1, 3, 12]
    values.backward()
    assert run.grad is not None and hidden.grad is not None and run.metric is not None
    torch.testing.assert_close(run.grad[At("resid_post", 2)], hidden.grad)
    torch.testing.assert_close(run.metric.sum(), values.detach())
    assert run.grad[At("resid_post", 2, pos=-1)].shape == (2, 1, 8)
    GPT2.hf.zero_grad(set_to_none=True)


def test_gradients_leave_nothing_on_the_model() -> None:
    model = tiny_gpt2()
    model.hf.train()
    assert model.hf.transformer is not None
    model.hf.lm_head.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: parameter.requires_grad for name, parameter in model.hf.named_parameters()}
    state = torch.get_rng_state()
    interp.run(model, ANSWERED, read=[At("z")], grad=interp.logit_difference)
    assert {name: parameter.requires_grad for name, parameter in model.hf.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    assert all(module.training for module in model.hf.modules())
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_a_graph_reaches_the_values_of_edits() -> None:
    gate = torch.ones(3, 2, requires_grad=True)
    run = interp.run(GPT2, ANSWERED, edits=[interp.gate(At("z"), gate)], graph=True)
    interp.logit_difference(logits_of(run), ANSWERED).sum().backward()
    grad = gate.grad
    assert grad is not None
    for layer in range(3):
        for head in range(2):
            effects = []
            for value in (1.0, 0.999):
                edited = interp.run(GPT2, ANSWERED, edits=[interp.scale(At("z", layer, heads=head), by=value)])
                effects.append(float(interp.logit_difference(logits_of(edited).double(), ANSWERED).sum()))
            assert float(grad[layer, head]) == pytest.approx((effects[0] - effects[1]) / 0.001, abs=0.02)
    GPT2.hf.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("metric", "more", "message"),
    [
        (5, {}, r"grad=5: expected a metric"),
        (interp.logit_difference, {"logits": torch.tensor([[0]])}, "reads the answer's position, which is not the one"),
    ],
)
def test_metrics_that_cannot_be_are_refused_before_the_run(metric: Any, more: dict[str, Any], message: str) -> None:
    with counted() as calls, pytest.raises(BadInput, match=message):
        interp.run(GPT2, ANSWERED, read=[At("z")], grad=metric, **more)
    assert not calls


@pytest.mark.parametrize("metric", [lambda logits, batch: logits.sum(), lambda logits, batch: logits[:, -1]])
def test_a_metric_of_another_shape_is_refused(metric: Any) -> None:
    with pytest.raises(BadInput, match=r"the metric gave shape .*, expected one number per prompt \[2\]"):
        interp.run(GPT2, ANSWERED, read=[At("z")], grad=metric)


# ---- kernels --------------------------------------------------------------------------------------------------------


def test_kernels_say_what_ran_and_can_be_asked_for() -> None:
    plain = interp.run(GPT2, PROMPTS)
    assert plain.kernels == {("text", layer): "sdpa" for layer in range(3)}
    edited = interp.run(GPT2, PROMPTS, edits=[interp.scale(At("pattern", 1), by=1.0)])
    assert edited.kernels == {("text", 0): "sdpa", ("text", 1): "eager", ("text", 2): "sdpa"}
    same = interp.run(GPT2, PROMPTS, kernels=edited.kernels)
    assert same.kernels == edited.kernels and torch.equal(logits_of(same), logits_of(edited))
    eager = copy.deepcopy(GPT2.hf)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.equal(logits_of(interp.run(GPT2, PROMPTS, kernels="eager")), eager(**PROMPTS.inputs).logits)
    with pytest.raises(BadInput, match=r"kernels='fast': expected 'eager' or another run's .kernels"):
        interp.run(GPT2, PROMPTS, kernels="fast")  # type: ignore[arg-type]


# ---- NaN and infinity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("transformer.h.1.mlp.c_fc.weight", "layer 1, Site.MLP_OUT, stack 'text'"),
        ("transformer.h.2.attn.c_attn.weight", "layer 2, Site.Z, stack 'text'"),
        ("transformer.h.0.attn.c_proj.weight", "layer 0, Site.ATTN_RAW, stack 'text'"),
        ("transformer.wpe.weight", "the embeddings"),
        ("transformer.ln_f.weight", "the unembedding"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_weight_is_traced_to_its_layer_and_site(path: str, where: str, value: float) -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        flat = model.hf.get_parameter(path).view(-1)
        flat[-1 if "c_attn" in path else 0] = value  # of the fused q, k, v projection: v (sdpa swallows a NaN in q)
    for options in ({}, {"logits": "last"}, {"read": [At("z")]}, {"read": [At("z")], "grad": interp.logit_difference}):
        with pytest.raises(NotFinite) as caught:
            interp.run(model, ANSWERED, **options)  # type: ignore[arg-type]
        assert f"NaN or infinity appeared during the run, first at {where}" in str(caught.value)
        assert "torch.float32" in str(caught.value)
    assert not model.hf.transformer.h[0]._forward_hooks  # type: ignore[union-attr, index]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_unembedding_is_found_though_its_input_is_finite(value: float) -> None:
    model = tiny_gpt2()
    head: Any = model.hf.lm_head
    with torch.no_grad():
        head.weight = torch.nn.Parameter(head.weight.clone())
        head.weight[7, 2] = value
    for options in ({}, {"logits": "last"}, {"logits": "answers"}):
        with pytest.raises(NotFinite, match=r"first at the unembedding \(its input is finite\)"):
            interp.run(model, ANSWERED, **options)  # type: ignore[arg-type]


def test_a_model_without_a_head_is_checked_as_well() -> None:
    model = interp.load(tiny_gpt2().hf.transformer, check=False)
    batch = interp.encode(model, PROMPTS.ids)
    assert interp.run(model, batch).logits is None
    with torch.no_grad():
        model.hf.get_parameter("h.1.mlp.c_fc.weight")[0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"first at layer 1, Site.MLP_OUT"):
        interp.run(model, batch)


def test_infinity_through_an_edit_is_named_with_the_edit() -> None:
    edit = interp.custom(At("mlp_out", 1), lambda x, ctx: x / 0, name="divide")
    with pytest.raises(NotFinite, match=r"first at layer 1, Site.MLP_OUT, stack 'text'. Edits in force: \[divide\(At"):
        interp.run(GPT2, PROMPTS, edits=[edit])


def test_garbage_at_padding_is_nobodys_business() -> None:
    edit = interp.custom(At("resid_post", 2), lambda x, ctx: x.masked_fill(~LEFT.mask[:, :, None], math.nan))
    run = interp.run(GPT2, LEFT, edits=[edit])
    assert bool(logits_of(run)[LEFT.mask].isfinite().all()) and bool(logits_of(run)[~LEFT.mask].isnan().all())
    with_padding = interp.loss(logits_of(run), LEFT)
    torch.testing.assert_close(with_padding, interp.loss(logits_of(interp.run(GPT2, LEFT)), LEFT))


# ---- edits per example, nested and repeated use ----------------------------------------------------------------------


def test_a_sweep_over_heads_is_one_batch() -> None:
    heads = GPT2.heads()
    prompt = PROMPTS.select([0])
    gates = torch.ones(len(heads), 3, 2)
    for row, head in enumerate(heads):
        gates[row, head.layer, head.index] = 0
    together = logits_of(interp.run(GPT2, prompt.select([0] * len(heads)), edits=[interp.gate(At("z"), gates)]))
    for row, head in enumerate(heads):
        alone = interp.run(GPT2, prompt, edits=[interp.zero(At("z", head.layer, heads=head.index))])
        torch.testing.assert_close(together[row], logits_of(alone)[0], atol=1e-5, rtol=1e-4)


def test_edited_is_the_plain_object_nested_and_left_as_found() -> None:
    with torch.no_grad():
        plain = GPT2.hf(**PROMPTS.inputs).logits
        a, b = interp.zero(At("z", 0, heads=0)), interp.scale(At("mlp_out", 2), by=2.0)
        both = logits_of(interp.run(GPT2, PROMPTS, edits=[a, b]))
        with interp.edited(GPT2, [a]) as hf:
            assert hf is GPT2.hf
            once = hf(**PROMPTS.inputs).logits
            with interp.edited(GPT2, [b]):
                assert torch.equal(hf(**PROMPTS.inputs).logits, both)
            assert torch.equal(hf(**PROMPTS.inputs).logits, once)
        assert torch.equal(once, logits_of(interp.run(GPT2, PROMPTS, edits=[a])))
        assert torch.equal(GPT2.hf(**PROMPTS.inputs).logits, plain)


def test_patterns_edited_in_two_nested_scopes() -> None:
    a, b = interp.knockout(3, 0, layers=1), interp.to_identity(At("pattern", 1, heads=1), 0.5)
    with torch.no_grad(), interp.edited(GPT2, [a]) as hf, interp.edited(GPT2, [b]):
        nested = hf(**PROMPTS.inputs).logits
    assert torch.equal(nested, logits_of(interp.run(GPT2, PROMPTS, edits=[a, b])))
    assert GPT2.hf.config._attn_implementation == "sdpa"


def test_an_edit_that_never_fired_is_an_error_on_leaving_but_hides_no_other() -> None:
    with pytest.raises(EditDidNotFire, match=r"zero\(At\(Site.Z, layer=1\)\) did not fire at layers \[1\]"):
        with interp.edited(GPT2, [interp.zero(At("z", 1))]):
            pass
    with pytest.raises(ZeroDivisionError), interp.edited(GPT2, [interp.zero(At("z", 1))]):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (interp.zero(At("z"), phase="decode"), "say with prompt= how many columns the prompt has"),
        (interp.mean(At("z")), "is made from the prompts; give batch="),
        (interp.resample(At("z")), "give batch="),
        (interp.freeze_pattern(), "give batch="),
        (interp.zero(At("z", pos="subject")), "names a span, but there is no batch to look it up in"),
    ],
)
def test_edits_that_need_the_batch_say_so_in_foreign_code(edit: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message), interp.edited(GPT2, [edit]):
        raise AssertionError("never reached")


def test_runs_repeat_bit_for_bit() -> None:
    edits = [interp.noise(At("z", 0), std=0.5), interp.knockout(-1, 0, layers=1), interp.mean(At("z", 2))]
    first, second = (interp.run(GPT2, PROMPTS, read=[At("z")], edits=edits) for _ in range(2))
    assert torch.equal(logits_of(first), logits_of(second)) and torch.equal(first[At("z")], second[At("z")])


# ---- encoder-decoders and images -------------------------------------------------------------------------------------


def test_keys_of_cross_attention_are_the_encoders() -> None:
    model = interp.load(TINY["bart"]().hf, check=False)
    batch = interp.encode(
        model,
        [[5, 6, 7, 8, 9], [10, 11, 12]],
        spans={"late": [range(3, 5), range(1, 3)]},
        decoder=torch.tensor([[2, 7], [2, 8]]),
    )
    at = At("pattern", 0, stack="cross")
    by_index = interp.run(model, batch, read=[at], edits=[interp.knockout(None, -1, layers=0, stack="cross")])[at]
    assert by_index[0, :, :, 4].abs().max() == 0 and by_index[1, :, :, 2].abs().max() == 0
    by_span = interp.run(model, batch, read=[at], edits=[interp.knockout(-1, "late", layers=0, stack="cross")])[at]
    assert by_span[0, :, 1, 3:].abs().max() == 0 and by_span[1, :, 1, 1:].abs().max() == 0
    assert by_span[:, :, 0, 1:3].min() > 0
    with pytest.raises(BadAddress, match="Position 4 is outside the shortest prompt, which has 3 tokens"):
        interp.run(model, batch, edits=[interp.knockout(None, 4, layers=0, stack="cross")])
    with pytest.raises(BadAddress, match="Span 'late' is over the encoder's tokens"):
        interp.run(model, batch, edits=[interp.knockout("late", None, layers=0, stack="cross")])
    with pytest.raises(BadAddress, match="Span 'late' is over the encoder's tokens"):
        interp.run(model, batch, read=[At("z", 0, pos="late")])
    assert interp.run(model, batch, read=[At("z", 0, pos="late", stack="encoder")])[
        At("z", 0, pos="late", stack="encoder")
    ].shape[1] == 2  # fmt: skip


def test_positions_of_images_are_counted_over_images() -> None:
    model = interp.load(TINY["llava"]().hf, check=False)
    inputs = TINY["llava"]().inputs(batch=2, length=3)
    batch = interp.encode(model, inputs=inputs)
    at = At("z", 0, stack="vision")
    rows = interp.run(model, batch, read=[at])[at].shape[1]
    assert rows != batch.width
    made = interp.run(model, batch, read=[at], edits=[interp.zero(At("z", 0, pos=-1, stack="vision"))])[at]
    zeroed = (made.abs().sum((-1, -2)) == 0).nonzero().tolist()
    assert zeroed == [[0, rows - 1], [1, rows - 1]]
    last = torch.tensor([[rows - 1]])
    by_column = interp.run(model, batch, read=[at], edits=[interp.zero(At("z", 0, pos=last, stack="vision"))])[at]
    assert torch.equal(by_column, made)
