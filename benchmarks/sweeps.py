"""Patching every head, whole and by position, against transformer-lens's own sweeps. GPT-2 small's shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from command import Action, Settings, main
from lines import Line
from models import bridge_of, gpt2_124m, random_ids
from pairs import median_interval, ratio, time_rounds
from torch import Tensor

import interp

PROMPTS, LENGTH = 4, 24
ANSWERS = (17, 42)
COPIES = 6  # of the prompts in one forward of the bound, as the sweep chooses them


class Sweeps:
    """One set of weights, clean and corrupted prompts that differ after their first token, both libraries."""

    def __init__(self, settings: Settings) -> None:
        self.bridge: Any = bridge_of(gpt2_124m(settings.quick))
        self.network = gpt2_124m(settings.quick)
        self.model = interp.load(self.network, check=False)
        self.clean_ids = random_ids(self.network, PROMPTS, LENGTH)
        self.corrupted_ids = self.clean_ids.clone()
        self.corrupted_ids[:, 1:] = self.corrupted_ids[:, 1:] * 7 % self.network.config.vocab_size
        answers = torch.tensor([ANSWERS] * PROMPTS)
        self.clean = interp.encode(self.model, self.clean_ids, answers=answers)
        self.corrupted = interp.encode(self.model, self.corrupted_ids, answers=answers)
        with torch.no_grad():
            _, self.cache = self.bridge.run_with_cache(self.clean_ids)
        unedited = interp.run(self.model, self.corrupted, logits="answers").logits
        assert unedited is not None
        self.base = interp.logit_difference(unedited, self.corrupted).mean()
        self.layers, self.heads = self.network.config.n_layer, self.network.config.n_head

    def ours(self) -> Tensor:
        """``[layer, head]`` the logit difference with each head patched at all positions."""
        found = interp.attribute(self.model, self.corrupted, "patch", source=self.clean)
        return torch.from_numpy(found.values).float() + self.base

    def ours_by_position(self) -> Tensor:
        """``[layer, pos, head]`` the same with one position patched at a time."""
        found = interp.attribute(self.model, self.corrupted, "patch", source=self.clean, by="position")
        return torch.from_numpy(found.values).float().transpose(1, 2) + self.base

    def theirs(self) -> Tensor:
        """What :meth:`ours` gives, by transformer-lens."""
        from transformer_lens import patching

        with torch.no_grad():
            return patching.get_act_patch_attn_head_out_all_pos(
                self.bridge, self.corrupted_ids, self.cache, self._metric
            )

    def theirs_by_position(self, layer: int) -> Tensor:
        """``[pos * head]`` one layer of what :meth:`ours_by_position` gives, by transformer-lens."""
        from transformer_lens import patching

        rows = [(layer, column, head) for column in range(LENGTH) for head in range(self.heads)]
        with torch.no_grad():
            return patching.generic_activation_patch(
                self.bridge, self.corrupted_ids, self.cache, self._metric,
                patch_setter=patching.layer_pos_head_vector_patch_setter, activation_name="z",
                index_df=pd.DataFrame(rows, columns=["layer", "pos", "head"]),
            )  # fmt: skip

    def unavoidable(self) -> None:
        """The arithmetic that no sweep of single heads can leave out: the MLP of the edited block, every block between,
        and queries, keys and values of the last one; on as many copies at once as the sweep takes."""
        blocks = self.network.transformer.h
        hidden = torch.randn(COPIES * PROMPTS, LENGTH, self.network.config.n_embd)
        with torch.no_grad():
            for _ in range(self.heads // COPIES):
                for layer in range(self.layers - 1):
                    blocks[layer].mlp(blocks[layer].ln_2(hidden))
                    for block in blocks[layer + 1 : -1]:
                        block(hidden)
                    blocks[-1].attn.c_attn(blocks[-1].ln_1(hidden))

    def _metric(self, logits: Tensor) -> Tensor:
        return (logits[:, -1, ANSWERS[0]] - logits[:, -1, ANSWERS[1]]).mean()


def timed(action: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """How long one call takes, and what it gives."""
    begin = time.perf_counter()
    found = action()
    return time.perf_counter() - begin, found


def measure(settings: Settings) -> list[Line]:
    """Whole heads in pairs; by position, one layer of the rival's in every round, scaled to all layers."""
    sweeps = Sweeps(settings)
    torch.testing.assert_close(sweeps.ours(), sweeps.theirs(), atol=1e-5, rtol=1e-5)
    actions: dict[str, Action] = {"ours": sweeps.ours, "theirs": sweeps.theirs, "unavoidable": sweeps.unavoidable}
    times = time_rounds(actions, rounds=min(settings.rounds, 7), warmups=1)
    middle = {name: median_interval(values).median for name, values in times.items()}
    where = f"{sweeps.layers} layers x {sweeps.heads} heads, {PROMPTS} prompts x {LENGTH} tokens"
    lines = [
        Line(f"bridge, every head patched at all positions / sweep, {where}", ratio(times, "theirs", "ours"), "x",
             "at least", 3.0, f"{middle['ours']:.1f} s; bridge {middle['theirs']:.1f} s"),
        Line("the same sweep / the block forwards that it cannot avoid", ratio(times, "ours", "unavoidable"), "x",
             "at most", 1.3, f"{middle['unavoidable']:.1f} s of block forwards"),
    ]  # fmt: skip
    pairs = []
    for layer in (0, sweeps.layers // 2, sweeps.layers - 1):
        ours, found = timed(sweeps.ours_by_position)
        theirs, expected = timed(partial(sweeps.theirs_by_position, layer))
        torch.testing.assert_close(found[layer].flatten(), expected, atol=1e-5, rtol=1e-5)
        pairs.append((sweeps.layers * theirs, ours))
    both = [median_interval(values).median for values in zip(*pairs, strict=True)]
    lines.append(
        Line("bridge, every head patched by position / sweep (bridge timed on 3 layers and scaled)",
             median_interval([theirs / ours for theirs, ours in pairs]), "x", "at least", 6.0,
             f"{both[1]:.0f} s; bridge {both[0]:.0f} s")
    )  # fmt: skip
    return lines


if __name__ == "__main__":
    main(__file__, measure)
