"""The kinds of experiment; a named experiment is a kind with the settings of one file in ``configs/``.

This table is data: reading it imports neither torch nor the experiments.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Experiment:
    """A kind of experiment.

    Args:
        summary: one line.
        measures: what it measures, a few sentences.
        needs: what it needs of the model, the machine and the user.
        writes: what it leaves in its folder.
        config: ``"module:Class"`` of its typed settings.
        run: ``"module:function"`` that does it, ``(config, workplace) -> Outcome``.
    """

    summary: str
    measures: str
    needs: str
    writes: str
    config: str
    run: str

    def load_config_class(self) -> Any:
        """The class of its settings; imports no torch."""
        return _load(self.config)

    def load_run(self) -> Any:
        """The function that does it; imports torch."""
        return _load(self.run)


EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        "induction": Experiment(
            summary="Which heads look one token back, which complete repeated text, and what breaks without them.",
            measures=(
                "On random tokens said twice and on natural text: the previous-token, duplicate-token, induction, "
                "prefix-matching and copying score of every head; how much better the model predicts the second "
                "time than the first; the loss when each head is ablated alone; the loss when the heads that "
                "mattered most on one half of the prompts are ablated together on the other half, against random "
                "heads of the same layers; the same with every attention pattern held still; and, where the model "
                "keeps checkpoints, when in training the heads appeared."
            ),
            needs=(
                "Any decoder of the Hugging Face library whose attention patterns can be read. With patterns that "
                "can be read and not edited, the part with patterns held still is left out and the report says so."
            ),
            writes=(
                "report.html, heads.parquet (heads.csv without pyarrow), figures/*.json, config.yaml, "
                "manifest.json, summary.json, and units/ from which a stopped run goes on."
            ),
            config="circuits.experiments.induction.config:InductionConfig",
            run="circuits.experiments.induction.run:run",
        ),
    }
)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
