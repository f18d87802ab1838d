"""One tiny model per family, built from a config: seeded, float32, eval mode, no download, well under a second each.

Weights are drawn wide enough that every part of the forward matters: with the usual 0.02 a residual identity or an
ablation would hold within rounding whatever the code did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers as hf
from torch import Tensor

VOCAB = 99
IMAGE_TOKEN = 98
VIDEO_TOKEN = 97
VISION_START, VISION_END = 96, 95
FIRST_WORD, LAST_WORD = 5, 90  # ordinary tokens lie in [FIRST_WORD, LAST_WORD); below are pad, bos, eos and others

Kind = Literal["decoder", "encoder", "encoder-decoder", "vision", "vision-language"]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class TinyModel:
    """A tiny model with the inputs it takes."""

    name: str
    hf: hf.PreTrainedModel
    kind: Kind
    make: Callable[[int, int, torch.Generator], Inputs]
    stacks: tuple[str, ...]  # names of its lists of blocks, in the order of its modules

    def inputs(self, batch: int = 2, length: int = 7, seed: int = 0) -> Inputs:
        """Keywords for ``hf``: ``batch`` prompts of ``length`` tokens (image tokens come on top)."""
        return self.make(batch, length, torch.Generator().manual_seed(seed))


def words(batch: int, length: int, draw: torch.Generator) -> Tensor:
    """Random ordinary token ids, ``[batch, length]``."""
    return torch.randint(FIRST_WORD, LAST_WORD, (batch, length), generator=draw)


def pixels(*shape: int, draw: torch.Generator) -> Tensor:
    """Random pixel values of mean 0 and standard deviation 1."""
    return torch.randn(*shape, generator=draw)


def text_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """A batch of prompts without padding."""
    return {"input_ids": words(batch, length, draw), "attention_mask": torch.ones(batch, length, dtype=torch.long)}


def image_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """A batch of 8 x 8 images in three channels; ``length`` means nothing here."""
    return {"pixel_values": pixels(batch, 3, 8, 8, draw=draw)}


def pair_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Prompts for the encoder and shorter ones for the decoder."""
    return text_inputs(batch, length, draw) | {"decoder_input_ids": words(batch, max(length - 2, 1), draw)}


def speech_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Mel features of 16 frames (8 encoder positions) and prompts for the decoder."""
    return {"input_features": pixels(batch, 8, 16, draw=draw), "decoder_input_ids": words(batch, length, draw)}


def both_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Texts and as many images, for two-tower models."""
    return text_inputs(batch, length, draw) | image_inputs(batch, length, draw)


def with_image(text: Inputs, n_tokens: int) -> Inputs:
    """The prompts with ``n_tokens`` image tokens after their first token."""
    ids = text["input_ids"]
    image = torch.full((len(ids), n_tokens), IMAGE_TOKEN)
    ids = torch.cat([ids[:, :1], image, ids[:, 1:]], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llava_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Prompts with one image of four patches each."""
    return with_image(text_inputs(batch, length, draw), 4) | image_inputs(batch, length, draw)


def paligemma_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Prompts with one image of four patches each; the prefix sees itself both ways."""
    inputs = llava_inputs(batch, length, draw)
    return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


def idefics_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Prompts with one image each, whose four patches are shuffled into one token."""
    text = with_image(text_inputs(batch, length, draw), 1)
    return text | {"pixel_values": pixels(batch, 1, 3, 8, 8, draw=draw)}


def qwen_inputs(batch: int, length: int, draw: torch.Generator) -> Inputs:
    """Prompts with one image each of 4 x 4 patches, merged into four tokens; the patches of all images are packed."""
    text = text_inputs(batch, length, draw)
    ids = text["input_ids"]
    image = torch.tensor([VISION_START, *[IMAGE_TOKEN] * 4, VISION_END]).expand(batch, -1)
    ids = torch.cat([ids[:, :1], image, ids[:, 1:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
        "pixel_values": pixels(batch * 16, 3 * 2 * 2 * 2, draw=draw),
        "image_grid_thw": torch.tensor([[1, 4, 4]]).expand(batch, -1).contiguous(),
    }


def randomise(model: hf.PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew: matrices with gain about 1, gains around 1, biases around 0, in a fixed order."""
    draw = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for module in model.modules():
        one_is_added = type(module).__name__.startswith("Gemma")  # its norms multiply by 1 + weight
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done:  # tied
                continue
            done.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=draw)
            is_gain = parameter.dim() < 2 and name in ("weight", "lambda1", "logit_scale")
            if parameter.dim() > 1:
                drawn = 1.2 * noise / math.sqrt(parameter.shape[-1])
            elif is_gain:
                drawn = 0.2 * noise if one_is_added else 1 + 0.2 * noise
            else:
                drawn = 0.3 * noise
            with torch.no_grad():
                parameter.copy_(drawn)


