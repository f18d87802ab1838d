"""The suite and the checks at load can fail: situations broken on purpose, each of which must be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import TINY
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import interp
from interp import At, EditDidNotFire, LoadFailed, Site, Unsupported
from interp.model import attention as taps
from interp.model.families import FAMILIES
from interp.model.layer_tap import LayerTap
from interp.model.reading import Reading
from interp.model.session import Session

from . import test_edits, test_padding, test_reading
from .support import (
    Case,
    close,
    double_batch,
    double_case,
    everything,
    fingerprint,
    load_case,
    neutral_settings,
    output,
    plain,
)
from .test_generation import sweep
from .test_gradients import InDouble, wrong_slopes
from .test_reading import broken_identities


def with_rows(monkeypatch: pytest.MonkeyPatch, model_type: str, **changes: Any) -> None:
    """The family rows of a type, made wrong."""
    monkeypatch.setitem(FAMILIES, model_type, tuple(replace(row, **changes) for row in FAMILIES[model_type]))  # type: ignore[arg-type]


# ---- the checks at load ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"attention_writer": "self_attn"}),  # what is added is the post-norm's
        ("gemma2", {"mlp_writer": "mlp"}),
        ("llama", {"attention_writer": "mlp"}),
        ("granite", {"multiplier": None}),
        ("bert", {"norm": "pre", "post_norms": None}),
        ("olmo2", {"mlp_writer": "mlp"}),
    ],
)
def test_a_wrong_writer_refuses_the_sites(monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]) -> None:
    with_rows(monkeypatch, name, **changes)
    tiny = TINY[name]()
    model = interp.load(tiny.hf)
    assert any("residual identity" in check and "FAILS" in how for check, how in model.card.checks.items())
    batch = interp.encode(model, inputs=tiny.inputs())
    for site in (Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_MID):
        assert not model.card.can(site, "text") and not model.card.can(site, "text", edit=True)
        with pytest.raises(Unsupported, match="residual identity"):
            interp.run(model, batch, [At(site)])
        with pytest.raises(Unsupported, match="residual identity"):
            interp.run(model, batch, edits=[interp.zero(At(site))])
    assert interp.run(model, batch, [At(Site.Z)]) and model.card.can(Site.Z, "text", edit=True)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "bert", "cohere"])
@pytest.mark.parametrize("module", ["q_proj", "mlp"])
def test_a_wrong_projection_fails_the_load(monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    wrong = {
        "q_proj": "attention.self.query" if name == "bert" else "self_attn.q_proj",
        "mlp": "output.dense" if name == "bert" else "mlp.down_proj",
    }[module]
    with_rows(monkeypatch, name, out=wrong)
    with pytest.raises(LoadFailed, match=wrong.replace(".", r"\.")) as caught:
        interp.load(TINY[name]().hf)
    assert "families.py" in str(caught.value) or "number of heads" in str(caught.value)


def test_an_attention_that_ignores_the_interface_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-J's row claims the interface: at load its maps are never reached; unchecked, the edit does not fire."""
    with_rows(monkeypatch, "gptj", interface=True)
    tiny = TINY["gptj"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    for site in (Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN):
        assert not model.card.can(site, "text")
        with pytest.raises(Unsupported, match="never"):
            interp.run(model, batch, edits=[interp.scale(At(site), 0.5)])
    unchecked = interp.load(tiny.hf, check=False)
    assert unchecked.card.abilities[("text", Site.PATTERN)].edit == "not checked"
    before = fingerprint(tiny.hf)
    with pytest.raises(EditDidNotFire, match="uniform"):
        interp.run(unchecked, batch, edits=[interp.uniform()])
    with pytest.raises(interp.RunFailed, match="never reached"):
        interp.run(unchecked, batch, [At(Site.PATTERN)])
    assert fingerprint(tiny.hf) == before


def test_a_module_that_discards_the_edit_is_found() -> None:
    """Attention whose output is thrown away: its edits fire, and the card does not say that they work."""
    tiny = TINY["llama"]()
    for layer in tiny.hf.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    model = interp.load(tiny.hf)
    for site in (Site.Z, Site.PATTERN, Site.V):
        ability = model.card.abilities[("text", site)]
        assert ability.edit == "not checked" and "did not move" in ability.note
    assert model.card.abilities[("text", Site.MLP_OUT)].edit == "yes"
    assert "all but" in model.card.checks["an edit moves the output"]


def test_a_model_that_reading_disturbs_is_refused() -> None:
    """A block whose output depends on how often it was called."""
    tiny = TINY["llama"]()
    calls: list[int] = []

    def drift(module: torch.nn.Module, args: Any, output: Any) -> Any:
        calls.append(1)
        return output + 1e-3 * len(calls)

    tiny.hf.model.layers[0].register_forward_hook(drift)
    with pytest.raises(LoadFailed, match="Reading disturbs"):
        interp.load(tiny.hf)


# ---- the suite ------------------------------------------------------------------------------------------------------


class Tampered:
    """Stands for a run: gives what ``get`` says."""

    def __init__(self, get: Callable[[At], Tensor]) -> None:
        self.get = get

    def __getitem__(self, at: At) -> Tensor:
        return self.get(at)


@pytest.mark.parametrize("site", [Site.PATTERN, Site.SCORES, Site.Z, Site.V, Site.RESULT, Site.ATTN_OUT, Site.MLP_OUT,
                                  Site.RESID_MID, Site.RESID_PRE, Site.RESID_POST, Site.ATTN_RAW])  # fmt: skip
def test_identities_notice_a_wrong_number(case_of: Callable[[str], Any], site: Site) -> None:
    case: Case = case_of("llama")
    run = interp.run(case.model, case.batch(), everything(case))
    stack = case.model.stack()
    assert broken_identities(case, run, stack, 0) == []

    def tampered(at: At) -> Tensor:
        value = run[at]
        if at.site is not site:
            return value
        changed = value.clone()
        changed[1, ..., 1, 0] = changed[1, ..., 1, 0] * 1.1 + (0.01 if site is not Site.PATTERN else 0.05)
        return changed

    assert broken_identities(case, Tampered(tampered), stack, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "leave", ["hook", "attribute", "mode", "implementation", "flag", "gradient", "weight", "setting"]
)
def test_fingerprints_notice_what_was_left(leave: str) -> None:
    hf = load_case("llama").hf
    before = fingerprint(hf)
    assert fingerprint(hf) == before
    module = hf.model.layers[0].self_attn
    if leave == "hook":
        module.o_proj.register_forward_pre_hook(lambda module, args: None)
    elif leave == "attribute":
        module._headscope_taps = []
    elif leave == "mode":
        module.training = True
    elif leave == "implementation":
        hf.config._attn_implementation_internal = "headscope_eager"
    elif leave == "flag":
        module.o_proj.weight.requires_grad_(False)
    elif leave == "gradient":
        module.o_proj.weight.grad = torch.zeros_like(module.o_proj.weight)
    elif leave == "weight":
        module.o_proj.weight.data = module.o_proj.weight.data.clone()
    else:
        hf.config.use_cache = not hf.config.use_cache
    assert fingerprint(hf) != before


def test_a_lost_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without a registered mask function makes the model bidirectional; reading and causality both notice."""
    fresh = load_case("llama")
    monkeypatch.setitem(AttentionInterface._global_mapping, "headscope_maskless", taps.eager_attention)
    monkeypatch.setitem(taps.BASES, "eager", "headscope_maskless")
    monkeypatch.setitem(taps.BASES, "sdpa", "headscope_maskless")
    assert ALL_ATTENTION_FUNCTIONS["headscope_maskless"] is taps.eager_attention
    with pytest.raises(AssertionError):
        test_padding.test_causality(lambda name: fresh, "llama")
    with pytest.raises(AssertionError):
        test_reading.test_nothing_moves(lambda name: fresh, "llama", "eager")


def test_wrong_positions_in_the_cache_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys counted from the cache's first entry instead of the text's: wrong as soon as a window slides."""
    fresh = load_case("gemma3_text")
    sweep(fresh)
    monkeypatch.setattr(LayerTap, "_keys", lambda self, length, width, device: torch.arange(length, device=device))
    with pytest.raises(AssertionError, match="scores"):
        sweep(fresh)


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch, case_of: Callable[[str], Any]) -> None:
    case = double_case(case_of("gpt2"))
    with InDouble():
        assert wrong_slopes(case, double_batch(case)) == []
        right = Reading.gradient
        monkeypatch.setattr(Reading, "gradient", lambda self, layer, parts: 1.001 * right(self, layer, parts))
        assert len(wrong_slopes(case, double_batch(case))) == 13


