"""The families that are known, as rows of data.

``FAMILIES`` names the rows of the model types that are known; ``LAYOUTS`` are rows tried by structure on every other
model type. A row is a claim: whether it holds on a checkpoint is for a check by behaviour to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from interp.model.family import Cross as Cross
from interp.model.family import Family as Family
from interp.model.family import Place as Place
from interp.model.family import module_at as module_at
from interp.model.head_counts import head_counts as head_counts
from interp.model.head_counts import input_width as input_width

# ---- decoders -------------------------------------------------------------------------------------------------------

GPT2 = Family("attn", "attn.c_proj", "attn", "mlp", "mlp", mid=Place("input", "ln_2"))
GPT2_CROSS = replace(
    GPT2,
    mid=Place("input", "ln_cross_attn"),
    cross=Cross("crossattention", "crossattention.c_proj", "crossattention", Place("input", "ln_2")),
)
GPT_NEO = replace(GPT2, attention="attn.attention", out="attn.attention.out_proj", interface=False)
GPTJ = Family("attn", "attn.out_proj", "attn", "mlp", "mlp", "parallel", interface=False)
LLAMA_LIKE = Family(
    "self_attn", "self_attn.o_proj", "self_attn", "mlp", "mlp", mid=Place("input", "post_attention_layernorm")
)
PARALLEL = Family("self_attn", "self_attn.o_proj", "self_attn", "mlp", "mlp", "parallel")
PARALLEL_DENSE = replace(PARALLEL, out="self_attn.dense")
GRANITE = replace(LLAMA_LIKE, multiplier="residual_multiplier")
LATENT = replace(
    LLAMA_LIKE,
    note="Keys and values are expanded from one latent: K and V have an entry per head; Q and K are wider than Z.",
)
SANDWICH = Family(
    "self_attn",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp",
    "post_feedforward_layernorm",
    "sandwich",
    mid=Place("input", "pre_feedforward_layernorm"),
)
OLMO2 = replace(SANDWICH, norm="pre", mid=Place("input", "mlp"))
GLM4 = replace(
    SANDWICH,
    attention_writer="post_self_attn_layernorm",
    mlp_writer="post_mlp_layernorm",
    mid=Place("input", "post_attention_layernorm"),
)
AFMOE = replace(SANDWICH, mlp_writer="post_mlp_layernorm", mid=Place("input", "pre_mlp_layernorm"))
APERTUS = replace(LLAMA_LIKE, mid=Place("input", "feedforward_layernorm"))
VAULTGEMMA = replace(LLAMA_LIKE, mid=Place("input", "pre_feedforward_layernorm"))
PERSIMMON = replace(LLAMA_LIKE, out="self_attn.dense")
GRANITE_MOE = replace(GRANITE, mlp="block_sparse_moe", mlp_writer="block_sparse_moe")
LFM2 = Family(
    "self_attn", "self_attn.out_proj", "self_attn", "feed_forward", "feed_forward", mid=Place("input", "ffn_norm")
)
MPT = Family(
    "attn", "attn.out_proj", "attn", "ffn.up_proj", "ffn.down_proj", mid=Place("input", "norm_2"), interface=False
)
NEOX_PARALLEL = Family(
    "attention", "attention.dense", "attention", "mlp", "mlp", "parallel", when=(("use_parallel_residual", True),)
)
NEOX = replace(
    NEOX_PARALLEL, norm="pre", mid=Place("input", "post_attention_layernorm"), when=(("use_parallel_residual", False),)
)
STABLELM_PARALLEL = replace(PARALLEL, when=(("use_parallel_residual", True),))
STABLELM = replace(LLAMA_LIKE, when=(("use_parallel_residual", False),))
OPT = Family(
    "self_attn",
    "self_attn.out_proj",
    "self_attn",
    "fc1",
    "fc2",
    mid=Place("input", "final_layer_norm"),
    flat_mlp=True,
    when=(("do_layer_norm_before", True),),
)
OPT_POST = replace(
    OPT,
    norm="post",
    mid=Place("output", "self_attn_layer_norm"),
    post_norms=("self_attn_layer_norm", "final_layer_norm"),
    when=(("do_layer_norm_before", False),),
)
BLOOM = Family(
    "self_attention",
    "self_attention.dense",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
    mid=Place("input", "post_attention_layernorm"),
    interface=False,
    when=(("apply_residual_connection_post_layernorm", False), ("slow_but_exact", False)),
)
FALCON_PARALLEL = Family(
    "self_attention",
    "self_attention.dense",
    "self_attention",
    "mlp",
    "mlp",
    "parallel",
    interface=False,
    mlp_overwritten=True,
    when=(("parallel_attn", True),),
)
FALCON = replace(
    FALCON_PARALLEL,
    norm="pre",
    mid=Place("input", "post_attention_layernorm"),
    mlp_overwritten=False,
    when=(("parallel_attn", False), ("new_decoder_architecture", False)),
)

# ---- encoders -------------------------------------------------------------------------------------------------------

BERT = Family(
    "attention.self",
    "attention.output.dense",
    "attention.output.dense",
    "intermediate",
    "output.dense",
    "post",
    mid=Place("output", "attention.output.LayerNorm"),
    post_norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
BERT_CROSS = replace(
    BERT,
    cross=Cross(
        "crossattention.self",
        "crossattention.output.dense",
        "crossattention.output.dense",
        Place("output", "crossattention.output.LayerNorm"),
        "crossattention.output.LayerNorm",
    ),
)
BERT_PRE = replace(BERT, norm="pre", mid=Place("output", "attention.output"), post_norms=None)
GTE = Family(
    "self_attn",
    "self_attn.o_proj",
    "self_attn",
    "mlp",
    "mlp",
    "post",
    mid=Place("output", "post_attention_layernorm"),
    post_norms=("post_attention_layernorm", "post_mlp_layernorm"),
)
DISTILBERT = Family(
    "attention",
    "attention.out_lin",
    "attention",
    "ffn",
    "ffn",
    "post",
    mid=Place("output", "sa_layer_norm"),
    post_norms=("sa_layer_norm", "output_layer_norm"),
)
MODERNBERT = Family("attn", "attn.Wo", "attn", "mlp", "mlp", mid=Place("input", "mlp_norm"))

# ---- encoder-decoders -----------------------------------------------------------------------------------------------

T5_ENCODER = Family(
    "layer.0.SelfAttention",
    "layer.0.SelfAttention.o",
    "layer.0.SelfAttention",
    "layer.1.DenseReluDense",
    "layer.1.DenseReluDense",
    mid=Place("output", "layer.0"),
)
T5_DECODER = replace(
    T5_ENCODER,
    mlp="layer.2.DenseReluDense",
    mlp_writer="layer.2.DenseReluDense",
    cross=Cross(
        "layer.1.EncDecAttention",
        "layer.1.EncDecAttention.o",
        "layer.1.EncDecAttention",
        Place("output", "layer.1"),
    ),
)
BART_ENCODER = replace(OPT_POST, flat_mlp=False, when=())
BART_DECODER = replace(
    BART_ENCODER,
    cross=Cross(
        "encoder_attn",
        "encoder_attn.out_proj",
        "encoder_attn",
        Place("output", "encoder_attn_layer_norm"),
        "encoder_attn_layer_norm",
    ),
)
WHISPER_ENCODER = replace(OPT, flat_mlp=False, when=())
WHISPER_DECODER = replace(
    WHISPER_ENCODER,
    mid=Place("input", "encoder_attn_layer_norm"),
    cross=Cross("encoder_attn", "encoder_attn.out_proj", "encoder_attn", Place("input", "final_layer_norm")),
)

# ---- vision ---------------------------------------------------------------------------------------------------------

VIT = Family("attention", "attention.o_proj", "attention", "mlp", "mlp", mid=Place("input", "layernorm_after"))
DINOV2 = Family("attention", "attention.o_proj", "layer_scale1", "mlp", "layer_scale2", mid=Place("input", "norm2"))
CLIP = Family("self_attn", "self_attn.out_proj", "self_attn", "mlp", "mlp", mid=Place("input", "layer_norm2"))
QWEN_VISION = Family(
    "attn",
    "attn.proj",
    "attn",
    "mlp",
    "mlp",
    mid=Place("input", "norm2"),
    packed=True,
    note="All images lie one after the other without a batch axis; attention runs once per image or window.",
)

_LLAMA = (LLAMA_LIKE,)
_LATENT = (LATENT,)
_SANDWICH = (SANDWICH,)
_BERT = (BERT_CROSS, BERT)
_BART = (BART_DECODER, BART_ENCODER)
_WHISPER = (WHISPER_DECODER, WHISPER_ENCODER)
_T5 = (T5_DECODER, T5_ENCODER)
_CLIP = (CLIP,)

# Of a model type's rows, the first that fits the block is used; where none fits, the model is not understood.
FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "gpt2": (GPT2_CROSS, GPT2),
    "gpt_neo": (GPT_NEO,),
    "gptj": (GPTJ,),
    "gpt_neox": (NEOX_PARALLEL, NEOX),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "phi": (PARALLEL_DENSE,),
    "phi3": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": (OLMO2,),
    "opt": (OPT, OPT_POST),
    "bloom": (BLOOM,),
    "falcon": (FALCON_PARALLEL, FALCON),
    "stablelm": (STABLELM_PARALLEL, STABLELM),
    "gpt_oss": _LLAMA,
    "cohere": (PARALLEL,),
    "granite": (GRANITE,),
    "deepseek_v3": _LATENT,
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": (DISTILBERT,),
    "modernbert": (MODERNBERT,),
    "t5": _T5,
    "bart": _BART,
    "whisper": _WHISPER,
    "vit": (VIT,),
    "dinov2": (DINOV2,),
    "clip_text_model": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip_text_model": _CLIP,
    "siglip_vision_model": _CLIP,
    "idefics3_vision": _CLIP,
    "smolvlm_vision": _CLIP,
    "qwen2_vl_vision": (QWEN_VISION,),
    "qwen2_vl_text": _LLAMA,
    # beyond these, types whose names alone would not tell pre-norm from post-norm, or how attention is dispatched
    "cohere2": (PARALLEL,),
    "cohere2_moe": (PARALLEL,),
    "codegen": (GPTJ,),
    "mpt": (MPT,),
    "mbart": _WHISPER,
    "pegasus": _WHISPER,
    "m2m_100": _WHISPER,
    "blenderbot": _WHISPER,
    "blenderbot-small": _BART,
    "marian": _BART,
    "mvp": _BART,
    "plbart": _BART,
}

_UNPLACED = (
    "Where the residual lies between attention and MLP is not known for this model type, so the two are treated as if "
    "they were parallel."
)

# Rows that name more modules stand before rows whose paths are among theirs. Where several fit (pre-norm and post-norm
# blocks may have the same names), behaviour decides.
LAYOUTS: tuple[Family, ...] = (
    GLM4,
    AFMOE,
    SANDWICH,
    GTE,
    OLMO2,
    GRANITE,
    LLAMA_LIKE,
    GRANITE_MOE,
    APERTUS,
    VAULTGEMMA,
    PERSIMMON,
    LFM2,
    GPT2_CROSS,
    GPT2,
    MPT,
    NEOX_PARALLEL,
    NEOX,
    BERT_CROSS,
    BERT,
    BERT_PRE,
    T5_DECODER,
    T5_ENCODER,
    BART_DECODER,
    WHISPER_DECODER,
    BART_ENCODER,
    WHISPER_ENCODER,
    DISTILBERT,
    MODERNBERT,
    VIT,
    DINOV2,
    CLIP,
    QWEN_VISION,
    GPTJ,
    replace(PARALLEL, note=_UNPLACED),
    replace(PARALLEL_DENSE, note=_UNPLACED),
)


def rows_for(block: nn.Module, config: Any) -> tuple[Family, ...]:
    """The rows that fit ``block``, best first: those of ``config.model_type``, for an unknown type those of LAYOUTS."""
    known = FAMILIES.get(getattr(config, "model_type", ""), LAYOUTS)
    return tuple(row for row in known if row.fits(block, config))
