"""To and from transformer-lens: a bridge goes in by its weights, a run comes out as an ``ActivationCache``.

transformer-lens is an extra and heavy to import (it brings wandb), so it is imported inside the one function that needs
it. A bridge is told by the names of its classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
import transformers
from torch import Tensor, nn

from interp.address import At, Site
from interp.errors import BadInput, LoadFailed

_WRAPPED = "_original_component"  # under this name a bridge component holds the module that it replaced
_SPLITS: Mapping[str, tuple[str, ...]] = {  # a component's function that takes a fused weight apart -> the parts
    "split_qkv_matrix": ("q", "k", "v"),
    "split_gate_up_matrix": ("gate", "in"),
}


def is_bridge(x: object) -> bool:
    """Whether ``x`` is a transformer-lens bridge, found out without importing transformer-lens."""
    return any(
        c.__name__ == "BridgeCore" and c.__module__.partition(".")[0] == "transformer_lens" for c in type(x).__mro__
    )


# ---- in -------------------------------------------------------------------------------------------------------------


def from_bridge(bridge: Any) -> transformers.PreTrainedModel:
    """A fresh Hugging Face model of the bridge's class and config that holds the bridge's own parameters.

    A bridge replaces the modules of its Hugging Face model by components that compute attention themselves and never
    call the attention interface, so the modules are of no use here; the parameters are. The new model is built without
    memory and given the very same ``nn.Parameter`` objects (ties included); buffers, a few bytes, are copied. Its
    attention implementation is the one Hugging Face would choose, not the eager one that booting a bridge forces.
    Nothing of the bridge is changed; hooks that were added to the bridge are not taken over.

    Args:
        bridge: a ``transformer_lens`` ``TransformerBridge``.

    Raises:
        LoadFailed: the bridge has folded or centred weights, holds no Hugging Face module, was changed in a way that
            its Hugging Face parameters do not have, or is quantised or spread over devices.

    Example:
        >>> model = from_bridge(TransformerBridge.boot_transformers("gpt2"))  # doctest: +SKIP
    """
    source = _module_of(bridge)
    _refuse_processed(bridge)
    _refuse_placed(source)
    fresh = _without_memory(source)
    for path, module in fresh.named_modules():
        _take_tensors(module, _at(source, path), path)
    _refuse_changed_copies(bridge, source, fresh)
    if fresh.can_generate():
        fresh.generation_config = copy.deepcopy(source.generation_config)
    return fresh.train(source.training)


def _module_of(bridge: Any) -> transformers.PreTrainedModel:
    source = getattr(bridge, "original_model", None)
    if not isinstance(source, transformers.PreTrainedModel):
        raise LoadFailed(
            f"This {type(bridge).__name__} holds {_kind(source)}, expected a Hugging Face model: only bridges booted "
            "from one can be loaded. Pass a PreTrainedModel, a name or a folder."
        )
    return source


def _kind(source: object) -> str:
    return "no module of its own" if source is None else f"a {type(source).__module__}.{type(source).__name__}"


def _refuse_processed(bridge: Any) -> None:
    # Without the flag, compatibility mode must do as the sign: it processes weights unless told otherwise.
    if getattr(bridge, "_weights_processed", getattr(bridge, "compatibility_mode", False)):
        raise LoadFailed(
            "This TransformerBridge has processed weights (enable_compatibility_mode() or process_weights() folds "
            "LayerNorm and centres weights), so its parameters are no longer the checkpoint's. Expected a bridge as "
            "booted: pass a fresh one, or one with enable_compatibility_mode(no_processing=True), or the checkpoint."
        )


def _refuse_placed(source: transformers.PreTrainedModel) -> None:
    places = {str(place) for place in (getattr(source, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or "disk" in places:
        raise LoadFailed(
            f"The bridge's model is spread over {', '.join(sorted(places))}, and its placement hooks cannot be shared. "
            "Load the checkpoint itself: load(name, device_map=...)."
        )
    if getattr(source, "is_quantized", False) or getattr(source, "hf_quantizer", None) is not None:
        raise LoadFailed(
            "The bridge's model is quantised. Pass the quantised Hugging Face model itself, before a bridge is made."
        )


def _without_memory(source: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    config = copy.deepcopy(source.config)
    config._attn_implementation = None  # let the class choose; sub-configs follow
    parts = [config, *(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)]
    for part in parts:
        part.output_attentions = False  # booting by name sets it, and only eager attention accepts it
    with torch.device("meta"):
        return type(source)(config)


def _at(source: nn.Module, path: str) -> nn.Module:
    """The Hugging Face module at ``path`` as it was before components were put around modules."""
    found = _unwrapped(source)
    for part in path.split(".") if path else ():
        inner = found._modules.get(part)
        if inner is None:
            raise LoadFailed(
                f"The bridge rebuilt {type(source).__name__}: there is no module {path!r} to take weights from. Load "
                "the checkpoint itself, or pass the Hugging Face model before a bridge is made of it."
            )
        found = _unwrapped(inner)
    return found


def _unwrapped(module: nn.Module) -> nn.Module:
    while _WRAPPED in module._modules and module._modules[_WRAPPED] is not None:
        module = module._modules[_WRAPPED]  # pyright: ignore[reportAssignmentType]
    return module


def _take_tensors(module: nn.Module, source: nn.Module, path: str) -> None:
    """Put the tensors of ``source`` into ``module``, which is on the meta device: parameters shared, others copied."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = _same_shape(source._parameters.get(name), parameter, f"{path}.{name}")
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = _same_shape(source._buffers.get(name), buffer, f"{path}.{name}").clone()
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and value.is_meta:
            setattr(module, name, _same_shape(getattr(source, name, None), value, f"{path}.{name}").clone())