def build(name: str, config: hf.PretrainedConfig, model_class: Any, kind: Kind, make: Any, stacks: str) -> TinyModel:
    """The tiny model of a config; token ids for padding and the like are set where the config has such attributes."""
    model = model_class(config).eval()
    randomise(model, seed=sum(map(ord, name)))
    return TinyModel(name, model, kind, make, tuple(stacks.split()))


TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
WIDE: dict[str, Any] = {"head_dim": 12}  # 4 heads x 12 = 48, not 32
MIXED: dict[str, Any] = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
IMAGES: dict[str, Any] = {"image_size": 8, "patch_size": 4}
TOWER: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 3}


def _decoder(name: str, config: str, model: str, **settings: Any) -> Callable[[], TinyModel]:
    def make() -> TinyModel:
        built = getattr(hf, config)(**TOKENS, **settings)
        return build(name, built, getattr(hf, model), "decoder", text_inputs, "text")

    return make


def _encoder(name: str, config: str, model: str, **settings: Any) -> Callable[[], TinyModel]:
    def make() -> TinyModel:
        built = getattr(hf, config)(**TOKENS, **settings)
        return build(name, built, getattr(hf, model), "encoder", text_inputs, "text")

    return make


def _vision(name: str, config: str, model: str, **settings: Any) -> Callable[[], TinyModel]:
    def make() -> TinyModel:
        built = getattr(hf, config)(**IMAGES, **settings)
        return build(name, built, getattr(hf, model), "vision", image_inputs, "vision")

    return make


def _t5() -> TinyModel:
    config = hf.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=12, d_ff=40, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return build("t5", config, hf.T5ForConditionalGeneration, "encoder-decoder", pair_inputs, "encoder decoder")


def _bart() -> TinyModel:
    config = hf.BartConfig(
        **TOKENS, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=2,
        encoder_ffn_dim=40, decoder_ffn_dim=36, max_position_embeddings=64, decoder_start_token_id=2,
    )  # fmt: skip
    return build("bart", config, hf.BartForConditionalGeneration, "encoder-decoder", pair_inputs, "encoder decoder")


def _whisper() -> TinyModel:
    config = hf.WhisperConfig(
        **TOKENS, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=2,
        encoder_ffn_dim=40, decoder_ffn_dim=36, num_mel_bins=8, max_source_positions=8, max_target_positions=64,
        decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    return build("whisper", config, hf.WhisperForConditionalGeneration, "encoder-decoder", speech_inputs,
                 "encoder decoder")  # fmt: skip


def _clip() -> TinyModel:
    config = hf.CLIPConfig(
        text_config={**TOKENS, **SIZES}, vision_config={**IMAGES, **TOWER}, projection_dim=16
    )  # fmt: skip
    return build("clip", config, hf.CLIPModel, "vision-language", both_inputs, "text vision")


def _siglip() -> TinyModel:
    config = hf.SiglipConfig(
        text_config={**TOKENS, **SIZES, "projection_size": 24}, vision_config={**IMAGES, **TOWER}
    )  # fmt: skip
    return build("siglip", config, hf.SiglipModel, "vision-language", both_inputs, "text vision")


def _llava() -> TinyModel:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**TOKENS, **SIZES, **GROUPED),
        vision_config=hf.CLIPVisionConfig(**IMAGES, **{**TOWER, "num_hidden_layers": 3}),
        # as in the published ones: the tower's last layer is computed, and nothing reads it
        image_token_id=IMAGE_TOKEN, image_seq_length=4, vision_feature_layer=-2,
    )  # fmt: skip
    return build("llava", config, hf.LlavaForConditionalGeneration, "vision-language", llava_inputs, "vision text")


