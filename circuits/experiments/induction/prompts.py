"""Natural prompts of the induction experiment, each said twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.repeated import Repeated, context_length
from interp.scores.prompts import start_token

if TYPE_CHECKING:
    from interp.model.load import Model


def natural_prompts(model: Model, texts: Sequence[str]) -> tuple[list[Repeated], list[str]]:
    """One prompt for each text, said twice, and a note for each that had to be changed or left out.

    Words that the tokenizer does not know are dropped, and the note says how many.

    Args:
        model: with a tokenizer.
        texts: natural sentences.
    """
    if model.tokenizer is None:
        return [], ["Natural prompts were left out: the model came without a tokenizer."] if texts else []
    start, prompts, notes = start_token(model), [], []
    unknown_id = model.tokenizer.unk_token_id
    for text in texts:
        ids = [int(token) for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        known = [token for token in ids if token != unknown_id]
        if len(known) < len(ids):
            dropped = len(ids) - len(known)
            notes.append(
                f"{dropped} of {len(ids)} tokens of {_shown(text)} are unknown to the tokenizer and were dropped."
            )
        if len(known) < 4:  # noqa: PLR2004 - nothing to repeat
            notes.append(f"{_shown(text)} was left out: {len(known)} known tokens are too few.")
            continue
        known = known[: (context_length(model) - 1) // 2]
        row = [*([start] if start is not None else []), *known, *known]
        prompts.append(Repeated(np.array([row], dtype=np.int64), int(start is not None), len(known)))
    return prompts, notes


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")  # noqa: PLR2004 - columns in a note
