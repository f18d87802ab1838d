"""What one address saw, and how a tensor is cut to an address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.address import At, Site


@dataclass
class Reading:
    """What one address saw: by layer, the value and (for gradients) the tensor on the path."""

    at: At
    stack: str
    layers: tuple[int, ...]
    columns: Tensor | None  # [batch, k] where the address names positions
    values: dict[int, Tensor] = field(default_factory=dict)
    nodes: dict[int, list[Tensor]] = field(default_factory=dict)  # several where a packed layer is called per image

    def gradient(self, layer: int, parts: Sequence[Tensor]) -> Tensor:
        """The gradient at this address, from the gradients of the nodes it was read from at ``layer``."""
        whole = parts[0]
        for part in parts[1:]:
            whole = stitch(whole, part, self.at.site, blank=0.0)
        if whole.ndim == 2:  # noqa: PLR2004 - rows of all prompts, one after the other
            whole = whole.view(self.values[layer].shape[0], -1, whole.shape[-1])
        if self.at.site is Site.RESULT:  # each head's result enters the sum with weight one
            n_heads = self.values[next(iter(self.values))].shape[2] if self.at.heads is None else max(self.at.heads) + 1
            whole = whole.unsqueeze(2).expand(-1, -1, n_heads, -1)
        return select(whole, self.at.site, self.at.heads, self.columns)


def select(x: Tensor, site: Site, heads: Sequence[int] | None, columns: Tensor | None) -> Tensor:
    """``x`` in a site's axes, cut to some heads and to ``columns [batch, k]`` of its positions (or query rows)."""
    axes = site.axes
    if heads is not None:
        x = x.index_select(axes.index("head"), head_index(heads, x))
    if columns is None:
        return x
    axis = axes.index("query" if "query" in axes else "pos")
    columns = columns.to(x.device)
    if bool((columns == columns[:1]).all()):
        return x.index_select(axis, columns[0])
    shape = [1] * x.ndim
    shape[0], shape[axis] = columns.shape
    size = list(x.shape)
    size[axis] = columns.shape[1]
    return torch.gather(x, axis, columns.view(shape).expand(size))


def head_index(heads: Sequence[int], x: Tensor) -> Tensor:
    """``heads`` as an index on the device of ``x``."""
    return torch.tensor(tuple(heads), device=x.device)


def stitch(before: Tensor, part: Tensor, site: Site, blank: float) -> Tensor:
    """Packed rows, image after image: vectors follow one another, maps lie on the diagonal, ``blank`` beside it."""
    if "query" not in site.axes:
        return torch.cat([before, part], dim=1)
    q, k = before.shape[-2], before.shape[-1]
    whole = before.new_full((*before.shape[:-2], q + part.shape[-2], k + part.shape[-1]), blank)
    whole[..., :q, :k], whole[..., q:, k:] = before, part
    return whole
