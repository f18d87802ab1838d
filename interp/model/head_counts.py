"""How many heads an attention module has, and how wide each one's z is."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class HeadCounts(NamedTuple):
    """Number of query heads, number of key/value heads, and the width of one head's z."""

    n_heads: int
    n_kv_heads: int
    d_head: int


_QUERY_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
_GROUPS = "num_key_value_groups"


def head_counts(attention: nn.Module, out: nn.Module, config: Any) -> HeadCounts | None:
    """Head counts of one attention module, ``None`` where they cannot be told or do not divide the width.

    Args:
        attention: the attention module; what it says goes before what the config says.
        out: its output projection (``nn.Linear``-like or ``Conv1D``): ``d_head`` = its input width / ``n_heads``.
        config: the config of the nearest enclosing pretrained model.

    Example:
        >>> attention = nn.MultiheadAttention(12, 3)
        >>> head_counts(attention, attention.out_proj, None)
        HeadCounts(n_heads=3, n_kv_heads=3, d_head=4)
    """
    width = input_width(out)
    layer = getattr(attention, "layer_idx", None)
    if getattr(config, "is_heterogeneous", False) and isinstance(layer, int):
        config = config.per_layer_config[layer]
    own, told = _first_count(attention, _QUERY_HEADS, layer), _first_count(config, _QUERY_HEADS, layer)
    n_heads = own or told
    if width is None or n_heads is None or width % n_heads:
        return None
    groups = getattr(attention, _GROUPS, None)
    if isinstance(groups, int) and groups > 0:
        n_kv_heads = n_heads // groups
    else:  # a module that counts its own query heads may differ from the config (encoder and decoder of one config)
        n_kv_heads = _first_count(attention if own else config, _KV_HEADS, layer) or n_heads
    return HeadCounts(n_heads, n_kv_heads, width // n_heads)


def input_width(projection: nn.Module) -> int | None:
    """Width of a projection's input: ``in_features`` of a Linear, first axis of a Conv1D's weight, else ``None``."""
    width = getattr(projection, "in_features", None)
    if isinstance(width, int):
        return width
    if type(projection).__name__ == "Conv1D" and hasattr(projection, "nf"):
        return int(projection.get_parameter("weight").shape[0])
    return None


def _first_count(owner: Any, names: tuple[str, ...], layer: object) -> int | None:
    """The first of ``names`` that ``owner`` has as a positive int, or as a list of them by layer."""
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, list | tuple) and isinstance(layer, int) and layer < len(value):
            value = value[layer]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
