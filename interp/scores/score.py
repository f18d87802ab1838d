"""``score``: every head score asked for, from as few forwards as possible."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model
from interp.model.inputs import fewest_logits, output_embeddings
from interp.model.run import run
from interp.names import lookup
from interp.results import HeadScores
from interp.scores import SCORES
from interp.scores.copying import copying, copying_ratio
from interp.scores.prompts import repeated_random, start_token

_SAMPLE = 25  # tokens of a random sequence (Olsson et al., 2022)
_REPEATS = 4


def score(model: Model, batch: Batch, names: str | Iterable[str]) -> dict[str, HeadScores]:
    """Name -> score of every head of the default stack, per prompt.

    Args:
        model: the handle.
        batch: the prompts. Scores that bring their own random prompts (``prefix_matching``, ``copying``) draw one for
            each prompt of the batch, seeded by its token ids.
        names: one name or several of ``interp.scores.SCORES``. Those of the batch itself come from one forward.

    Raises:
        UnknownName: with near matches.
        BadInput: the batch has no token ids.
        Unsupported: the model's patterns cannot be read.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]))
        >>> interp.score(model, batch, "induction")["induction"].values.shape
        (2, 2)
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        lookup(name, SCORES, "score")
    if not wanted:
        raise BadInput(f"score: no names were given; known: {', '.join(SCORES)}.")
    if batch.ids is None:
        raise BadInput("score: these scores compare token ids, and the batch has none.")
    model.stack().require(Site.PATTERN, edit=False)
    found: dict[str, np.ndarray] = {}
    ours = [name for name in wanted if SCORES[name].needs == "pattern"]
    if ours:
        found |= _from_patterns(model, batch, ours)
    if "prefix_matching" in wanted:
        drawn = _drawn(model, batch, _REPEATS)
        found["prefix_matching"] = _from_patterns(model, drawn, ["prefix_matching"])["prefix_matching"]
    if "copying" in wanted:
        found["copying"] = _copying(model, _drawn(model, batch, 1))
    return {
        name: HeadScores.from_array(
            found[name],
            name=name,
            quantity="score",
            sense=0,
            sample_axis="prompt",
            stack=model.default_stack,
            metadata={"model": model.name, "source": SCORES[name].source, "prompts": SCORES[name].needs},
        )
        for name in wanted
    }


def _layers(model: Model) -> list[int]:
    stack = model.stack()
    return [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]


def _grid(model: Model, by_layer: dict[int, Tensor], count: int) -> np.ndarray:
    """``[prompt, layer, head]`` with NaN where there is no head."""
    stack = model.stack()
    widest = max(stack.n_heads(layer) for layer in range(stack.n_layers))
    grid = np.full((count, stack.n_layers, widest), np.nan)
    for layer, values in by_layer.items():
        grid[:, layer, : values.shape[1]] = values.double().cpu().numpy()
    return grid


def _from_patterns(model: Model, batch: Batch, names: Sequence[str]) -> dict[str, np.ndarray]:
    assert batch.ids is not None
    reads = [At(Site.PATTERN, layer=layer) for layer in _layers(model)]
    seen = run(model, batch, read=reads, logits=fewest_logits(model))
    made: dict[str, np.ndarray] = {}
    for name in names:
        module, function = SCORES[name].function.split(":")
        reduce = getattr(importlib.import_module(module), function)
        by_layer = {
            layer: reduce(seen[at], batch.ids, batch.mask) for layer, at in zip(_layers(model), reads, strict=True)
        }
        made[name] = _grid(model, by_layer, len(batch))
    return made


def _drawn(model: Model, batch: Batch, repeats: int) -> Batch:
    assert batch.ids is not None
    seeds = [
        int.from_bytes(hashlib.sha256(repr((repeats, row[real].tolist())).encode()).digest()[:6], "big")
        for row, real in zip(batch.ids, batch.mask, strict=True)
    ]
    return encode(model, repeated_random(model, seeds, _SAMPLE, repeats))


def _copying(model: Model, batch: Batch) -> np.ndarray:
    head = output_embeddings(model)
    if head is None:
        raise BadInput(f"copying: {type(model.hf).__name__} has no unembedding; load it with its language head.")
    assert batch.ids is not None
    sample = batch.mask.clone()
    if start_token(model) is not None:
        sample[:, 0] = False
    zero = None

    def unembed(x: Tensor) -> Tensor:
        nonlocal zero
        if zero is None:
            zero = head.forward(torch.zeros_like(x[:1, :1]))
        return head.forward(x) - zero

    by_layer: dict[int, Tensor] = {}
    reads = [At(site, layer=layer) for layer in _layers(model) for site in (Site.PATTERN, Site.RESULT)]
    seen = run(model, batch, read=reads, logits="last")
    with torch.no_grad():
        for layer in _layers(model):
            pattern, result = seen[At(Site.PATTERN, layer=layer)], seen[At(Site.RESULT, layer=layer)]
            by_layer[layer] = copying(copying_ratio(pattern, result, batch.ids, sample, unembed))
    return _grid(model, by_layer, len(batch))
