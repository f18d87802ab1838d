"""Generation with edits in force at every step, cached or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.edits.base import Edit, Phase
from interp.errors import BadInput, NotFinite
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import output_embeddings
from interp.model.run import check_edits, prepared_edits
from interp.model.scopes import evaluating, removing
from interp.model.session import Session


@dataclass(frozen=True, eq=False)
class Generation:
    """What was generated.

    Attributes:
        sequences: ``[batch, pos]`` as ``hf.generate`` returns them: prompt and new tokens (the decoder's alone in an
            encoder-decoder).
        new_tokens: ``[batch, pos]`` the new tokens alone.
        texts: the new tokens as text, special tokens left out; empty without a tokenizer.
        output: what ``hf.generate`` returned.
    """

    sequences: Tensor
    new_tokens: Tensor
    texts: tuple[str, ...]
    output: Any

    def __repr__(self) -> str:
        return f"Generation({list(self.new_tokens.shape)} new tokens{': ' + repr(self.texts[0]) if self.texts else ''})"


def generate(
    model: Model, batch: Batch, edits: Iterable[Edit] = (), *, phase: Phase = "both", **generate_keywords: Any
) -> Generation:
    """What the model generates after ``batch``, with ``edits`` in force.

    Args:
        model: the handle.
        batch: the prompts; where lengths differ, encoded with ``padding_side="left"``.
        edits: as in :func:`interp.run`. An edit applies to every row of its phase, recomputed or cached; edits of k and
            v apply to the same absolute keys at every step; noise depends on absolute positions, not on steps.
        phase: rows that edits without a phase of their own apply to: ``"prefill"`` those before the first generated
            token, ``"decode"`` those from it on, or ``"both"``.
        **generate_keywords: of ``hf.generate`` (``max_new_tokens``, ``do_sample``, ``use_cache``, ``num_beams`` ...).

    Without edits this is ``hf.generate``, token for token. Cached and uncached runs agree to rounding.

    Raises:
        BadInput: right-padded prompts of unequal length, an edit whose values end with the prompt, or a decode edit
            with one new token (whose row is the prompt's last).
        NotFinite: NaN or infinity in the last hidden state of a step.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> interp.generate(model, batch, max_new_tokens=2, do_sample=False).new_tokens.shape
        torch.Size([1, 2])
    """
    declared = [edit if phase == "both" or edit.phase != "both" else edit.with_phase(phase) for edit in edits]
    check_edits(declared)
    _refuse(model, batch, declared, generate_keywords)
    inputs = {name: value for name, value in batch.inputs.items() if name not in ("position_ids", "token_type_ids")}
    if "pixel_values" in inputs and "token_type_ids" in batch.inputs:
        inputs["token_type_ids"] = batch.inputs["token_type_ids"]  # a prefix that sees itself both ways
    ready, eager = prepared_edits(model, batch, declared)
    session = Session(model, batch, ready, eager=sorted(eager), prompt=batch.width)
    generator: Any = model.hf
    with evaluating(model.hf), torch.no_grad(), _watching(model, session):
        if ready:
            with session:
                output = generator.generate(**inputs, **generate_keywords)
        else:
            output = generator.generate(**inputs, **generate_keywords)
    session.check_fired()
    sequences = output if isinstance(output, Tensor) else output.sequences
    new = sequences[:, batch.width :] if "input_ids" in inputs else sequences
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True) if model.tokenizer is not None else ()
    return Generation(sequences, new, tuple(texts), output)


def _refuse(model: Model, batch: Batch, edits: list[Edit], keywords: dict[str, Any]) -> None:
    if not model.hf.can_generate():
        raise BadInput(f"generate: {type(model.hf).__name__} does not generate; load the model with its language head.")
    if not bool(batch.mask[:, -1].all()):
        raise BadInput(
            f"generate: prompts of unequal length ({batch.lengths}) are padded on the right; encode them with "
            "padding_side='left'."
        )
    start = getattr(model.hf.generation_config, "decoder_start_token_id", None)
    shifted = edits and "decoder_input_ids" in batch.inputs and start is not None
    if (
        shifted
        and model.hf.config.model_type != "whisper"
        and bool((batch.inputs["decoder_input_ids"][:, 0] != start).all())
    ):
        raise BadInput(
            f"generate: the decoder's prompts do not begin with its start token {start}, which generate() would put "
            "before them, so that the positions of edits would be off by one. Encode them with it: "
            "decoder= ids that begin with it."
        )
    for edit in edits:
        if edit.prompt_only and edit.phase != "prefill":
            raise BadInput(f"generate: {edit} holds values for the prompt's rows alone; give it phase='prefill'.")
        if edit.phase == "decode" and keywords.get("max_new_tokens") == 1:
            raise BadInput(
                f"generate: {edit} applies from the first generated token on, but one new token is predicted from the "
                "prompt's last row; ask for at least 2."
            )


class _watching:
    """Inside, NaN or infinity in the last hidden state stops the generation."""

    def __init__(self, model: Model, session: Session) -> None:
        self.model, self.session, self.step = model, session, 0

    def __enter__(self) -> None:
        head = output_embeddings(self.model)
        self.scope = None if head is None else removing(head.register_forward_pre_hook(self.look))
        if self.scope is not None:
            self.scope.__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self.scope is not None:
            self.scope.__exit__(None, None, None)

    def look(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        last = args[0][:, -1]
        if not bool(torch.isfinite(last).all()):
            raise NotFinite(
                f"NaN or infinity in the last hidden state at step {self.step} of the generation (edits: "
                f"{self.session.edits}); interp.run on the sequence so far names the layer and site."
            )
        self.step += 1
