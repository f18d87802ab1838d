"""Loading: names, folders, live models and wrappers; damaged files; what the card says; that nothing is copied."""

from __future__ import annotations

import json
import time
import tracemalloc
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import small_tokenizers
import torch
from by_hand import tiny_gpt2
from tiny_models import TINY
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import interp
from interp import At, BadInput, Head, LoadFailed, Site, UnknownName, Unsupported
from interp.zoo import ZOO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 as save_pretrained writes it, without a tokenizer."""
    tiny_gpt2().hf.save_pretrained(tmp_path)
    return tmp_path


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_model_that_was_saved(folder: Path) -> None:
    source = tiny_gpt2()
    for name in (folder, str(folder)):
        model = interp.load(name)
        assert isinstance(model.hf, GPT2LMHeadModel) and not model.hf.training
        assert model.name == str(folder) and model.default_stack == "text"
        for (key, ours), theirs in zip(model.hf.state_dict().items(), source.hf.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), key
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(interp.run(model, interp.encode(model, ids)).logits, source.hf(ids).logits)


def test_a_tokenizer_is_found_beside_the_weights_and_none_is_made_up(folder: Path) -> None:
    assert interp.load(folder, check=False).tokenizer is None
    small_tokenizers.words().save_pretrained(folder)
    found = interp.load(folder, check=False).tokenizer
    assert found("Mary had")["input_ids"] == small_tokenizers.words()("Mary had")["input_ids"]
    TINY["t5"]().hf.save_pretrained(folder / "t5")
    assert interp.load(folder / "t5", check=False).tokenizer is None
    mine = small_tokenizers.pieces()
    assert interp.load(folder, tokenizer=mine, check=False).tokenizer is mine


def test_keywords_reach_from_pretrained(folder: Path) -> None:
    model = interp.load(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.hf.config._attn_implementation == "eager"
    assert model.card.attention == {"text": "eager"}


def test_stacks_and_heads(folder: Path) -> None:
    model = interp.load(folder, check=False)
    assert list(model.stacks) == ["text"]
    stack = model.stack()
    assert (stack.n_layers, stack.n_heads(0), stack.n_kv_heads(0), stack.d_head(0)) == (3, 2, 2, 4)
    assert model.heads() == [Head(layer, head) for layer in range(3) for head in range(2)]
    assert "text: 3 layers x 2 heads" in repr(model)


def test_heads_off_the_default_stack_name_it() -> None:
    model = interp.load(TINY["bart"]().hf, check=False)
    assert model.default_stack == "decoder"
    assert model.heads("decoder")[0] == model.heads()[0] == Head(0, 0)
    assert model.heads("encoder")[-1] == Head(1, 3, "encoder")
    with pytest.raises(BadInput, match=r"Unknown stack 'vision'. Known: cross, decoder, encoder"):
        model.heads("vision")


# ---- damaged and strange files -------------------------------------------------------------------------------------


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "truncated header":
        weights.write_bytes(weights.read_bytes()[:20])
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 4096)
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "broken config":
        config.write_text("{")
    elif how == "unknown type":
        config.write_text(json.dumps({"model_type": "nobody"}))
    elif how == "other shapes":
        config.write_text(json.dumps({**json.loads(config.read_text()), "n_embd": 16}))
    elif how == "other names":
        config.write_text(json.dumps({**json.loads(config.read_text()), "n_layer": 4}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "could not be read: SafetensorError"),
        ("truncated header", "could not be read: SafetensorError"),
        ("garbage", "could not be read: SafetensorError"),
        ("empty", "could not be read: SafetensorError"),
        ("no weights", "could not be read: OSError"),
        ("no config", "could not be read: .*config.json"),
        ("broken config", "could not be read: "),
        ("unknown type", "could not be read: ValueError: .*nobody"),
        ("other shapes", "(could not be read: RuntimeError|lack .* of the weights)"),
        (
            "other names",
            r"lack 12 of the weights that GPT2LMHeadModel has, which would be random numbers: transformer\.h\.3",
        ),
    ],
)
def test_damaged_folders_are_refused_by_name(folder: Path, how: str, message: str) -> None:
    damage(folder, how)
    with pytest.raises(LoadFailed, match=message) as caught:
        interp.load(folder)
    assert repr(str(folder)) in str(caught.value)


def test_pickled_weights_are_read_only_when_asked(folder: Path) -> None:
    model = tiny_gpt2()
    (folder / "model.safetensors").unlink()
    torch.save(model.hf.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(LoadFailed, match="pass use_safetensors=False if you trust them"):
        interp.load(folder)
    asked = interp.load(folder, use_safetensors=False)
    assert torch.equal(
        asked.hf.get_parameter("transformer.wte.weight"), model.hf.get_parameter("transformer.wte.weight")
    )


def test_remote_code_stays_off(folder: Path) -> None:
    marker = folder / "ran"
    (folder / "modeling_own.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class Own(GPT2LMHeadModel): pass\nclass OwnConfig(GPT2Config):\n    model_type = 'own'\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    config |= {"model_type": "own", "auto_map": names, "architectures": ["Own"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadFailed, match="trust_remote_code"):
        interp.load(folder)
    assert not marker.exists()


# ---- names ---------------------------------------------------------------------------------------------------------


def test_a_misspelt_zoo_name_gets_its_neighbours_without_asking_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name, near in (
        ("inducton", "'induction'"),
        ("handmaid", "'handmade'"),
        ("induction_planted", "'induction-planted'"),
    ):
        with pytest.raises(UnknownName, match=f"Unknown model '{name}'. Did you mean .*{near}") as caught:
            interp.load(name)
        assert f"Known: {', '.join(sorted(ZOO))}" in str(caught.value)
        assert "'owner/name'" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "weights.safetensors"])
def test_a_path_that_is_no_folder_is_called_one(name: str) -> None:
    with pytest.raises(UnknownName, match=r"No folder .*Expected a folder written by save_pretrained"):
        interp.load(name)


def test_a_hub_id_without_a_hub_says_so() -> None:
    with pytest.raises(
        UnknownName, match=r"No model 'nobody/nothing': not in the zoo \(.*\), not a folder, and the hub gave"
    ):
        interp.load("nobody/nothing")


# ---- live models and wrappers --------------------------------------------------------------------------------------


def test_a_live_model_is_wrapped_in_place() -> None:
    hf = tiny_gpt2().hf
    pointers = {name: parameter.data_ptr() for name, parameter in hf.named_parameters()}
    modules = [(name, id(module), dict(module.__dict__)) for name, module in hf.named_modules()]
    hf.train()
    model = interp.load(hf)
    assert model.hf is hf and all(module.training for module in hf.modules())
    hf.eval()
    assert {name: parameter.data_ptr() for name, parameter in model.hf.named_parameters()} == pointers
    for name, module in hf.named_modules():
        found = next(before for other, _, before in modules if other == name)
        assert id(module) == next(number for other, number, _ in modules if other == name)
        assert module.__dict__.keys() == found.keys(), name
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("more", [{"device": "cpu"}, {"dtype": torch.float16}])
def test_keywords_for_a_live_model_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=rf"load: \['{next(iter(more))}'\] mean something only for a name or folder"):
        interp.load(tiny_gpt2().hf, **more)


@pytest.mark.parametrize("what", [nn.Linear(2, 2), 5, None, {"model": 1}])
def test_what_is_no_model_is_refused(what: Any) -> None:
    with pytest.raises(BadInput, match=f"{type(what).__name__} is not a model; expected a zoo name"):
        interp.load(what)


class PeftModel(nn.Module):
    """As much of a peft model as tells one: the base model holds the adapters."""

    peft_config = MappingProxyType({"default": None})

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.base = base

    def get_base_model(self) -> PreTrainedModel:
        return self.base


class DistributedDataParallel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrappers_are_unwrapped() -> None:
    hf = tiny_gpt2().hf
    for wrapped in (
        PeftModel(hf),
        DistributedDataParallel(hf),
        nn.DataParallel(hf),
        DistributedDataParallel(PeftModel(hf)),
    ):
        assert interp.load(wrapped, check=False).hf is hf


def test_compiled_models_are_refused_by_name() -> None:
    hf = tiny_gpt2().hf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's compiler imports
        compiled = torch.compile(hf)
        with pytest.raises(LoadFailed, match=r"torch\.compile'd model was given.*_orig_mod"):
            interp.load(compiled)
        hf.compile()
    with pytest.raises(LoadFailed, match="was compiled in place"):
        interp.load(hf)


def test_a_model_without_blocks_is_refused_with_its_lists() -> None:
    class Empty(PreTrainedModel):
        config_class = GPT2Config
        base_model_prefix = "x"

        def __init__(self) -> None:
            super().__init__(GPT2Config())
            self.parts = nn.ModuleList([nn.Linear(2, 2)])

    with pytest.raises(
        LoadFailed, match=r"No transformer blocks were understood in Empty .*module lists are \['parts'\]"
    ):
        interp.load(Empty())


def test_wrapping_a_124m_model_copies_nothing_and_is_quick() -> None:
    with torch.device("meta"):
        hf = GPT2LMHeadModel(GPT2Config())
    assert sum(parameter.numel() for parameter in hf.parameters()) == 124_439_808
    interp.load(tiny_gpt2().hf, check=False)  # what is imported once is not the handle's
    tracemalloc.start()
    begun = time.perf_counter()
    model = interp.load(hf, check=False)
    taken = time.perf_counter() - begun
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert model.hf is hf and size < 1_000_000
    assert taken < 1.0  # 100 ms without tracemalloc; the benchmark holds it to that


# ---- the card ------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_checked(folder: Path) -> None:
    card = interp.load(folder).card
    text = str(card)
    assert text.startswith("Capability card of GPT2LMHeadModel (gpt2)\n  stack text (attention sdpa)")
    assert card.padding == "invariant" and "  padding: invariant" in text
    assert card.checks["reading changes nothing"] == "bit-identical"
    assert card.checks["an edit moves the output"] == "all 13 sites"
    for name in ("results sum to the attention output", "residual identity (pre-norm)", "pattern = softmax of scores"):
        assert card.checks[f"{name} (text)"].startswith("holds to ")
    for site in Site:
        expected = site is not Site.RESID_CROSS
        assert card.can(site, "text") is card.can(site, "text", edit=True) is expected
        assert f"    {site.name:<12}{'yes' if expected else 'no':<13}" in text
    assert {(row["stack"], row["site"]) for row in card.rows()} == {("text", site.name) for site in Site}
    html = card._repr_html_()
    assert html.count("<tr>") == len(Site) + 1


def test_an_unchecked_card_never_says_yes(folder: Path) -> None:
    for card in (interp.load(folder, check=False).card, interp.load(TINY["llava"]().hf, check=False).card):
        assert card.padding == "not checked"
        assert "yes" not in {word for row in card.rows() for word in (row["read"], row["edit"])}
        assert not any(card.can(site, stack) for stack, site in card.abilities)
    run = interp.run(
        interp.load(folder, check=False), interp.encode(interp.load(folder, check=False), [[1, 2]]), read=[At("z")]
    )
    assert run[At("z")].shape == (3, 1, 2, 2, 4)


def test_text_on_the_card_is_escaped() -> None:
    from interp.model.card import Ability, Card

    card = Card("<b>m</b>", {("text", Site.Z): Ability("no", "no", "<script>")}, {"<i>": "&"})
    html = card._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "&lt;b&gt;m" in html and "&lt;i&gt;: &amp;" in html


def test_a_family_that_bypasses_the_interface_refuses_what_would_not_take_effect() -> None:
    model = interp.load(TINY["gptj"]().hf)
    assert not model.card.can(Site.PATTERN, "text", edit=True) and model.card.can(Site.Z, "text", edit=True)
    batch = interp.encode(model, [[5, 6, 7]])
    for edit in (interp.knockout(2, 0), interp.uniform(), interp.zero(At("q")), interp.freeze_pattern()):
        with pytest.raises(
            Unsupported, match=r"cannot be edited on stack 'text' .gptj.: its attention does not go through"
        ):
            interp.run(model, batch, edits=[edit])


def test_the_check_takes_at_most_four_forwards_of_a_few_tokens() -> None:
    for hf in (tiny_gpt2().hf, TINY["llava"]().hf, TINY["t5"]().hf):
        widths: list[int] = []

        def note(module: nn.Module, args: Any, kwargs: Any, widths: list[int] = widths) -> None:
            widths.append(max((value.shape[1] for name, value in kwargs.items() if name.endswith("ids")), default=0))

        handle = hf.register_forward_pre_hook(note, with_kwargs=True)
        interp.load(hf)
        handle.remove()
        assert len(widths) <= 4 and max(widths) <= 12


def test_a_model_whose_output_depends_on_chance_is_refused() -> None:
    model = tiny_gpt2().hf
    model.transformer.h[1].mlp.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))  # type: ignore[union-attr, index]
    with pytest.raises(LoadFailed, match=r"Reading disturbs GPT2LMHeadModel: .* Is the model stochastic, or compiled"):
        interp.load(model)


def test_a_base_model_has_stacks_and_no_logits(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    model = interp.load(tmp_path)
    assert isinstance(model.hf, BertModel)
    run = interp.run(model, interp.encode(model, [[5, 6]]), read=[At("z")])
    assert run.logits is None and run.output.last_hidden_state.shape == (1, 2, 8)
    assert isinstance(AutoModel.from_pretrained(tmp_path), BertModel)