def _paligemma() -> TinyModel:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**TOKENS, **SIZES, **GROUPED, **WIDE),
        vision_config=hf.SiglipVisionConfig(**IMAGES, **TOWER, vision_use_head=False),
        image_token_id=IMAGE_TOKEN, projection_dim=32,
    )  # fmt: skip
    return build("paligemma", config, hf.PaliGemmaForConditionalGeneration, "vision-language", paligemma_inputs,
                 "vision text")  # fmt: skip


def _qwen2_vl() -> TinyModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = hf.Qwen2VLConfig(
        text_config={**TOKENS, **SIZES, **GROUPED, "rope_parameters": rope},
        vision_config={
            "depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2, "hidden_size": 32, "patch_size": 2,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
        },
        image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
    )  # fmt: skip
    return build("qwen2_vl", config, hf.Qwen2VLForConditionalGeneration, "vision-language", qwen_inputs, "vision text")


def _smolvlm() -> TinyModel:
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**TOKENS, **SIZES, **GROUPED), vision_config={**IMAGES, **TOWER},
        image_token_id=IMAGE_TOKEN, pad_token_id=0, scale_factor=2,
    )  # fmt: skip
    return build("smolvlm", config, hf.SmolVLMForConditionalGeneration, "vision-language", idefics_inputs,
                 "vision text")  # fmt: skip


def _idefics3() -> TinyModel:
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**TOKENS, **SIZES, **GROUPED), vision_config={**IMAGES, **TOWER},
        image_token_id=IMAGE_TOKEN, pad_token_id=0, scale_factor=2,
    )  # fmt: skip
    return build("idefics3", config, hf.Idefics3ForConditionalGeneration, "vision-language", idefics_inputs,
                 "vision text")  # fmt: skip


EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
FALCON: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 32,
}  # fmt: skip
NEOX: dict[str, Any] = {"rotary_pct": 0.5}

