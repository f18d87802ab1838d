"""A metric of many changed prompts, run in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.run import Metric, run
from interp.model.sweep import logits_for, metric_values, needs_own_baseline, out_of_memory, tokens_at_once

# prompts, and for each the sources that go -> (which of them, the changed prompts), as many parts as are needed
Change = Callable[[Batch, Tensor], Generator[tuple[Tensor, Batch], None, None]]
_LOGITS = 2**27  # numbers in the logits of one forward


@dataclass(eq=False)
class ChangedPrompts:
    """A metric of prompts from which some sources were taken away, all variants of all prompts together.

    Attributes:
        model: the handle.
        batch: the prompts.
        metric: a number per prompt, or several.
        change: makes changed prompts.
        width: positions of one prompt, by which the size of a forward is chosen.
        batch_size: prompts in one forward; chosen by their size for None, and halved where memory does not suffice.
        did: told of every forward.
    """

    model: Model
    batch: Batch
    metric: Metric
    change: Change
    width: int
    batch_size: int | None = None
    did: Callable[[int], Any] = lambda forwards: None
    notes: list[str] = field(default_factory=list)

    def values(
        self, members: Bool[Tensor, "variant batch source"]
    ) -> tuple[Float[Tensor, "variant batch *k"], Float[Tensor, "variant batch *k"]]:
        """``[variant, batch]`` the metric without the sources at ``members``, and of the whole prompts.

        (``[variant, batch, k]`` for a metric of several numbers per prompt.)

        A prompt of which a variant takes nothing is not run again. In half precision, whose rounding depends on the
        rows beside a row, whole prompts run in batches of the same make.
        """
        whole = self._whole().cpu()
        values, unedited = (whole.expand(len(members), *whole.shape).clone() for _ in range(2))
        jobs = members.any(-1).nonzero().cpu()  # [job, (variant, prompt)]
        if not _divisible(self.batch):
            for variant in jobs[:, 0].unique().tolist():
                every = torch.arange(len(self.batch))
                values[variant] = self._changed(every, members[variant]).cpu()
            return values, unedited
        paired = needs_own_baseline(self.model)
        start, size = 0, self._size()
        while start < len(jobs):
            part = jobs[start : start + size]
            variant, prompt = part.unbind(-1)
            try:
                found = self._changed(prompt, members[variant, prompt]).cpu()
                own = self._run(self.batch.select(prompt)).cpu() if paired else None
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(part) == 1 or not out_of_memory(error):
                    raise
                size = self.batch_size = len(part) // 2
                self.notes.append(f"Memory did not suffice: it went on with {size} prompts per forward.")
                continue
            values[variant, prompt] = found
            if own is not None:
                unedited[variant, prompt] = own
            start += len(part)
        return values, unedited

    def _whole(self) -> Tensor:
        if not _divisible(self.batch):
            return self._run(self.batch)
        rows = torch.arange(len(self.batch)).split(self._size())
        return torch.cat([self._run(self.batch.select(part)) for part in rows])

    def _changed(self, prompts: Tensor, members: Tensor) -> Tensor:
        batch = self.batch if len(prompts) == len(self.batch) and _in_order(prompts) else self.batch.select(prompts)
        found: Tensor | None = None
        with closing(self.change(batch, members)) as parts:  # a change may hold hooks while its prompts run
            for rows, changed in parts:
                values = self._run(changed)
                if found is None:
                    found = values.new_full((len(prompts), *values.shape[1:]), torch.nan)
                found[rows] = values
        assert found is not None
        return found

    def _run(self, batch: Batch) -> Tensor:
        logits = run(self.model, batch, logits=logits_for(self.metric, self.model)).logits
        self.did(1)
        return metric_values(self.metric, logits, batch).double()

    def _size(self) -> int:
        if self.batch_size is not None:
            return self.batch_size
        fits = tokens_at_once(self.model) // max(1, self.width)
        if logits_for(self.metric, self.model) == "all":
            vocabulary = getattr(self.model.stack().config, "vocab_size", None)
            if isinstance(vocabulary, int):
                fits = min(fits, _LOGITS // max(1, self.width * vocabulary))
        return max(1, fits)


def check_batch_size(name: str, batch_size: object) -> None:
    """Refuse a batch size that is none.

    Raises:
        BadInput: no whole number of at least 1.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise BadInput(f"{name}: batch_size={batch_size!r}; expected how many prompts run in one forward, at least 1.")


def _in_order(prompts: Tensor) -> bool:
    return prompts.tolist() == list(range(len(prompts)))


def _divisible(batch: Batch) -> bool:
    """Whether prompts can be taken apart; images of all prompts that are packed one after the other cannot."""
    try:
        batch.select([0, 0])
    except BadInput:
        return False
    return True
