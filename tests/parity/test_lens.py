"""transformer-lens both ways: a bridge goes in by its weights, a run comes out with the values that a bridge caches."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import TINY, VOCAB, TinyModel
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, LoadFailed
from interp.model.lens import from_bridge, hook_name, is_bridge, rotates, to_activation_cache

_LEVEL = logging.getLogger("transformers").level  # importing transformer-lens raises it for the whole process
transformer_lens = pytest.importorskip("transformer_lens", reason="transformer-lens is not installed (extra: interop)")
logging.getLogger("transformers").setLevel(_LEVEL)

DECODERS = """gpt2 gpt_neo gptj gpt_neox gpt_neox-sequential llama mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text
phi3 olmo olmo2 opt bloom falcon-sequential stablelm gpt_oss cohere granite""".split()
OTHERS = ["bert", "t5"]  # transformer-lens takes no bart of unequal depths
CACHED = ["gpt2", "llama", "gemma2", "gpt_neox"]
LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that lies in a folder: booting a bridge loads it anew by its path."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def boot(tiny: TinyModel, tokenizer: Any) -> Any:
    tiny.hf.config.architectures = [type(tiny.hf).__name__]  # as in a saved checkpoint: the adapter is chosen by it
    return transformer_lens.TransformerBridge.boot_transformers("tiny", hf_model=tiny.hf, tokenizer=tokenizer)


def plain(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


# ---- in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS + OTHERS)
def test_the_plain_model_comes_out_of_a_bridge(family: str, tokenizer: Any) -> None:
    tiny = TINY[family]()
    inputs = tiny.inputs()
    attention = tiny.hf.config._attn_implementation
    expected = plain(tiny.hf, inputs)
    parameters = dict(tiny.hf.named_parameters(remove_duplicate=False))
    bridge = boot(tiny, tokenizer)
    generator = torch.get_rng_state()

    fresh = from_bridge(bridge)

    assert type(fresh) is type(tiny.hf)
    assert fresh.config._attn_implementation == attention
    assert torch.equal(plain(fresh, inputs), expected)
    shared = dict(fresh.named_parameters(remove_duplicate=False))
    assert shared.keys() == parameters.keys()
    assert all(shared[name] is parameter for name, parameter in parameters.items())
    assert not any(tensor.is_meta for tensor in [*fresh.parameters(), *fresh.buffers()])
    held = {buffer.data_ptr() for buffer in bridge.original_model.buffers()}
    assert not any(buffer.data_ptr() in held for buffer in fresh.buffers() if buffer.numel())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not fresh.training


@pytest.mark.parametrize("family", CACHED)
def test_the_bridge_computes_the_same_and_goes_on_working(family: str, tokenizer: Any) -> None:
    tiny = TINY[family]()
    bridge = boot(tiny, tokenizer)
    ids = tiny.inputs()["input_ids"]
    with torch.no_grad():
        before, cache = bridge.run_with_cache(ids)
        fresh = from_bridge(bridge)
        logits = fresh(ids).logits
        after, cache_after = bridge.run_with_cache(ids)
    torch.testing.assert_close(logits, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(before, after)
    assert cache.keys() == cache_after.keys()
    assert bridge.original_model.config._attn_implementation == "eager"


def test_a_change_in_place_is_seen_on_both_sides(tokenizer: Any) -> None:
    tiny = TINY["gpt2"]()
    bridge = boot(tiny, tokenizer)
    fresh = from_bridge(bridge)
    ids = tiny.inputs()["input_ids"]
    before = plain(fresh, {"input_ids": ids})
    with torch.no_grad():
        bridge.blocks[0].attn.q.weight.mul_(1.5)  # a view of the fused parameter
        changed = bridge(ids)
    after = plain(fresh, {"input_ids": ids})
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, changed, atol=1e-4, rtol=1e-4)


def test_ties_are_kept(tokenizer: Any) -> None:
    fresh = from_bridge(boot(TINY["gpt2"](), tokenizer))
    assert fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight


def test_a_bridge_booted_from_a_folder(tokenizer: Any, tmp_path: Path) -> None:
    tiny = TINY["llama"]()
    inputs = tiny.inputs()
    tiny.hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bridge = transformer_lens.TransformerBridge.boot_transformers(str(tmp_path))
    assert bridge.original_model.config.output_attentions  # which only eager attention accepts
    fresh = from_bridge(bridge)
    assert (fresh.config.output_attentions, fresh.config._attn_implementation) == (False, "sdpa")
    assert torch.equal(plain(fresh, inputs), plain(tiny.hf, inputs))
    assert fresh.name_or_path == str(tmp_path)


@pytest.mark.parametrize("family", CACHED)
def test_processed_weights_are_refused(family: str, tokenizer: Any) -> None:
    bridge = boot(TINY[family](), tokenizer)
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(LoadFailed, match=r"processed weights .* folds LayerNorm and centres weights"):
        from_bridge(bridge)


@pytest.mark.parametrize("family", CACHED)
def test_compatibility_mode_without_processing_is_accepted(family: str, tokenizer: Any) -> None:
    tiny = TINY[family]()
    expected = plain(tiny.hf, tiny.inputs())
    bridge = boot(tiny, tokenizer)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert torch.equal(plain(from_bridge(bridge), tiny.inputs()), expected)


def test_a_changed_copy_of_a_fused_weight_is_refused(tokenizer: Any) -> None:
    bridge = boot(TINY["gpt_neox"](), tokenizer)
    from_bridge(bridge)
    with torch.no_grad():
        bridge.blocks[1].attn.k.weight[0, 0] += 1  # a copy here: the fused parameter does not see it
    with pytest.raises(LoadFailed, match=r"layers\.1.*q, k, v weights are no longer the parts"):
        from_bridge(bridge)


def test_a_replaced_view_of_a_fused_weight_is_refused(tokenizer: Any) -> None:
    bridge = boot(TINY["gpt2"](), tokenizer)
    query = bridge.blocks[0].attn.q.original_component
    query.weight = torch.nn.Parameter(query.weight.detach() * 2)
    with pytest.raises(LoadFailed, match=r"h\.0.*no longer the parts"):
        from_bridge(bridge)


def test_a_bridge_without_a_hugging_face_model_is_refused() -> None:
    from transformer_lens.config import TransformerBridgeConfig

    config = TransformerBridgeConfig(d_model=8, n_heads=2, n_layers=1, n_ctx=8, d_head=4, d_vocab=9, act_fn="gelu")
    bridge = transformer_lens.TransformerBridge.boot_native(config)
    assert is_bridge(bridge)
    with pytest.raises(LoadFailed, match=r"holds a transformer_lens.*NativeModel, expected a Hugging Face model"):
        from_bridge(bridge)


def test_a_rebuilt_module_is_refused(tokenizer: Any) -> None:
    bridge = boot(TINY["llama"](), tokenizer)
    projection = bridge.blocks[0].attn.o.original_component
    projection.weight = torch.nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(LoadFailed, match=r"self_attn\.o_proj\.weight: expected a tensor of shape \[32, 48\].*\[3, 5\]"):
        from_bridge(bridge)


def test_what_is_a_bridge(tokenizer: Any) -> None:
    tiny = TINY["gpt2"]()
    assert not is_bridge(tiny.hf)
    assert not is_bridge(None)
    assert not is_bridge(type("BridgeCore", (), {})())  # the name alone does not make one
    assert is_bridge(boot(tiny, tokenizer))


def test_transformer_lens_is_not_imported_to_tell() -> None:
    code = (
        "import sys, interp, interp.model.lens as lens; assert not lens.is_bridge(object());"
        "assert 'transformer_lens' not in sys.modules and 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- out ------------------------------------------------------------------------------------------------------------


class Reading:
    """As much of a run as a cache is made from."""

    def __init__(self, *reads: tuple[At, Tensor]) -> None:
        self.held = reads

    def reads(self) -> Iterator[tuple[At, Tensor]]:
        return iter(self.held)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first ``cos.shape[-1]`` numbers of each head turned, one half against the other; the rest as it is."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat([-second, first], dim=-1)
    return torch.cat([turned * cos[:, :, None] + swapped * sin[:, :, None], rest], dim=-1)


@pytest.mark.parametrize("mask", [torch.ones(2, 7, dtype=torch.long), LEFT_PADDED], ids=["even", "left-padded"])
@pytest.mark.parametrize("family", CACHED)
def test_values_are_those_that_the_bridge_caches(family: str, mask: Tensor, tokenizer: Any) -> None:
    tiny = TINY[family]()
    bridge = boot(tiny, tokenizer)
    ids = tiny.inputs()["input_ids"] * mask
    theirs: dict[str, Tensor] = {}
    for each_head in (True, False):  # with hook_result a bridge has no o.hook_out
        bridge.set_use_attn_result(each_head)
        with torch.no_grad():
            theirs |= bridge.run_with_cache(ids, attention_mask=mask)[1].cache_dict
    model = interp.load(bridge)
    batch = interp.encode(model, ids, mask=mask)
    sites = [site for site in Site if site is not Site.RESID_CROSS]
    if family == "gpt_neox":
        sites.remove(Site.RESID_MID)  # attention and MLP in parallel

    ours = to_activation_cache(interp.run(model, batch, read=[At(site) for site in sites]), bridge)

    assert len(ours) == 2 * len(sites)
    real = mask.bool()
    for name, value in ours.items():
        if name not in theirs:  # this bridge's rotation fires no hook: rotate what came before it
            assert family == "gpt_neox" and "hook_rot_" in name, name
            block = name.rpartition(".")[0]
            before = theirs[name.replace("hook_rot_", "hook_")]
            expected = rotated(before, theirs[f"{block}.hook_cos"], theirs[f"{block}.hook_sin"])
        else:
            expected = theirs[name]
        assert value.shape == expected.shape, name
        if name.endswith(("scores", "pattern")):
            value, expected = value.transpose(1, 2), expected.transpose(1, 2)  # noqa: PLW2901 - [batch, query, head, key]
        torch.testing.assert_close(value[real], expected[real], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(ours["z", -1], ours["blocks.1.attn.hook_z"])
    blocked = ours["blocks.0.attn.hook_attn_scores"][1, :, 0, 1:]
    assert (blocked == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "bert", "t5"])
def test_every_name_is_a_hook_of_the_bridge(family: str, tokenizer: Any) -> None:
    tiny = TINY[family]()
    bridge = boot(tiny, tokenizer)
    config = bridge.original_model.config
    assert rotates(config) == (bridge.cfg.positional_embedding_type == "rotary")
    sites = set(Site) - ({Site.RESID_MID, Site.RESID_CROSS} if family == "gpt_neox" else {Site.RESID_CROSS})
    stacks = ["encoder", "decoder", "cross"] if family == "t5" else [None, "text"]
    for stack in stacks:
        extra = {Site.RESID_CROSS} if stack == "decoder" else set()
        for site in sites | extra:
            assert hook_name(At(site, layer=1, stack=stack), config) in bridge.hook_dict


@pytest.mark.parametrize(
    ("at", "config", "name"),
    [
        (At(Site.Z, 5), {}, "blocks.5.attn.hook_z"),
        (At(Site.Q, 0), {"rotary_dim": 4}, "blocks.0.attn.hook_rot_q"),
        (At(Site.K, 0), {"rope_parameters": {"rope_theta": 1e4}, "rotary": False}, "blocks.0.attn.hook_k"),
        (
            At(Site.K, 1, stack="cross"),
            {"is_encoder_decoder": True, "rotary_dim": 4},
            "decoder_blocks.1.cross_attn.hook_k",
        ),
        (At(Site.PATTERN, 2, stack="encoder"), {"is_encoder_decoder": True}, "encoder_blocks.2.attn.hook_pattern"),
        (At(Site.ATTN_OUT, 2, stack="cross"), {"is_encoder_decoder": True}, "decoder_blocks.2.hook_cross_attn_out"),
        (At(Site.V, 3, stack="vision"), {"vision_config": 1}, "vision_encoder.encoder_layers.3.attn.hook_v"),
        (At(Site.RESID_PRE, 3, stack="vision"), {}, "blocks.3.hook_resid_pre"),
    ],
)
def test_names(at: At, config: dict[str, Any], name: str) -> None:
    assert hook_name(at, SimpleNamespace(**config)) == name


@pytest.mark.parametrize("site", [Site.Z, Site.PATTERN, Site.RESID_MID, Site.RESULT, Site.ATTN_OUT])
def test_names_are_read_back_as_the_same_address(site: Site) -> None:
    name = hook_name(At(site, layer=4), SimpleNamespace())
    assert At.parse(name) == At(site, layer=4)


def test_a_handle_will_do_for_a_cache() -> None:
    model = interp.load(TINY["llama"]().hf, check=False)
    batch = interp.encode(model, torch.tensor([[5, 6, 7, 8]]))
    run = interp.run(model, batch, read=[At(Site.Z), At(Site.SCORES, layer=1)])
    cache = to_activation_cache(run, model)
    assert list(cache) == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "blocks.1.attn.hook_attn_scores"]
    assert torch.equal(cache["z", 1], run[At(Site.Z, layer=1)])
    assert cache["z", -1] is cache["z", 1]
    scores = run[At(Site.SCORES, layer=1)]
    visible = scores > -torch.inf
    assert torch.equal(cache["attn_scores", 1][visible], scores[visible])
    assert (cache["attn_scores", 1][~visible] == torch.finfo(scores.dtype).min).all()


@pytest.mark.parametrize("at", [At(Site.Z, 0, heads=1), At(Site.PATTERN, 0, pos=-1)])
def test_part_of_a_tensor_has_no_hook_name(at: At) -> None:
    model = SimpleNamespace(hf=SimpleNamespace(config=SimpleNamespace()))
    with pytest.raises(BadInput, match="only some heads or positions"):
        to_activation_cache(Reading((at, torch.zeros(1))), model)


def test_nothing_read() -> None:
    with pytest.raises(BadInput, match="read nothing"):
        to_activation_cache(Reading(), SimpleNamespace(hf=SimpleNamespace(config=SimpleNamespace())))


def test_a_name_belongs_to_one_layer() -> None:
    with pytest.raises(BadInput, match="one layer"):
        hook_name(At(Site.Z), SimpleNamespace())