# Names with a dash are variants of a family whose block is put together otherwise.
TINY: Mapping[str, Callable[[], TinyModel]] = {
    "gpt2": _decoder("gpt2", "GPT2Config", "GPT2LMHeadModel", **GPT),
    "gpt_neo": _decoder(
        "gpt_neo", "GPTNeoConfig", "GPTNeoForCausalLM", hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], window_size=3, max_position_embeddings=64,
    ),
    "gptj": _decoder("gptj", "GPTJConfig", "GPTJForCausalLM", **GPT, rotary_dim=4),
    "gpt_neox": _decoder("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", **SIZES, **NEOX),
    "gpt_neox-sequential": _decoder(
        "gpt_neox-sequential", "GPTNeoXConfig", "GPTNeoXForCausalLM", **SIZES, **NEOX, use_parallel_residual=False
    ),
    "llama": _decoder("llama", "LlamaConfig", "LlamaForCausalLM", **SIZES, **GROUPED, **WIDE),
    "mistral": _decoder("mistral", "MistralConfig", "MistralForCausalLM", **SIZES, **GROUPED, **WIDE, sliding_window=3),
    "mixtral": _decoder(
        "mixtral", "MixtralConfig", "MixtralForCausalLM", **SIZES, **GROUPED, **EXPERTS, num_local_experts=4
    ),
    "qwen2": _decoder("qwen2", "Qwen2Config", "Qwen2ForCausalLM", **SIZES, **GROUPED),
    "qwen3": _decoder("qwen3", "Qwen3Config", "Qwen3ForCausalLM", **SIZES, **GROUPED, **WIDE),
    "qwen3_moe": _decoder(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", **SIZES, **GROUPED, **WIDE, **EXPERTS,
        num_experts=4, moe_intermediate_size=20, mlp_only_layers=[0],
    ),
    "gemma": _decoder("gemma", "GemmaConfig", "GemmaForCausalLM", **SIZES, **WIDE, num_key_value_heads=1),
    "gemma2": _decoder("gemma2", "Gemma2Config", "Gemma2ForCausalLM", **SIZES, **GROUPED, **WIDE, **MIXED),
    "gemma3_text": _decoder(
        "gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", **SIZES, **GROUPED, **WIDE, **MIXED
    ),
    "phi": _decoder("phi", "PhiConfig", "PhiForCausalLM", **SIZES, **GROUPED),
    "phi3": _decoder("phi3", "Phi3Config", "Phi3ForCausalLM", **SIZES, **GROUPED),
    "olmo": _decoder("olmo", "OlmoConfig", "OlmoForCausalLM", **SIZES, **GROUPED),
    "olmo2": _decoder("olmo2", "Olmo2Config", "Olmo2ForCausalLM", **SIZES, **GROUPED),
    "opt": _decoder(
        "opt", "OPTConfig", "OPTForCausalLM", hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
    "opt-post": _decoder(
        "opt-post", "OPTConfig", "OPTForCausalLM", hidden_size=32, ffn_dim=40, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16, do_layer_norm_before=False,
    ),
    "bloom": _decoder("bloom", "BloomConfig", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4),
    "falcon": _decoder("falcon", "FalconConfig", "FalconForCausalLM", **FALCON),
    "falcon-grouped": _decoder(
        "falcon-grouped", "FalconConfig", "FalconForCausalLM", **FALCON, new_decoder_architecture=True, num_kv_heads=2
    ),
    "falcon-sequential": _decoder(
        "falcon-sequential", "FalconConfig", "FalconForCausalLM", **FALCON, parallel_attn=False, multi_query=False,
        alibi=True, bias=True,
    ),
    "stablelm": _decoder("stablelm", "StableLmConfig", "StableLmForCausalLM", **SIZES, **GROUPED),
    "stablelm-parallel": _decoder(
        "stablelm-parallel", "StableLmConfig", "StableLmForCausalLM", **SIZES, **GROUPED, use_parallel_residual=True,
        qk_layernorm=True,
    ),
    "gpt_oss": _decoder(
        "gpt_oss", "GptOssConfig", "GptOssForCausalLM", **SIZES, **GROUPED, **WIDE, **MIXED, **EXPERTS,
        num_local_experts=4, rope_parameters=YARN,
    ),
    "cohere": _decoder("cohere", "CohereConfig", "CohereForCausalLM", **SIZES, **GROUPED, use_qk_norm=True,
                       logit_scale=1.0),
    "granite": _decoder(
        "granite", "GraniteConfig", "GraniteForCausalLM", **SIZES, **GROUPED, residual_multiplier=0.7,
        embedding_multiplier=1.5, logits_scaling=2.0, attention_multiplier=0.3,
    ),
    "deepseek_v3": _decoder(
        "deepseek_v3", "DeepseekV3Config", "DeepseekV3ForCausalLM", **SIZES, **EXPERTS, num_key_value_heads=4,
        q_lora_rank=10, kv_lora_rank=14, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=12,
        n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=20, n_group=2, topk_group=1,
        first_k_dense_replace=1,
    ),
    "bert": _encoder("bert", "BertConfig", "BertForMaskedLM", **SIZES),
    "roberta": _encoder("roberta", "RobertaConfig", "RobertaForMaskedLM", **SIZES),
    "distilbert": _encoder(
        "distilbert", "DistilBertConfig", "DistilBertForMaskedLM", dim=32, hidden_dim=40, n_layers=2, n_heads=4,
        max_position_embeddings=64,
    ),
    "modernbert": _encoder(
        "modernbert", "ModernBertConfig", "ModernBertForMaskedLM", **SIZES, cls_token_id=1, sep_token_id=2,
        local_attention=4, layer_types=["full_attention", "sliding_attention"],
    ),
    "t5": _t5,
    "bart": _bart,
    "whisper": _whisper,
    "vit": _vision("vit", "ViTConfig", "ViTForImageClassification", **TOWER, num_labels=7),
    "dinov2": _vision(
        "dinov2", "Dinov2Config", "Dinov2ForImageClassification", hidden_size=24, mlp_ratio=2, num_hidden_layers=2,
        num_attention_heads=3, num_labels=7,
    ),
    "clip": _clip,
    "siglip": _siglip,
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
    "paligemma": _paligemma,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
}  # fmt: skip


