"""Pattern tests from the answer's row of the prompts given: movers, suppression, retrieval, and named spans."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.scores.labels.masses import ColumnMasses
from interp.scores.labels.reading import PatternReading, Setup, mean_over_prompts

_ORDERS = 99  # random orders of the prompts: they cost no forward


def name_mover(setup: Setup) -> PatternReading:
    """Attention from the answer's row to earlier copies of the right answer, where induction would not look.

    Keys that follow an earlier copy of the row's own token are left out. The null gives each prompt the places of
    another one: a head that looks at the same place in every prompt gets as much there.
    """
    ids, _ = _tokens(setup)
    copies = _copies(setup, right=True) & ~_after_copies(setup.prompts, ids)
    return _reassigned(setup, copies, "the right answer stands before, where induction would not look")


def suppression(setup: Setup) -> PatternReading:
    """Attention from the answer's row to earlier copies of the wrong answers; the null is as for movers."""
    return _reassigned(setup, _copies(setup, right=False), "a wrong answer stands before")


def retrieval(setup: Setup) -> PatternReading:
    """Attention from the answer's row to the right answer inside the span ``needle``; the null is as for movers."""
    inside = _copies(setup, right=True) & setup.prompts.spans["needle"].to(setup.prompts.mask.device)
    return _reassigned(setup, inside, "the right answer stands in the span 'needle'")


def context(setup: Setup) -> PatternReading:
    """Attention from the answer's row to the span ``context``; the null is as for movers."""
    return _of_span(setup, "context")


def content_gatherer(setup: Setup) -> PatternReading:
    """Attention from the answer's row to the span ``content_gatherer``; the null is as for movers."""
    return _of_span(setup, "content_gatherer")


def subject(setup: Setup) -> PatternReading:
    """Attention from the answer's row to the span ``subject``; the null is as for movers."""
    return _of_span(setup, "subject")


def relation(setup: Setup) -> PatternReading:
    """Attention from the answer's row to the span ``relation``; the null is as for movers."""
    return _of_span(setup, "relation")


def _of_span(setup: Setup, name: str) -> PatternReading:
    batch = setup.prompts
    return _reassigned(setup, batch.spans[name].to(batch.mask.device) & _before(batch), f"the span {name!r} is named")


def _reassigned(setup: Setup, wanted: Bool[Tensor, "batch pos"], what: str) -> PatternReading:
    batch = setup.prompts
    if not bool(wanted.any()):
        raise BadInput(f"{setup.name}: in no prompt {what}.")
    generator = setup.generator()
    orders = [torch.randperm(len(batch), generator=generator) for _ in range(_ORDERS)]
    columns = torch.stack([wanted, *(places_of_others(batch, wanted, order) for order in orders)], dim=-1)
    own_row = read_rows(batch)
    counted = own_row[..., None] & columns.any(1)[:, None]

    found = setup.read(batch, lambda ask, some: ColumnMasses(ask, columns[some].float(), counted[some]))
    different = {tuple(_placed(batch, wanted, row).tolist()) for row in range(len(batch))} - {()}
    about = (
        "The wanted places are the same in every prompt: place and content cannot be told apart."
        if len(different) == 1
        else ""
    )
    null = np.moveaxis(mean_over_prompts(found[..., 1:]), -1, 0)
    return PatternReading(found[..., 0], null, setup.labels, about)


def places_of_others(batch: Batch, wanted: Bool[Tensor, "batch pos"], order: Tensor) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` the wanted places of the prompts in another order, counted from each prompt's first token.

    Places that lie at or behind the answer's row of the prompt that they are given to are dropped.
    """
    made = torch.zeros_like(wanted)
    for row, other in enumerate(order.tolist()):
        places = _placed(batch, wanted, other)
        own = batch.mask[row].nonzero().flatten()
        made[row, own[places[places < len(own)]]] = True
    return made & _before(batch)


def read_rows(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at the row that predicts the answer."""
    columns = torch.arange(batch.width, device=batch.mask.device)
    return columns == batch.read_at.to(batch.mask.device)[:, None]


def _before(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at the real tokens before the answer's row."""
    columns = torch.arange(batch.width, device=batch.mask.device)
    return batch.mask & (columns < batch.read_at.to(batch.mask.device)[:, None])


def _placed(batch: Batch, wanted: Bool[Tensor, "batch pos"], row: int) -> Tensor:
    """Which of a prompt's own tokens are wanted, counted from its first."""
    return wanted[row][batch.mask[row]].nonzero().flatten()


def _copies(setup: Setup, *, right: bool) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at earlier copies of the right answer, or of the wrong ones."""
    ids, answers = _tokens(setup)
    chosen = answers[:, :1] if right else answers[:, 1:]
    same = (ids[:, :, None] == chosen[:, None, :]) & (chosen >= 0)[:, None, :]
    return same.any(-1) & _before(setup.prompts)


def _after_copies(batch: Batch, ids: Tensor) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at tokens that follow an earlier copy of the token at the answer's row."""
    own = ids.gather(1, batch.read_at.to(ids.device)[:, None])
    follows = torch.zeros_like(batch.mask)
    follows[:, 1:] = (ids == own)[:, :-1] & batch.mask[:, :-1]
    return follows


def _tokens(setup: Setup) -> tuple[Tensor, Tensor]:
    batch = setup.prompts
    if batch.ids is None or batch.answers is None:
        raise BadInput(f"{setup.name}: it compares token ids with the answers; give prompts of texts or ids.")
    return batch.ids, batch.answers.to(batch.ids.device)
