"""One fit against the authors' package (nam-causal-head-gating), on the same prompts from the same gates.

Only its masks are compared: its taxonomy has the two signs of lambda the wrong way round.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import interp
from interp.zoo.repeats import evaluation_rows

package = pytest.importorskip("causal_head_gating")


@contextmanager
def float32() -> Iterator[None]:
    """The package runs under bfloat16 autocast on a CPU; a dtype that autocast does not know turns that off."""
    before = torch.get_autocast_dtype("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.set_autocast_dtype("cpu", torch.float32)
            yield
        finally:
            torch.set_autocast_dtype("cpu", before)


@pytest.mark.parametrize(
    "schedule, rates", [("paper", ((0.1, 0.01), (0.5, 0.1))), ("code", ((1.0, None), (1.0, None)))]
)
def test_the_masks_of_every_fit_are_those_of_the_package(
    schedule: str, rates: tuple[tuple[float, float | None], ...]
) -> None:
    updates, n_prompts, length = 6, 3, 6
    model = interp.load("induction")
    ids = evaluation_rows(n_prompts, length=length)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, length + 2 :] = True
    mask[0, -2:] = False  # another number of targets in each prompt
    data = package.MaskedSequenceDataset(pad_token_id=-1, input_ids=ids, loss_masks=mask)
    (warm, warm_end), (signed, signed_end) = rates
    trainer = package.CHGTrainer(
        model.hf, data, num_masks=1, batch_size=n_prompts, lr=warm, lr_end=warm_end, lr_reg=signed,
        lr_reg_end=signed_end, device="cpu",
    )  # fmt: skip
    start = trainer.mask_logits.detach().sigmoid().numpy().copy()
    with float32():
        for _ in trainer.fit(updates, updates, verbose=False):
            pass
    for parameter in model.hf.parameters():
        parameter.grad = None  # the package leaves gradients of every weight behind
    batch = interp.encode(model, ids, spans={"loss": mask})
    ours = interp.fit_gates(model, batch, seeds=1, updates=updates, init=start, schedule=schedule)  # type: ignore[arg-type]
    theirs = trainer.get_final_masks()
    for mine, name in ((ours.warm, "unregularized"), (ours.retain, "necessary"), (ours.remove, "sufficient")):
        np.testing.assert_allclose(mine, theirs[name].numpy(), atol=2e-3, err_msg=name)
    assert np.abs(ours.retain - ours.remove).max() > 0.1
