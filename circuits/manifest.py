"""The manifest of a run: what made its numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.model.load import Model

_PACKAGES = ("headscope", "torch", "transformers", "safetensors", "tokenizers", "numpy", "pandas", "scipy", "plotly")
_WHOLE_UP_TO = 2**20  # values of one tensor that are hashed one and all
_SAMPLED = 2**16  # values taken of a larger one


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on, with their versions."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed (a checkout)" if name == "headscope" else "not installed"
    return found


def files_fingerprint(name: str) -> str | None:
    """SHA-256 of the config and safetensors files of a zoo model or a folder, read without loading the model.

    Args:
        name: the model as the user wrote it.

    Returns:
        Hexadecimal digits, or ``None`` for a model without files of its own: a hub id, whose files lie in a cache of
        another library, or a zoo model that is built when it is loaded.
    """
    folder = model_folder(name)
    if folder is None:
        return None
    total = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("tokenizer*.json")]):
        total.update(file.name.encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def model_folder(name: str) -> Path | None:
    """The folder of a zoo model or a local one, ``None`` where there is none."""
    from interp.zoo import ZOO, path

    if name in ZOO:
        return Path(path(name)) if ZOO[name].folder is not None else None
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def weights_fingerprint(hf: Any) -> dict[str, str]:
    """SHA-256 over the weights in memory, with a word on how much of them it has seen.

    Names, types and shapes count, and every value of tensors of up to 2**20 values; of a larger one, 2**16 values
    at even distances.

    Args:
        hf: the plain model.
    """
    import torch

    total, sampled = hashlib.sha256(), False
    for name, tensor in sorted(hf.state_dict().items()):
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            continue
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().reshape(-1)
        if flat.numel() > _WHOLE_UP_TO:
            sampled = True
            flat = flat[:: flat.numel() // _SAMPLED]
        total.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    method = "sha256, every value" if not sampled else "sha256, every value of small tensors and a sample of large ones"
    return {"sha256": total.hexdigest(), "method": method}


def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """SHA-256 of the tokenizer's vocabulary and merges, ``None`` without a tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(told.encode()).hexdigest()


def describe_model(model: Model, asked: str) -> dict[str, Any]:
    """The part of the manifest about the model: its name as asked, class, size, fingerprints and kernels."""
    hf = model.hf
    config = hf.config
    return {
        "asked": asked,
        "class": type(hf).__name__,
        "parameters": sum(parameter.numel() for parameter in hf.parameters()),
        "files": files_fingerprint(asked),
        "weights": weights_fingerprint(hf),
        "revision": getattr(config, "_commit_hash", None),
        "tokenizer": tokenizer_fingerprint(model.tokenizer),
        "attention": getattr(config, "_attn_implementation", None),
        "device": str(next(hf.parameters()).device),
        "dtype": str(next(hf.parameters()).dtype).removeprefix("torch."),
    }


def describe_machine() -> dict[str, Any]:
    """The part of the manifest about the machine: system, processor, threads; no names of users or folders."""
    import torch

    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def manifest(
    *, command: str, settings: Mapping[str, Any], model: Mapping[str, Any], times: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The whole manifest, ready for JSON.

    Args:
        command: what the user typed.
        settings: every setting of the run.
        model: from :func:`describe_model`.
        times: when it began and ended, and the seconds of each stage.
        more: further entries, such as the counts of units.
    """
    return {
        "command": command,
        "config": dict(settings),
        "seed": settings.get("seed"),
        "model": dict(model),
        "machine": describe_machine(),
        "versions": versions(),
        "times": dict(times),
        "exactness": (
            "Finished units are reused as they are. With the same threads on a CPU a resumed run gives the same bits; "
            "another device or batch size gives the same numbers up to rounding."
        ),
        **more,
    }
