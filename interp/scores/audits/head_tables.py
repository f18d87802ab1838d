"""Tables of heads made by audits, which bring several of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interp.results import HeadScores
from interp.scores.ask import Ask


def head_table(ask: Ask, name: str, by_layer: Mapping[int, Float[Tensor, "batch _"]], **metadata: Any) -> HeadScores:
    """The table of one number per prompt and head; one number per layer is shown by each of its heads."""
    counts = np.array([ask.stack.n_heads(layer) for layer in range(ask.stack.n_layers)])
    values = np.full((len(ask.batch), len(counts), counts.max()), np.nan)
    for layer, found in by_layer.items():
        values[:, layer, : counts[layer]] = found.double().cpu().numpy()
    return HeadScores.from_array(
        values,
        name=name,
        sample_axis="prompt",
        stack=ask.stack.name,
        default_stack=ask.model.default_stack,
        exists=np.arange(counts.max())[None, :] < counts[:, None],
        metadata={"model": ask.model.name, **metadata},
    )


def joined_table(tables: Mapping[str, HeadScores]) -> pd.DataFrame:
    """One row per head: label, stack, layer, head, and the mean over prompts of each table under its name."""
    first = next(iter(tables.values()))
    places = first.table()
    prefix = "" if first.stacks[0] == first.default_stack else f"{first.stacks[0]}."
    labels = [f"{prefix}L{layer}.H{head}" for layer, head in zip(places["layer"], places["head"], strict=True)]
    columns = {name: table.table()["value"].to_numpy() for name, table in tables.items()}
    return pd.DataFrame({"label": labels, **{key: places[key] for key in ("stack", "layer", "head")}, **columns})
