"""Norms held at another run's scale: against formulas of this test's own, and left as they were found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn

import interp
from interp import Batch, Model, RunFailed, Unsupported
from interp.model.norms import find_norms, holding_norms, layer_scale, record_norms, rms_scale, understood

FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", "olmo", "olmo2", "cohere", "bert", "t5", "bart", "opt-post", "vit")


def tiny(name: str, batch: int = 2) -> tuple[Model, Batch]:
    """A tiny model of a family with a batch that has answers."""
    made = TINY[name]()
    answers = [(1, 2), (3, 4)] if made.kind == "vision" else [(11, 12), (13, 14)]
    model = interp.load(made.hf, check=False)
    return model, interp.encode(model, inputs=made.inputs(batch), answers=answers[:batch])


def layer_norm(x: Tensor, held: Tensor, module: Any) -> Tensor:
    """LayerNorm, by its formula."""
    return (x - x.mean(-1, keepdim=True)) / held * module.weight + module.bias


def gain(module: Any) -> Tensor:
    """The gain of an RMSNorm; Gemma stores it minus one."""
    return 1 + module.weight if "Gemma" in type(module).__name__ else module.weight


def rms_norm(x: Tensor, held: Tensor, module: Any) -> Tensor:
    """RMSNorm, by its formula."""
    return x / held * gain(module)


FORMULAS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Callable[[Tensor, Tensor, Any], Tensor]]] = {
    "gpt2": (lambda x, m: ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + m.eps).sqrt(), layer_norm),
    "llama": (lambda x, m: (x.square().mean(-1, keepdim=True) + m.variance_epsilon).sqrt(), rms_norm),
    "gemma2": (lambda x, m: (x.square().mean(-1, keepdim=True) + m.eps).sqrt(), rms_norm),
}


@pytest.mark.parametrize("family", FORMULAS)
@pytest.mark.parametrize("by", ["head", "position"])
def test_an_effect_with_norms_held_equals_a_computation_by_hand(family: str, by: str) -> None:
    model, batch = tiny(family)
    scale_of, formula = FORMULAS[family]
    norms = list(find_norms(model).values())
    scales: dict[int, Tensor] = {}

    def plain(changes: dict[int, Callable[[Tensor], Tensor]], *, hold: bool) -> Tensor:
        """The logit difference of the plain model, with z changed and the norms replaced by their formula."""
        with ExitStack() as guard, torch.no_grad():
            for module in norms:

                def norm(m: Any, args: Any, output: Tensor) -> Tensor | None:
                    if hold:
                        return formula(args[0], scales[id(m)], m)
                    scales[id(m)] = scale_of(args[0], m)
                    return None

                guard.callback(module.register_forward_hook(norm).remove)
            for index, change in changes.items():
                layer = model.stack().layer(index)

                def into(m: Any, args: Any, change: Any = change, layer: Any = layer) -> Any:
                    z = args[0].unflatten(-1, (layer.n_heads, layer.d_head)).clone()
                    return (change(z).flatten(-2), *args[1:])

                guard.callback(layer.out.register_forward_pre_hook(into).remove)
            logits = model.hf(**batch.inputs).logits
        return interp.logit_difference(logits, batch)

    base = plain({}, hold=False)
    scores = interp.attribute(model, batch, "zero", freeze="norms", by=by)
    whole = interp.attribute(model, batch, "zero", by=by)
    largest = 0.0
    for layer in range(2):
        for head in range(model.stack().n_heads(layer)):
            for column in (0, batch.width - 1) if by == "position" else (None,):

                def change(z: Tensor, head: int = head, column: int | None = column) -> Tensor:
                    z[:, slice(None) if column is None else column, head] = 0
                    return z

                expected = (plain({layer: change}, hold=True) - base).numpy()
                place = (slice(None), layer, head, *([] if column is None else [column]))
                np.testing.assert_allclose(scores.per_prompt[place], expected, atol=3e-5, rtol=3e-4)
                largest = max(largest, float(np.abs(whole.per_prompt[place] - expected).max()))
    assert largest > 1e-3  # without holding them the effects are others


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_is_linear_once_its_scale_is_held(family: str) -> None:
    model, batch = tiny(family)
    recorded = record_norms(model, batch)
    assert set(recorded.norms) == set(find_norms(model))
    draw = torch.Generator().manual_seed(0)
    for name, norm in recorded.norms.items():
        scale = recorded.scales[name][0]
        width = next((p.shape[-1] for p in norm.module.parameters()), model.stack().config.hidden_size)
        x, y = torch.randn(2, *scale.shape[:-1], width, generator=draw)
        with torch.no_grad():
            f = [norm.held(each, scale) for each in (x, y, 0.3 * x - 2 * y, torch.zeros_like(x))]
            torch.testing.assert_close(f[2] - f[3], 0.3 * (f[0] - f[3]) - 2 * (f[1] - f[3]), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(norm.held(x, norm.scale(x)), norm.module(x), atol=0, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unedited_run_is_bit_identical_and_the_model_as_found(family: str) -> None:
    model, batch = tiny(family)
    plain = interp.run(model, batch).logits
    assert plain is not None
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()]
    recorded = record_norms(model, batch)
    with holding_norms(model, recorded):
        held = interp.run(model, batch).logits
        twice = model.hf(**batch.select([0, 1, 0, 1]).inputs)
    assert held is not None and torch.equal(held, plain)
    copied = getattr(twice, "logits", None)
    torch.testing.assert_close(copied, plain.repeat(2, *[1] * (plain.ndim - 1)), atol=2e-5, rtol=2e-4)
    with pytest.raises(KeyError), holding_norms(model, recorded):
        raise KeyError("an error inside")
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()]


def test_the_final_norm_is_the_one_after_the_last_block() -> None:
    names = {family: record_norms(*tiny(family)).last for family in ("gpt2", "llama", "t5", "vit", "opt-post")}
    assert names == {
        "gpt2": ("transformer.ln_f",),
        "llama": ("model.norm",),
        "t5": ("decoder.final_layer_norm",),
        "vit": ("vit.layernorm",),
        "opt-post": (),
    }


def test_which_scale_is_found_by_behaviour() -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    layer = understood("a", nn.LayerNorm(8, eps=1e-3), x)
    rms = understood("b", nn.RMSNorm(8, eps=1e-3), x)
    assert (layer.divides_by, layer.eps, rms.divides_by, rms.eps) == (layer_scale, 1e-3, rms_scale, 1e-3)
    bare = nn.LayerNorm(8, eps=1e-6)
    hidden = nn.Module()
    hidden.forward = bare.forward  # type: ignore[method-assign]
    assert understood("c", hidden, x).eps == 1e-6  # with no attribute that says it


def test_a_norm_that_is_not_understood_is_refused_by_name() -> None:
    class TanhNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    with pytest.raises(Unsupported, match=r"'h\.0\.norm' \(TanhNorm\)"):
        understood("h.0.norm", TanhNorm(), torch.randn(2, 3, 8))
    model, batch = tiny("gpt2")
    model.hf.transformer.h[1].ln_2 = TanhNorm()  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="TanhNorm"):
        interp.attribute(model, batch, "zero", freeze="norms")


def test_blocks_without_a_norm_are_refused() -> None:
    model, batch = tiny("gpt2")
    for norm in ("ln_1", "ln_2"):
        setattr(model.hf.transformer.h[1], norm, nn.Identity())  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match=r"no norm was found in the blocks \[1\]"):
        record_norms(model, batch)


def test_other_rows_than_were_recorded_are_refused() -> None:
    model, batch = tiny("gpt2")
    recorded = record_norms(model, batch)
    with holding_norms(model, recorded), pytest.raises(RunFailed, match="whole copies"):
        interp.run(model, batch.select([0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    for family in ("gpt2", "llama"):
        made = TINY[family]()
        made.hf.to(dtype)  # type: ignore[arg-type]
        model = interp.load(made.hf, check=False)
        batch = interp.encode(model, inputs=made.inputs(), answers=[(11, 12), (13, 14)])
        scores = interp.attribute(model, batch, "patch", source=batch, freeze="norms")
        assert np.abs(scores.per_prompt).max() == 0 or (
            dtype is torch.float64 and np.abs(scores.per_prompt).max() < 1e-6
        )
        assert np.isfinite(interp.attribute(model, batch, "zero", freeze="norms").per_prompt).all()
