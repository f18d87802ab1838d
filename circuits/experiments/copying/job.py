"""One run of an experiment on copying pairs: the model, the settings, the pairs and the finished pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuits.experiments.copying.config import CopyingConfig
from circuits.experiments.copying.pairs import CopyingPairs, copying_pairs
from circuits.experiments.opening import open_model, refuse_unless_causal
from circuits.experiments.pieces import Pieces
from circuits.outcome import Workplace
from circuits.progress import Progress
from interp.address import Head

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model

FEWEST_REFERENCES = 8  # prompts that a mean is taken over at least


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        model: the handle.
        about: what the manifest says about the model.
        config: the settings.
        pieces: what is finished.
        progress: told about every stage.
        selection: pairs that heads are chosen on.
        evaluation: pairs that they are judged on, independent of the former.
        reference: pairs whose clean prompts replaced outputs are taken from, independent of both.
    """

    model: Model
    about: dict[str, Any]
    config: CopyingConfig
    pieces: Pieces
    progress: Progress
    selection: CopyingPairs
    evaluation: CopyingPairs
    reference: CopyingPairs

    @property
    def reference_batch(self) -> Batch:
        """The clean prompts of the reference pairs."""
        return self.reference.clean_batch(self.model)

    def layers(self) -> Iterable[tuple[int, list[Head]]]:
        """Every layer that has heads, with them."""
        heads = self.model.heads()
        for layer in sorted({head.layer for head in heads}):
            yield layer, [head for head in heads if head.layer == layer]


def copying_job(config: CopyingConfig, place: Workplace, version: str) -> Job:
    """The run that the settings ask for, with its model loaded and its pairs drawn.

    Args:
        config: the settings.
        place: the folder, its finished units, and the progress.
        version: the kind of experiment and the version of its arithmetic, ``"attribution/1"``.

    Raises:
        LoadFailed: the model cannot be read.
        BadInput: prompts longer than the context, a vocabulary too small, attention to later tokens.
    """
    opened = open_model(config, place)
    half = config.n_prompts // 2
    numbers = {"selection": half, "evaluation": config.n_prompts - half, "reference": max(half, FEWEST_REFERENCES)}
    pairs = {
        purpose: copying_pairs(opened.model, n=n, segment=config.segment, seed=config.seed, purpose=purpose)
        for purpose, n in numbers.items()
    }
    refuse_unless_causal(opened.model, pairs["selection"].select(slice(0, 1)).clean_batch(opened.model))
    return Job(
        model=opened.model,
        about=opened.about,
        config=config,
        pieces=Pieces(place.units, version, opened.fingerprint, config.batch_size, config.seed),
        progress=place.progress,
        **pairs,
    )