def test_an_edit_that_is_almost_neutral_is_noticed(case_of: Callable[[str], Any]) -> None:
    case: Case = case_of("llama")
    batch = case.batch()
    for label in neutral_settings(
        At(Site.PATTERN), interp.run(case.model, batch, [At(Site.PATTERN)])[At(Site.PATTERN)]
    ):
        assert label in {
            "gate",
            "scale",
            "patch",
            "custom",
            "set_pattern",
            "freeze_pattern",
            "redistribute",
            "to_identity",
        }
    nearly = interp.scale(At(Site.Z), 1 + 1e-6)
    assert not torch.equal(output(interp.run(case.model, batch, edits=[nearly])), plain(case, batch))
    assert close(output(interp.run(case.model, batch, edits=[nearly])), plain(case, batch))


def test_an_edit_that_is_not_applied_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits that fire and change nothing: the sweep over real settings finds every one of them."""
    fresh = load_case("llama")
    monkeypatch.setattr(Session, "_chosen_rows", lambda self, *given: torch.zeros(1, 1, dtype=torch.bool))
    with pytest.raises(AssertionError, match="did not move"):
        test_edits.test_every_edit_moves_the_logits(lambda name: fresh, "llama")


def test_close_notices_shapes_blocked_scores_and_numbers() -> None:
    assert not close(torch.ones(2, 3), torch.ones(3, 2))
    assert not close(torch.tensor([-torch.inf, 0.0]), torch.tensor([0.0, 0.0]))
    assert not close(torch.tensor([1.0]), torch.tensor([1.001])) and close(torch.tensor([1.0]), torch.tensor([1.0]))
