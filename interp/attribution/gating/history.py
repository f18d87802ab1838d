"""What was seen along the fits: losses, gates and how decided they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.attribution.gating.descent import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, eq=False)
class History:
    """Numbers before each update, by fit and seed; NaN after a fit that was stopped early.

    Attributes:
        fits: names of the fits, in the order of the first axis.
        loss, nll: ``[fit, update, seed]`` with and without the regulariser, in nats.
        mean: ``[fit, update, seed]`` of the gates over heads.
        entropy: ``[fit, update, seed]`` mean over heads of the entropy of each gate in nats: 0 where all are decided.
        gates: ``[fit, kept, seed, layer, head]`` the gates at the updates ``kept_at``.
        kept_at: which updates those are.
    """

    fits: tuple[str, ...]
    loss: Float[np.ndarray, "fit update seed"]
    nll: Float[np.ndarray, "fit update seed"]
    mean: Float[np.ndarray, "fit update seed"]
    entropy: Float[np.ndarray, "fit update seed"]
    gates: Float[np.ndarray, "fit kept seed layer head"]
    kept_at: Int[np.ndarray, " kept"]

    @classmethod
    def of(cls, traces: Mapping[str, tuple[Trace, Sequence[int]]]) -> History:
        """The history made of each fit's trace and its columns among the trace's masks."""
        longest = max(len(trace.loss) for trace, _ in traces.values())
        kept_at = max((trace.kept_at for trace, _ in traces.values()), key=len)

        def rows(name: str, length: int) -> np.ndarray:
            return np.stack([_padded(getattr(trace, name), masks, length) for trace, masks in traces.values()])

        numbers = {name: rows(name, longest) for name in ("loss", "nll", "mean", "entropy")}
        return cls(tuple(traces), **numbers, gates=rows("kept", len(kept_at)), kept_at=np.array(kept_at, dtype=int))

    def table(self) -> pd.DataFrame:
        """One row per fit, update and seed (numbered as in the fit): loss, nll, mean, entropy."""
        index = np.indices(self.loss.shape)
        columns = {"fit": np.array(self.fits, dtype=object)[index[0].ravel()], "update": index[1].ravel()}
        columns |= {"seed": index[2].ravel()}
        columns |= {name: getattr(self, name).ravel() for name in ("loss", "nll", "mean", "entropy")}
        return pd.DataFrame(columns)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "fits"}


def _padded(items: list, masks: Sequence[int], length: int) -> np.ndarray:
    found = np.stack([item.numpy()[list(masks)] for item in items])
    made = np.full((length, *found.shape[1:]), np.nan, dtype=np.float32)
    made[: len(found)] = found
    return made
