"""Frames of a spectrogram covered, those that one position of the encoder is made of together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import run
from interp.names import lookup
from interp.tracing.occlusion.pixels import Fill, blurred

FRAME_FILLS = {
    "mean": "each frequency's own mean over the frames of its sound",
    "zero": "0 in what the model is given",
    "blur": "the spectrogram blurred by a Gaussian whose standard deviation is a position's frames",
}
_AXES = 3  # of a spectrogram: batch, frequency, frame


@dataclass(frozen=True, eq=False)
class SoundFrames:
    """How frames are covered.

    Attributes:
        size: positions of the encoder.
        step: frames of one position.
        fill: what is put in: a name of ``FRAME_FILLS``, or a number.
        keyword: the input that holds the spectrogram.
    """

    size: int
    step: int
    fill: Fill
    keyword: str = "input_features"

    def covered(
        self, sounds: Float[Tensor, "batch frequency frame"], cells: Bool[Tensor, "batch cell"]
    ) -> Float[Tensor, "batch frequency frame"]:
        """The spectrograms with the frames of the positions at ``cells`` covered."""
        inside = cells.to(sounds.device).repeat_interleave(self.step, -1)[:, None]
        return torch.where(inside, self._filling(sounds), sounds)

    def _filling(self, sounds: Tensor) -> Tensor:
        if not isinstance(self.fill, str):
            return torch.full_like(sounds, self.fill)
        if self.fill == "zero":
            return torch.zeros_like(sounds)
        if self.fill == "mean":
            return sounds.float().mean(-1, keepdim=True).to(sounds.dtype).expand_as(sounds)
        return blurred(sounds[:, None], float(self.step))[:, 0]


def sound_frames(model: Model, batch: Batch, fill: Fill, *, name: str) -> SoundFrames:
    """How the frames of the sounds in ``batch`` are covered; one forward tells how many positions the encoder has.

    The convolutions before the encoder overlap: a position reads a little of its neighbours' frames.

    Raises:
        UnknownName: another filling.
        Unsupported: no spectrogram whose frames fall evenly to positions.
    """
    if isinstance(fill, str):
        lookup(fill, FRAME_FILLS, "filling of frames (fill=)")
    sounds = batch.inputs.get("input_features")
    if "encoder" not in model.stacks or not isinstance(sounds, Tensor) or sounds.ndim != _AXES:
        raise Unsupported(
            f"{name}: the keys of these prompts are neither tokens, patches nor frames of a spectrogram "
            f"({', '.join(sorted(batch.inputs))}); use 'occlusion', which hides positions."
        )
    at = At(Site.RESID_PRE, 0, stack="encoder")
    size = run(model, batch, [at])[at].shape[1]
    if sounds.shape[-1] % size:
        raise Unsupported(
            f"{name}: {sounds.shape[-1]} frames do not fall evenly to {size} positions of the encoder; use 'occlusion'."
        )
    return SoundFrames(size, sounds.shape[-1] // size, fill)
