"""``HeadsTraced``: what a trace says of each head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HeadsTraced:
    """What a trace says of each head, per stack and layer.

    Attributes:
        values: stack -> block index -> ``[batch, head]``.
        metadata: what a reader should know; JSON.
    """

    values: Mapping[str, Mapping[int, Float[Tensor, "batch head"]]]
    metadata: Mapping[str, Any] = field(default_factory=dict)
