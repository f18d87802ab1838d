"""Licences: what of a replay is known, by trying it, to give what a whole forward gives on this very model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.recording import BlockId, Recording, attention_at, record
from interp.model.replay import Suffix, replay

_SLICED = frozenset({"input_ids", "attention_mask", "position_ids"})
_ROUNDING, _MOST = 100, 1 / 16  # units of rounding, and share of the largest logit, within which logits agree


@dataclass(frozen=True)
class Licence:
    """What may be left out of a forward.

    Attributes:
        copies: several copies of the batch may stand in one forward.
        replay: blocks below the first edited one may be skipped.
        from_z: blocks whose attention may be skipped where z alone is edited.
        narrow: the last block may go on with the read columns alone.
        prefix: columns left of every change may be taken from recorded keys and values.
        notes: what is not licensed, and why.
    """

    copies: bool = False
    replay: bool = False
    from_z: frozenset[BlockId] = frozenset()
    narrow: bool = False
    prefix: bool = False
    notes: tuple[str, ...] = ()


def licence_of(model: Model, batch: Batch, positions: Tensor | None) -> Licence:
    """What may be left out of forwards of ``batch``: tried once for a model and kind of input, on one prompt.

    A replay of the unedited prompt from every block must give the recorded logits bit for bit. Where fewer rows are
    multiplied at once (copies, chosen columns) it must give them to rounding. While hooks are in force that do more
    than look (``interp.edited``, somebody's own) nothing is licensed: what they change may have been recorded already,
    and they may hold one value per prompt.
    """
    key = licence_key(model, batch, positions)
    if key in model.licences:
        return model.licences[key]
    if hooks_of(model):
        return Licence(
            notes=("One forward per variant: hooks are in force on the model (interp.edited, or somebody's own).",)
        )
    try:
        trial = batch.select([len(batch) - 1])
    except BadInput as error:
        return Licence(notes=(f"One forward per variant: {error}",))
    wanted = None if positions is None else positions[-1:]
    model.licences[key] = _tried(model, trial, wanted)
    return model.licences[key]


def licence_key(model: Model, batch: Batch, positions: Tensor | None) -> Hashable:
    """What a licence is given for: the kind of input and output, how the model runs, and the hooks in force."""
    return (
        frozenset(batch.inputs),
        positions is None,
        positions is not None and int(positions.min()) > 1,
        str(model.dtype),
        model.device.type,
        batch.width > 1,
        bool(batch.mask.all()),
        str(model.stack().config._attn_implementation),
        hooks_of(model),
    )


def hooks_of(model: Model) -> frozenset[int]:
    """The numbers of the forward hooks on the model's modules, those of transformers (which only look) left out."""
    return frozenset(
        number
        for module in model.hf.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for number, hook in hooks.items()
        if not str(getattr(hook, "__module__", "")).startswith("transformers.")
    )


def _tried(model: Model, trial: Batch, read: Tensor | None) -> Licence:
    recording = record(model, trial, read)
    if recording.logits is None:
        return Licence(notes=("One forward per variant: the model gives no logits.",))
    plain = Suffix(read=read)
    licence = Licence(copies=_agrees(model, recording, replace(plain, copies=2)))
    if not licence.copies:
        return replace(licence, notes=("One forward per variant: two copies in one batch give other logits than one.",))
    if not recording.complete:
        return replace(
            licence, notes=("Whole forwards: a block runs more than once, or gives what is not understood.",)
        )
    failed = next(
        (k for k in range(len(recording.order) + 1) if not _exact(model, recording, replace(plain, start=k))), None
    )
    if failed is not None:
        return replace(licence, notes=(f"Whole forwards: a replay from block {failed} gives other logits.",))
    heads = {place: number for number, place in enumerate(recording.order) if attention_at(model, place)}
    from_z = frozenset(
        place for place, number in heads.items() if _exact(model, recording, replace(plain, start=number, from_z=True))
    )
    licence = replace(licence, replay=True, from_z=from_z)
    last = recording.order[-1]
    if read is None or last not in from_z or last.stack != model.default_stack:
        return licence
    ends = [replace(plain, start=k, narrow=True, copies=2) for k in {0, len(recording.order) - 1}]
    ends.append(replace(ends[-1], start=len(recording.order) - 1, from_z=True))
    licence = replace(licence, narrow=all(_agrees(model, recording, suffix) for suffix in ends))
    return replace(licence, prefix=_prefix_holds(model, trial, plain, licence))


def _prefix_holds(model: Model, trial: Batch, plain: Suffix, licence: Licence) -> bool:
    if len(model.stacks) > 1 or not model.stack().causal or not set(trial.inputs) <= _SLICED:
        return False
    recording = record(model, trial, plain.read, cache=True)
    if not keeps_every_key(recording):
        return False
    assert plain.read is not None
    column, end = int(plain.read.min()) // 2, len(recording.order)
    tries = [
        Suffix(start=start, copies=2, column=column, read=plain.read, narrow=licence.narrow, from_z=from_z,
               changed=(column, column) if from_z else None)
        for start in {0, end // 2}
        for from_z in (False, True)
        if not from_z or recording.order[start] in licence.from_z
    ]  # fmt: skip
    return column > 0 and all(_agrees(model, recording, suffix) for suffix in tries)


def keeps_every_key(recording: Recording) -> bool:
    """Whether the recorded cache is a plain list of keys and values of every column."""
    layers = getattr(recording.cache, "layers", None)
    width = recording.batch.width
    return bool(layers) and all(
        type(layer).__name__ == "DynamicLayer" and layer.keys is not None and layer.keys.shape[2] == width
        for layer in layers
    )


def _logits(model: Model, recording: Recording, suffix: Suffix) -> Tensor | None:
    """What a trial gives, ``None`` where it fails: a model that cannot be replayed says so in many ways."""
    try:
        return replay(model, recording, suffix)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError, StopIteration):
        return None


def _exact(model: Model, recording: Recording, suffix: Suffix) -> bool:
    made = _logits(model, recording, suffix)
    return made is not None and recording.logits is not None and torch.equal(made, recording.logits)


def _agrees(model: Model, recording: Recording, suffix: Suffix) -> bool:
    made, expected = _logits(model, recording, suffix), recording.logits
    if made is None or expected is None or made.shape != (suffix.copies * expected.shape[0], *expected.shape[1:]):
        return False
    share = min(_ROUNDING * torch.finfo(expected.dtype).eps, _MOST)  # many roundings of half precision are no rounding
    near = share * float(expected.float().abs().max().clamp(min=1))
    expected = expected.repeat(suffix.copies, *[1] * (expected.ndim - 1))
    return bool((made.float() - expected.float()).abs().max() <= near)
