"""Loading: a name, a folder, a live model or a bridge becomes a handle, checked by behaviour."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from interp.errors import BadInput, LoadFailed, UnknownName
from interp.model.card import Card
from interp.model.check import check_behaviour, unchecked
from interp.model.handle import Model
from interp.model.stacks import attempts, find_stacks
from interp.names import unknown
from interp.zoo import ZOO

__all__ = ["Model", "load"]

_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
_HUB = ("huggingface_hub", "httpx", "httpx2")  # whose exceptions say that a hub was asked and did not deliver


def load(
    x: str | Path | Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    check: bool = True,
    device: Any = None,
    **from_pretrained: Any,
) -> Model:
    """The handle of a model, which is wrapped in place: nothing is copied, folded or re-implemented.

    Args:
        x: a zoo name (``"induction"``), a local folder, a hub id, a live ``PreTrainedModel``, or a transformer-lens
            ``TransformerBridge`` (its weights go in; the bridge stays as it is).
        tokenizer: its tokenizer; found beside the weights by default.
        processor: its processor for images or audio; found beside the weights by default.
        check: check this very checkpoint by behaviour (at most four forwards of a few tokens) and refuse what is not
            understood; the outcome is ``model.card``.
        device: where to put a model that is loaded here.
        **from_pretrained: keywords of ``from_pretrained`` (``dtype=``, ``attn_implementation=``, ``device_map=``,
            ``revision=`` ...). ``trust_remote_code`` is off and only safetensors are read, unless asked otherwise.

    Raises:
        UnknownName: neither a zoo name, nor a folder, nor on the hub.
        LoadFailed: the files are damaged, or the model's structure or behaviour is not understood.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> len(model.heads())
        4
    """
    if isinstance(x, str | Path):
        name = str(x)
        _check_device(device)
        hf, tokenizer, processor = _from_name(name, tokenizer, processor, device, from_pretrained)
    else:
        if from_pretrained or device is not None:
            given = sorted([*from_pretrained, *(["device"] if device is not None else [])])
            raise BadInput(f"load: {given} mean something only for a name or folder; a live model is taken as it is.")
        hf, tokenizer = _from_object(x, tokenizer)
        name = getattr(hf, "name_or_path", "") or type(hf).__name__
    return _handle(hf, tokenizer, processor, name, check)


def _handle(hf: transformers.PreTrainedModel, tokenizer: Any, processor: Any, name: str, check: bool) -> Model:
    """The handle with the first row that behaves; of an unknown model type several rows may fit by structure."""
    first: Model | None = None
    for attempt in range(attempts(hf) if check else 1):
        stacks = find_stacks(hf, attempt)
        model = Model(hf, tokenizer, processor, stacks, next(iter(stacks)), name, Card("", {}))
        if not check:
            return replace(model, card=unchecked(model))
        checked, card = check_behaviour(model)
        model = replace(model, stacks=checked, card=card)
        if not any(outcome.startswith("FAILS") for outcome in card.checks.values()):
            return model
        first = first or model
    assert first is not None
    return first


def _check_device(device: Any) -> None:
    """Refuse a device that is not there, before anything is read."""
    if device is None:
        return
    try:
        kind = torch.device(device).type
        there = kind in ("cpu", "meta") or torch.get_device_module(kind).is_available()
        found = there and (torch.device(device).index or 0) < (
            1 if kind == "cpu" else torch.get_device_module(kind).device_count()
        )
    except (RuntimeError, AttributeError):
        found = False
    if not found:
        raise BadInput(f"load: device={device!r} is not there on this machine; leave it out for the CPU.")


def _from_object(x: Any, tokenizer: Any) -> tuple[transformers.PreTrainedModel, Any]:
    from interp.model.lens import from_bridge, is_bridge

    if is_bridge(x):
        return from_bridge(x), tokenizer if tokenizer is not None else getattr(x, "tokenizer", None)
    kind = type(x).__name__
    if kind in ("DistributedDataParallel", "DataParallel"):
        return _from_object(x.module, tokenizer)
    if kind == "OptimizedModule":
        raise LoadFailed(
            "A torch.compile'd model was given: compiled graphs do not run hooks that come later. Pass the model from "
            "before torch.compile (compiled._orig_mod)."
        )
    if hasattr(x, "get_base_model") and hasattr(x, "peft_config"):
        return _from_object(x.get_base_model(), tokenizer)  # adapters sit inside its modules and stay in force
    if not isinstance(x, transformers.PreTrainedModel):
        raise BadInput(
            f"load: {kind} is not a model; expected a zoo name ({', '.join(sorted(ZOO))}), a folder, a hub id, a "
            "transformers PreTrainedModel or a TransformerBridge."
        )
    if any(module._compiled_call_impl is not None for module in x.modules()):
        raise LoadFailed(
            f"This {kind} was compiled in place by .compile(): compiled graphs do not run hooks that come later. Load "
            "it again and pass it before .compile()."
        )
    return x, tokenizer


def _from_name(
    name: str, tokenizer: Any, processor: Any, device: Any, options: dict[str, Any]
) -> tuple[transformers.PreTrainedModel, Any, Any]:
    if name in ZOO:
        from interp import zoo

        if ZOO[name].folder is None:
            hf, built = zoo.build(name)
            return (hf if device is None else hf.to(device)), tokenizer if tokenizer is not None else built, processor
        source = str(zoo.path(name))
    else:
        source = name
        if not Path(name).expanduser().is_dir():
            _refuse_typos(name)
        else:
            source = str(Path(name).expanduser())
    hf = _pretrained(name, source, options)
    if device is not None:
        hf = hf.to(device)
    remote = {key: options[key] for key in ("trust_remote_code", "revision", "token", "cache_dir") if key in options}
    if tokenizer is None:
        tokenizer = _companion("AutoTokenizer", source, remote)
    if processor is None and not _text_only(hf):
        processor = _companion("AutoProcessor", source, remote)
        if getattr(processor, "tokenizer", None) is not None:
            tokenizer = tokenizer or processor.tokenizer
    return hf, tokenizer, processor


def _refuse_typos(name: str) -> None:
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix == ".safetensors"
    if looks_like_path:
        raise UnknownName(
            f"No folder {name!r}. Expected a folder written by save_pretrained (config.json and model.safetensors), a "
            f"zoo name ({', '.join(sorted(ZOO))}) or a hub id such as 'openai-community/gpt2'."
        )
    if "Did you mean" in (message := unknown(name, ZOO, "model")) and "/" not in name:
        raise UnknownName(message + " A hub id has the form 'owner/name'; a folder is given by its path.")


def _pretrained(name: str, source: str, options: dict[str, Any]) -> transformers.PreTrainedModel:
    options = {"use_safetensors": True, "trust_remote_code": False, **options}
    auto = {key: options[key] for key in ("trust_remote_code", "revision", "token", "cache_dir") if key in options}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **auto)
        loader = _loader(config, bool(options["trust_remote_code"]))
        hf, report = loader.from_pretrained(source, **{**options, "output_loading_info": True})
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise _load_error(name, source, error) from error
    except Exception as error:  # safetensors and huggingface_hub raise classes of their own
        if _package(error) in ("safetensors", "safetensors_rust", "builtins", *_HUB):
            raise _load_error(name, source, error) from error
        raise
    absent = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in sorted(report[kind])]
    if absent:
        raise LoadFailed(
            f"The files of {name!r} lack {len(absent)} of the weights that {type(hf).__name__} has, which would be "
            f"random numbers: {absent[0]} ... {absent[-1]}. Check that config.json belongs to the weights; a model "
            "that is to have random parts is built by you and passed as an object."
        )
    hf.eval()
    return hf


def _loader(config: Any, remote: bool) -> Any:
    for architecture in getattr(config, "architectures", None) or ():
        found = getattr(transformers, architecture, None)
        if found is not None and not (remote and getattr(config, "auto_map", None)):
            return found
    for auto in _AUTO:
        loader = getattr(transformers, auto)
        if type(config) in loader._model_mapping:
            return loader
    return transformers.AutoModelForCausalLM


def _package(error: Exception) -> str:
    return type(error).__module__.split(".")[0]


def _load_error(name: str, source: str, error: Exception) -> Exception:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return LoadFailed(
            f"The model in {name!r} comes with code of its own, which was not run. Read it, and pass "
            "trust_remote_code=True if you trust it."
        )
    reason = reason[:400]
    of_hub = isinstance(error, OSError) or _package(error) in _HUB
    if Path(source).is_dir() or not of_hub:
        return LoadFailed(
            f"The model in {name!r} could not be read: {type(error).__name__}: {reason}. Expected config.json and "
            "undamaged safetensors files, as save_pretrained writes them. Copy the files again; for other formats "
            "convert them, or pass use_safetensors=False if you trust them."
        )
    return UnknownName(
        f"No model {name!r}: not in the zoo ({', '.join(sorted(ZOO))}), not a folder, and the hub gave "
        f"{type(error).__name__}: {reason}. Check the id, or the connection; a downloaded model is given by its folder."
    )


def _text_only(hf: transformers.PreTrainedModel) -> bool:
    read = hf.input_modalities
    return read == "text" or set(read) == {"text"}


def _companion(kind: str, source: str, options: dict[str, Any]) -> Any:
    """The tokenizer or processor beside the weights, ``None`` where there is none."""
    try:
        found = getattr(transformers, kind).from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError):
        return None
    if isinstance(found, transformers.PreTrainedTokenizerBase) and (
        kind == "AutoProcessor" or not _has_files(found, source)
    ):
        return None
    return found


def _has_files(tokenizer: transformers.PreTrainedTokenizerBase, source: str) -> bool:
    """Whether a folder holds a tokenizer: from one without its files, transformers makes one that knows no word."""
    names = {"tokenizer_config.json", "tokenizer.json", *tokenizer.vocab_files_names.values()}
    return not Path(source).is_dir() or any((Path(source) / name).is_file() for name in names)
