"""Pairs of heads: on paper and against one run for each pair."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY

import interp
from interp import At, BadInput, Site


def tiny(name: str) -> tuple[interp.Model, interp.Batch]:
    """A tiny model of a family with a batch that has answers."""
    made = TINY[name]()
    model = interp.load(made.hf, check=False)
    return model, interp.encode(model, inputs=made.inputs(3), answers=[(11, 12), (13, 14), (15, 16)])


def test_two_heads_on_one_path_undo_each_other_on_paper() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 3], [0, 5, 6, 5]]), answers=[(4, 5), (6, 4)])
    pairs = interp.head_pairs(model, batch, ["L0.H0", "L1.H0", "L1.H1"])
    # alone -10, -10, 0; together -10, -10, -10
    np.testing.assert_allclose(pairs.alone.mean(0), [-10, -10, 0], atol=1e-3)
    np.testing.assert_allclose(pairs.together.mean(0), [-10, -10, -10], atol=1e-3)
    np.testing.assert_allclose(pairs.interaction.mean(0), [10, 0, 0], atol=1e-3)
    table = pairs.table()
    assert table.loc[0, ["first", "second"]].tolist() == ["L0.H0", "L1.H0"]
    assert table.loc[0, "value"] == pytest.approx(10, abs=1e-3)
    assert table.loc[0, "low"] == pytest.approx(10, abs=1e-3) == table.loc[0, "high"]
    matrix = pairs.matrix()
    assert np.isnan(np.diag(matrix)).all() and matrix[0, 1] == matrix[1, 0] == pytest.approx(10, abs=1e-3)
    assert "3 heads, 3 pairs, 2 prompts" in repr(pairs)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("method", ["zero", "patch", "mean_of_others"])
def test_pairs_equal_one_run_for_each(family: str, method: str) -> None:
    model, batch = tiny(family)
    source = batch.select([1, 2, 0])
    more: dict[str, Any] = {"source": source} if method == "patch" else {}
    heads = [(0, 0), (0, 2), (1, 1)]
    found = interp.run(model, source, read=[At(Site.Z, layer=layer) for layer in (0, 1)])

    def edits(chosen: tuple[tuple[int, int], ...]) -> list[interp.Edit]:
        made = []
        for layer in (0, 1):
            those = tuple(head for at, head in chosen if at == layer)
            if those:
                where = At(Site.Z, layer=layer, heads=those)
                if method == "zero":
                    made.append(interp.zero(where))
                elif method == "patch":
                    made.append(interp.patch(where, found[where]))
                else:
                    made.append(interp.custom(At(Site.Z, layer=layer), others(those)))
        return made

    def others(those: tuple[int, ...]) -> Any:
        def change(z: torch.Tensor, ctx: Any) -> torch.Tensor:
            rest = [head for head in range(z.shape[2]) if head not in those]
            made = z.clone()
            made[:, :, list(those)] = z[:, :, rest].mean(2, keepdim=True)
            return made

        return change

    def effect(*chosen: tuple[int, int]) -> np.ndarray:
        edited, plain = interp.run(model, batch, edits=edits(chosen)).logits, interp.run(model, batch).logits
        assert edited is not None and plain is not None
        return (interp.logit_difference(edited, batch) - interp.logit_difference(plain, batch)).numpy()

    pairs = interp.head_pairs(model, batch, heads, method, **more)
    expected = [effect(a, b) - effect(a) - effect(b) for a, b in itertools.combinations(heads, 2)]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(pairs.interaction, np.stack(expected, axis=1), atol=5e-5, rtol=5e-4)
    alone = interp.attribute(model, batch, method, heads=heads, **more).per_prompt
    np.testing.assert_allclose(pairs.alone[:, 0], alone[:, 0, 0], atol=2e-5)


def test_held_heads_do_not_hold_what_is_edited() -> None:
    model, batch = tiny("gpt2")
    whole = interp.head_pairs(model, batch, [(0, 1), (1, 1)], freeze="other_heads")
    direct = interp.attribute(model, batch, "zero", freeze="other_heads").per_prompt
    np.testing.assert_allclose(whole.alone[:, 0], direct[:, 0, 1], atol=2e-5)
    assert np.abs(whole.together[:, 0] - whole.alone[:, 0]).max() > 1e-3  # the second head is edited, not held


def test_what_cannot_be_paired_is_refused() -> None:
    model, batch = tiny("gpt2")
    for heads, method, more, words in (
        ([(0, 1)], "zero", {}, "at least two"),
        ([(0, 1), "L0.H1"], "zero", {}, "at least two"),
        ([(0, 1), (1, 1)], "all_but_one", {}, "every head but one"),
        ([(0, 1), (1, 1)], "gradient", {}, "Unknown intervention"),
        ([(0, 1), (1, 9)], "zero", {}, "is not there"),
        ([(0, 1), (1, 1)], "zero", {"by": "position"}, "not offered"),
    ):
        options: dict[str, Any] = more
        with pytest.raises(BadInput, match=words):
            interp.head_pairs(model, batch, heads, method, **options)