def _mbart() -> TinyModel:
    config = hf.MBartConfig(
        **TOKENS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=40, decoder_ffn_dim=36, max_position_embeddings=64, decoder_start_token_id=2,
    )  # fmt: skip
    return build("mbart", config, hf.MBartForConditionalGeneration, "encoder-decoder", pair_inputs, "encoder decoder")


# Types that nobody has asked for by name; most have no row of their own and are understood by structure.
BEYOND: Mapping[str, Callable[[], TinyModel]] = {
    "olmo3": _decoder("olmo3", "Olmo3Config", "Olmo3ForCausalLM", **SIZES, **GROUPED, **MIXED),
    "glm4": _decoder("glm4", "Glm4Config", "Glm4ForCausalLM", **SIZES, **GROUPED, **WIDE),
    "apertus": _decoder(
        "apertus", "ApertusConfig", "ApertusForCausalLM", **SIZES, **GROUPED, hidden_act="silu",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "persimmon": _decoder("persimmon", "PersimmonConfig", "PersimmonForCausalLM", **SIZES),
    "vaultgemma": _decoder("vaultgemma", "VaultGemmaConfig", "VaultGemmaForCausalLM", **SIZES, **GROUPED, **MIXED),
    "afmoe": _decoder(
        "afmoe", "AfmoeConfig", "AfmoeForCausalLM", **SIZES, **GROUPED, **MIXED, **EXPERTS, num_experts=4,
        moe_intermediate_size=20, num_dense_layers=1, head_dim=8,
    ),
    "granitemoe": _decoder(
        "granitemoe", "GraniteMoeConfig", "GraniteMoeForCausalLM", **SIZES, **GROUPED, **EXPERTS, num_local_experts=4,
        residual_multiplier=0.7,
    ),
    "lfm2": _decoder(
        "lfm2", "Lfm2Config", "Lfm2ForCausalLM", **SIZES, **GROUPED, layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    ),
    "qwen3_next": _decoder(
        "qwen3_next", "Qwen3NextConfig", "Qwen3NextForCausalLM", **SIZES, **GROUPED, **EXPERTS, head_dim=12,
        layer_types=["linear_attention", "full_attention"], num_experts=4, moe_intermediate_size=20,
        shared_expert_intermediate_size=20, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "cohere2": _decoder("cohere2", "Cohere2Config", "Cohere2ForCausalLM", **SIZES, **GROUPED, **MIXED, logit_scale=1.0),
    "codegen": _decoder("codegen", "CodeGenConfig", "CodeGenForCausalLM", **GPT, n_ctx=64, rotary_dim=4),
    "mpt": _decoder("mpt", "MptConfig", "MptForCausalLM", d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "electra": _encoder("electra", "ElectraConfig", "ElectraForMaskedLM", **SIZES, embedding_size=16),
    "esm": _encoder("esm", "EsmConfig", "EsmForMaskedLM", **SIZES, position_embedding_type="rotary"),
    "gte": _encoder("gte", "GteConfig", "GteForMaskedLM", **SIZES),
    "mbart": _mbart,
    "deit": _vision("deit", "DeiTConfig", "DeiTForImageClassification", **TOWER, num_labels=7),
}  # fmt: skip


def head_outputs(output: Any) -> Tensor:
    """The logits of a model's output; for two-tower models the text-image similarities."""
    logits = getattr(output, "logits", None)
    return logits if logits is not None else output.logits_per_text
