"""A few tokens (and an image) that a model can be run on, made from its config alone; for the checks at load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import input_embeddings

N_TOKENS = 4


def probe_inputs(model: Model, rows: int) -> list[dict[str, Any]]:
    """Candidate inputs, the fullest first: ``rows`` equal prompts of a few tokens, with an image where one fits.

    Args:
        model: the handle.
        rows: size of the batch.
    """
    config, device = model.hf.config, model.device
    generator = torch.Generator().manual_seed(0)
    size = _vocabulary(model)
    special = _special_ids(config)
    ordinary = [token for token in range(min(size, 4096)) if token not in special] or list(range(size))
    drawn = torch.randint(len(ordinary), (N_TOKENS,), generator=generator).tolist()
    ids = torch.tensor([[ordinary[i] for i in drawn]]).expand(rows, -1).contiguous().to(device)
    if model.default_stack == "decoder":
        start = getattr(config, "decoder_start_token_id", None)
        decoder = ids.clone()
        decoder[:, 0] = start if isinstance(start, int) and 0 <= start < size else ids[:, 0]
        if model.hf.main_input_name == "input_features":
            return [
                {
                    "input_features": _speech(config, rows, generator).to(device, model.dtype),
                    "decoder_input_ids": decoder,
                }
            ]
        return [{"input_ids": ids, "decoder_input_ids": decoder}]
    if model.default_stack.startswith("vision"):
        return [{"pixel_values": _image(config, rows, generator).to(device, model.dtype)}]
    text = {"input_ids": ids}
    if "vision" not in model.stacks:
        return [text]
    image = _with_image(model, ids, rows, generator)
    return [image, text] if image is not None else [text]


def probe_batch(model: Model, inputs: Mapping[str, Any]) -> Batch:
    """Probe inputs as a batch, without padding."""
    own = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    rows = next(iter(inputs.values())).shape[0] if own is None else own.shape[0]
    mask = torch.ones((rows, 1) if own is None else own.shape, dtype=torch.bool, device=model.device)
    encoder = inputs.get("input_ids") if "decoder_input_ids" in inputs else None
    return Batch(
        inputs=dict(inputs),
        mask=mask,
        ids=own,
        read_at=torch.zeros(rows, dtype=torch.long),
        encoder_mask=None if encoder is None else torch.ones_like(encoder, dtype=torch.bool),
        default_stack=model.default_stack,
    )


def _vocabulary(model: Model) -> int:
    embeddings = input_embeddings(model)
    return int(getattr(embeddings, "num_embeddings", 0) or getattr(model.stack().config, "vocab_size", 2) or 2)


def _special_ids(config: Any) -> set[int]:
    found: set[int] = set()
    for owner in (config, config.get_text_config()):
        for name, value in vars(owner).items():
            if name.endswith(("token_id", "token_index")) and isinstance(value, int):
                found.add(value)
    return found


def _image_size(config: Any) -> tuple[int, int, int]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    patch = getattr(vision, "patch_size", 16)
    size = size if isinstance(size, int) else size[0]
    patch = patch if isinstance(patch, int) else patch[0]
    return int(getattr(vision, "num_channels", 3)), size, patch


def _image(config: Any, rows: int, generator: torch.Generator) -> Tensor:
    channels, size, _ = _image_size(config)
    return torch.randn(1, channels, size, size, generator=generator).expand(rows, -1, -1, -1).contiguous()


def _speech(config: Any, rows: int, generator: torch.Generator) -> Tensor:
    bins, frames = config.num_mel_bins, 2 * config.max_source_positions
    return torch.randn(1, bins, frames, generator=generator).expand(rows, -1, -1).contiguous()


def _with_image(model: Model, ids: Tensor, rows: int, generator: torch.Generator) -> dict[str, Any] | None:
    maker = _IMAGE_TOKENS.get(getattr(model.hf.config, "model_type", ""))
    try:
        return maker(model, ids, rows, generator) if maker else _two_towers(model, ids, rows, generator)
    except (AttributeError, TypeError, ValueError):
        return None


def _insert(ids: Tensor, token: int, count: int) -> Tensor:
    image = torch.full((ids.shape[0], count), token, dtype=ids.dtype, device=ids.device)
    return torch.cat([ids[:, :1], image, ids[:, 1:]], dim=1)


def _patches(model: Model, ids: Tensor, rows: int, generator: torch.Generator) -> dict[str, Any]:
    config = model.hf.config
    _, size, patch = _image_size(config)
    pixels = _image(config, rows, generator).to(model.device, model.dtype)
    return {"input_ids": _insert(ids, config.image_token_id, (size // patch) ** 2), "pixel_values": pixels}


def _prefix(model: Model, ids: Tensor, rows: int, generator: torch.Generator) -> dict[str, Any]:
    made = _patches(model, ids, rows, generator)
    return {**made, "token_type_ids": torch.zeros_like(made["input_ids"])}


def _shuffled(model: Model, ids: Tensor, rows: int, generator: torch.Generator) -> dict[str, Any]:
    config = model.hf.config
    _, size, patch = _image_size(config)
    pixels = _image(config, rows, generator).to(model.device, model.dtype)[:, None]
    count = (size // patch) ** 2 // config.scale_factor**2
    return {"input_ids": _insert(ids, config.image_token_id, count), "pixel_values": pixels}


def _packed(model: Model, ids: Tensor, rows: int, generator: torch.Generator) -> dict[str, Any]:
    config, vision = model.hf.config, model.hf.config.vision_config
    merge = vision.spatial_merge_size
    grid = 2 * merge
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(grid * grid, width, generator=generator).repeat(rows, 1).to(model.device, model.dtype)
    marked = _insert(ids, config.vision_start_token_id, 1)
    marked = torch.cat([marked[:, :2], _insert(marked[:, 2:3], config.image_token_id, 4)[:, 1:], ids[:, 1:]], dim=1)
    made: dict[str, Any] = {
        "input_ids": marked,
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, grid, grid]], device=ids.device).repeat(rows, 1),
    }
    made["mm_token_type_ids"] = (marked == config.image_token_id).int()
    return made


def _two_towers(model: Model, ids: Tensor, rows: int, generator: torch.Generator) -> dict[str, Any] | None:
    if not hasattr(model.hf, "text_model") or not hasattr(model.hf, "vision_model"):
        return None
    pixels = _image(model.hf.config, rows, generator).to(model.device, model.dtype)
    return {"input_ids": ids, "pixel_values": pixels}


_IMAGE_TOKENS: Mapping[str, Callable[[Model, Tensor, int, torch.Generator], dict[str, Any]]] = {
    "llava": _patches,
    "paligemma": _prefix,
    "idefics3": _shuffled,
    "smolvlm": _shuffled,
    "qwen2_vl": _packed,
}
