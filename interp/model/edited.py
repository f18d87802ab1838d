"""The plain Hugging Face object with edits in force, for foreign code: pipelines, evaluation harnesses, own loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import transformers

from interp.edits.base import Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import check_edits, prepared_edits
from interp.model.session import Session


@contextmanager
def edited(
    model: Model, edits: Iterable[Edit], *, batch: Batch | None = None, prompt: int | None = None
) -> Iterator[transformers.PreTrainedModel]:
    """``model.hf`` itself, with ``edits`` in force inside the ``with`` block.

    Args:
        model: the handle.
        edits: as in :func:`interp.run`.
        batch: the prompts that the foreign code will run, where edits name spans or hold a value per prompt.
        prompt: columns of the prompt; needed by edits with ``phase="prefill"`` or ``"decode"``.

    On leaving, the model is as it was, and an edit that never fired is an error.

    Raises:
        BadInput: an edit that needs the batch or the prompt's width, which were not given.
        EditDidNotFire: the block ended without an error, and some edit's site was never reached.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> with interp.edited(model, [interp.zero(interp.At("z", layer=1))]) as hf:
        ...     logits = hf(torch.tensor([[0, 3, 4, 3]])).logits
    """
    declared = list(edits)
    check_edits(declared)
    if prompt is None:
        for edit in declared:
            if edit.phase != "both":
                raise BadInput(
                    f"edited: {edit} has phase={edit.phase!r}; say with prompt= how many columns the prompt has."
                )
    if batch is None:
        for edit in declared:
            if edit.name in ("mean-self", "resample", "freeze_pattern"):
                raise BadInput(f"edited: {edit} is made from the prompts; give batch=.")
    ready, eager = prepared_edits(model, batch, declared)
    session = Session(model, batch, ready, eager=sorted(eager), prompt=prompt)
    with session:
        yield model.hf
    session.check_fired()