def _same_shape(found: Any, expected: Tensor, name: str) -> Any:
    if isinstance(found, Tensor) and found.shape == expected.shape and not found.is_meta:
        return found
    got = f"{'meta ' if found.is_meta else ''}{list(found.shape)}" if isinstance(found, Tensor) else "nothing"
    raise LoadFailed(
        f"{name}: expected a tensor of shape {list(expected.shape)} in the bridge, found {got}. Load the checkpoint "
        "itself, or pass the Hugging Face model before a bridge is made of it."
    )


def _refuse_changed_copies(
    bridge: Any, source: transformers.PreTrainedModel, fresh: transformers.PreTrainedModel
) -> None:
    """Compare split weights that are copies of a fused parameter (gpt_neox) with the parameter they came from."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in fresh.parameters()}
    for path, component in source.named_modules():
        original = component._modules.get(_WRAPPED)
        for function, parts in _SPLITS.items():
            split: Any = getattr(component, function, None)
            held = [_unwrapped(part) for name in parts if (part := component._modules.get(name)) is not None]
            copies = [p for part in held for p in part.parameters() if p.untyped_storage().data_ptr() not in shared]
            if original is None or split is None or len(held) != len(parts) or not copies:
                continue
            # It builds nn.Linear's around the parts, whose own random weights would cost time and move the generator.
            with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.no_grad():
                expected: tuple[nn.Module, ...] = split(original)
            if not all(_same_values(now, then) for now, then in zip(held, expected, strict=True)):
                raise LoadFailed(
                    f"{path}: the bridge's {', '.join(parts)} weights are no longer the parts of the Hugging Face "
                    "parameter they were copied from, so loading it would undo a change. Change the fused parameter, "
                    "or load an unchanged bridge and use edits."
                )


def _same_values(now: nn.Module, then: nn.Module) -> bool:
    held = dict(now.named_parameters())
    return all(
        name in held and held[name].shape == value.shape and torch.equal(held[name], value)
        for name, value in then.named_parameters()
        if not value.is_meta
    )


# ---- out ------------------------------------------------------------------------------------------------------------

_BLOCK_HOOKS: Mapping[Site, str] = {
    Site.RESID_PRE: "hook_resid_pre",
    Site.RESID_MID: "hook_resid_mid",
    Site.RESID_CROSS: "hook_resid_mid2",
    Site.RESID_POST: "hook_resid_post",
    Site.ATTN_OUT: "hook_attn_out",
    Site.MLP_OUT: "hook_mlp_out",
}
_ATTENTION_HOOKS: Mapping[Site, str] = {
    Site.ATTN_RAW: "o.hook_out",
    Site.Q: "hook_q",
    Site.K: "hook_k",
    Site.V: "hook_v",
    Site.SCORES: "hook_attn_scores",
    Site.PATTERN: "hook_pattern",
    Site.Z: "hook_z",
    Site.RESULT: "hook_result",
}


@runtime_checkable
class Reads(Protocol):
    """What a cache is made from: a run, which goes over what it read layer by layer."""

    def reads(self) -> Iterator[tuple[At, Tensor]]:
        """Every tensor that was read, with its address of one layer."""
        ...


def to_activation_cache(run: Reads, model: Any) -> Any:
    """What ``run`` read, as a ``transformer_lens.ActivationCache`` under transformer-lens's hook names.

    Values are those that a ``TransformerBridge`` caches for the same weights and tokens, with three things to know:

    - ``Q`` and ``K`` of a model with rotary embeddings are ``hook_rot_q`` and ``hook_rot_k``; ``hook_q`` and ``hook_k``
      are before the rotation there, and stay empty.
    - Blocked scores, -inf in a run, are the dtype's lowest number as in a bridge (-inf for one in compatibility mode).
    - A padded row of a pattern is 0; a bridge has 1/n there. Rows of real tokens agree.

    Args:
        run: the result of ``interp.run``; every read must be of whole tensors (all heads, all positions).
        model: what the cache keeps as ``.model``. With the bridge itself every helper of the cache works; the handle
            that ``load`` returned gives a small stand-in that knows the config's numbers (``cache["z", -1]`` works).

    Raises:
        BadInput: transformer-lens is missing, nothing was read, or a read has only some heads or positions.

    Example:
        >>> run = interp.run(model, batch, read=[At(Site.Z)])  # doctest: +SKIP
        >>> to_activation_cache(run, model)["z", 0].shape  # doctest: +SKIP
        torch.Size([4, 24, 12, 64])
    """
    try:
        from transformer_lens import ActivationCache
    except ImportError as error:
        raise BadInput(f"transformer-lens cannot be imported ({error}): pip install 'headscope[interop]'.") from error
    bridged = is_bridge(model)
    config = _module_of(model).config if bridged else model.hf.config
    lowest = not (bridged and getattr(model, "compatibility_mode", False))
    cache: dict[str, Tensor] = {}
    for at, tensor in run.reads():
        if at.heads is not None or at.pos is not None:
            raise BadInput(
                f"{at} is only some heads or positions, and a hook name means a whole tensor: read it whole."
            )
        if at.site is Site.SCORES and lowest:
            tensor = tensor.masked_fill(tensor == -torch.inf, torch.finfo(tensor.dtype).min)  # noqa: PLW2901
        cache[hook_name(at, config)] = tensor
    if not cache:
        raise BadInput("The run read nothing: give read=[At(Site.Z), ...] to run first.")
    return ActivationCache(cache, model if bridged else _stand_in(model))


def hook_name(at: At, config: Any) -> str:
    """transformer-lens's name for one layer of a site.

    Args:
        at: an address with an int layer.
        config: the Hugging Face model's config; it says whether there are an encoder and a decoder, and whether
            queries and keys are rotated.

    Raises:
        BadInput: the address has no single layer.

    Example:
        >>> from types import SimpleNamespace
        >>> hook_name(At(Site.Q, layer=3), SimpleNamespace(rope_parameters={"rope_theta": 1e4}))
        'blocks.3.attn.hook_rot_q'
    """
    if not isinstance(at.layer, int):
        raise BadInput(f"{at}: a hook name belongs to one layer; give layer= an int.")
    blocks, attention = _stack_names(at.stack, config)
    if at.site in _BLOCK_HOOKS:
        crossing = at.stack == "cross" and at.site is Site.ATTN_OUT
        return f"{blocks}.{at.layer}.{'hook_cross_attn_out' if crossing else _BLOCK_HOOKS[at.site]}"
    hook = _ATTENTION_HOOKS[at.site]
    if at.site in (Site.Q, Site.K) and attention != "cross_attn" and rotates(config):
        hook = hook.replace("hook_", "hook_rot_")
    return f"{blocks}.{at.layer}.{attention}.{hook}"


def rotates(config: Any) -> bool:
    """Whether a model of this config turns queries and keys by their position (rotary embeddings)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "rotary", None) is False:  # falcon with ALiBi has rope_parameters all the same
        return False
    return bool(getattr(text, "rope_parameters", None) or getattr(text, "rotary_dim", None))


def _stack_names(stack: str | None, config: Any) -> tuple[str, str]:
    if getattr(config, "is_encoder_decoder", False):
        if stack == "encoder":
            return "encoder_blocks", "attn"
        return "decoder_blocks", "cross_attn" if stack == "cross" else "self_attn"
    if stack == "vision" and hasattr(config, "vision_config"):
        return "vision_encoder.encoder_layers", "attn"
    return "blocks", "attn"


def _stand_in(model: Any) -> SimpleNamespace:
    """As much of a transformer-lens model as a cache needs to look up its own entries: the config's numbers."""
    stack = model.stacks[model.default_stack]
    some = next((layer for layer in range(stack.n_layers) if stack.n_heads(layer)), 0)
    numbers = SimpleNamespace(n_layers=stack.n_layers, n_heads=stack.n_heads(some), d_head=stack.d_head(some))
    return SimpleNamespace(cfg=numbers)
