"""The battery, the deception audit, post-hoc explanations, deletion curves, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import tiny_gpt2
from conformance.support import Case
from leaking import LEAK, leaking_model

import interp
from interp import At, Site
from interp.errors import BadInput, UnknownName, Unsupported
from interp.scores.audits.adversarial import Search
from interp.scores.audits.audit import audit_attention
from interp.scores.audits.battery import attention_battery
from interp.scores.audits.deception import deception_audit
from interp.scores.audits.deletion import deletion_curves, foremost
from interp.scores.audits.posthoc import posthoc_audit
from interp.scores.audits.row_edits import even, permuted

CaseOf = Callable[[str], Case]


def answer(model: interp.Model, batch: interp.Batch, edits: list[interp.Edit] | None = None) -> torch.Tensor:
    logits = interp.run(model, batch, edits=edits or [], kernels="eager").logits
    assert logits is not None
    return logits[torch.arange(len(batch)), batch.read_at].softmax(-1)


def test_permutations_keep_the_weights_and_the_hidden_keys() -> None:
    rows, valid = torch.rand(2, 3, 6), torch.ones(2, 3, 6, dtype=torch.bool)
    valid[:, :, 4:] = False
    made = permuted(rows, valid, [7, 8], 0)
    torch.testing.assert_close(made[..., :4].sort(-1).values, rows[..., :4].sort(-1).values)
    assert torch.equal(made[..., 4:], rows[..., 4:]) and not torch.equal(made, rows)
    assert torch.equal(made, permuted(rows, valid, [7, 8], 0)) and not torch.equal(
        made, permuted(rows, valid, [7, 8], 1)
    )
    constant = torch.full((1, 1, 5), 0.2)
    assert torch.equal(permuted(constant, torch.ones(1, 1, 5, dtype=torch.bool), [1], 3), constant)
    flat = even(rows, valid)
    torch.testing.assert_close(flat.sum(-1), rows.sum(-1))
    assert float(flat[0, 0, :4].std()) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_uniform_and_permuted_rows_by_hand(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(2, 6)
    found = attention_battery(case.model, batch, permutations=5, adversarial=False)
    before = answer(case.model, batch)
    for layer, head in ((0, 1), (1, 2)):
        at = At(Site.PATTERN, layer, heads=(head,), pos=-1)
        own = interp.run(case.model, batch, read=[at])[at]
        assert found.largest_weight.per_prompt[:, layer, head] == pytest.approx(own.amax((1, 2, 3)).numpy(), rel=1e-5)
        changed = answer(case.model, batch, [interp.uniform(at)])
        expected = 0.5 * (changed - before).abs().sum(-1)
        np.testing.assert_allclose(found.uniform.per_prompt[:, layer, head], expected, atol=1e-5)
        seen = torch.ones(2, 1, 6, dtype=torch.bool)
        keys = batch.content_keys.tolist()
        each = []
        for draw in range(5):
            order = permuted(own[:, :, 0], seen, keys, draw)
            changed = answer(case.model, batch, [interp.set_pattern(at, order[:, :, None])])
            each.append(0.5 * (changed - before).abs().sum(-1))
        median = torch.stack(each).median(0).values
        np.testing.assert_allclose(found.permutation.per_prompt[:, layer, head], median, atol=1e-5)
    alone = interp.score(case.model, batch, {"x": {"score": "uniform_effect"}})["x"]
    np.testing.assert_allclose(alone.per_prompt, found.uniform.per_prompt, atol=1e-6)


def test_heads_together_at_the_levels_above(case_of: CaseOf) -> None:
    case = case_of("llama")
    batch = case.batch(2, 6)
    for level, layers in (("layer", (1,)), ("all", (0, 1))):
        found = attention_battery(case.model, batch, level=level, permutations=2, adversarial=False, leave_one_out=None)
        assert found.leave_one_out is None and "leave-one-out tau" not in found.tables
        edits = [interp.uniform(At(Site.PATTERN, layer, pos=-1)) for layer in layers]
        expected = 0.5 * (answer(case.model, batch, edits) - answer(case.model, batch)).abs().sum(-1)
        np.testing.assert_allclose(found.uniform.per_prompt[:, 1], expected[:, None].expand(-1, 4), atol=1e-5)


def test_a_head_that_copies_is_not_free_to_look_elsewhere() -> None:
    """Hand-built: the induction head's row cannot change; that of a head that writes nothing can be anything."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3]]), answers=[(4, 5)])
    found = attention_battery(model, batch, permutations=20, adversarial=Search(steps=150, starts=3))
    assert found.adversarial is not None
    free = found.adversarial.values
    silent = found.uniform.values < 1e-6  # at this row: a head whose weights do not matter at all
    assert silent.any() and free[1, 0] < 0.25 < free[silent].min() and free.max() <= math.log(2) + 1e-6
    assert found.permutation.values[1, 0] > 0.5 and found.largest_weight.values[1, 0] > 0.9
    table = found.table()
    assert list(table.label) == ["L0.H0", "L0.H1", "L1.H0", "L1.H1"] and "adversarial JSD" in table
    assert "gradient tau std" in table and "leave-one-out significant" in table


def test_no_change_allowed_leaves_an_injective_model_its_own_weights() -> None:
    model = tiny_gpt2(layers=1)
    batch = interp.encode(model, [[1, 2, 3, 4]], answers=[(6, 7)])
    none = attention_battery(model, batch, permutations=1, adversarial=Search(eps=0.0, steps=20, starts=2)).adversarial
    some = attention_battery(model, batch, permutations=1, adversarial=Search(eps=1.0, steps=60, starts=2)).adversarial
    assert none is not None and some is not None
    assert np.abs(none.values).max() == 0 and some.values.min() > 0.2


def test_a_leak_is_flagged_and_its_way_found() -> None:
    """Token 2 copies token 1 in layer 0, the last row reads token 2 in layer 1: no mass on token 1, all the effect."""
    model = leaking_model()
    batch = interp.encode(model, torch.tensor([LEAK, [0, 3, 0, 0, 0]]))
    assert answer(model, batch).argmax(-1).tolist() == [2, 3]
    found = deception_audit(model, batch, slice(1, 2))
    assert found.flagged.all() and found.largest_mass.max() < 1e-6 and (found.effect > 0.5).all()
    assert np.abs(found.value_weighted_mass.values).max() < 1e-6 and (found.value_effect > 0.5).all()
    assert (found.index > 1000).all()
    expected = answer(model, batch, [interp.knockout(torch.tensor([[True, False, True, True, True]]), slice(1, 2))])
    np.testing.assert_allclose(found.effect, 0.5 * (expected - answer(model, batch)).abs().sum(-1), atol=1e-5)
    # it leaves in layer 0 and is read in layer 1
    np.testing.assert_allclose(found.before[0] > 0.5, [False, True, True])
    np.testing.assert_allclose(found.after[0] > 0.5, [True, True, False])
    assert found.schedule.min() > 0.5
    assert (np.nan_to_num(found.carriers, nan=-1).argmax(1) == 2).all() and np.isnan(found.carriers[:, 1]).all()
    assert np.nanmax(np.delete(found.carriers, 2, axis=1)) < 1e-6
    assert found.table().carrier.tolist() == [2, 2] and len(found.heads()) == 2


def test_tokens_that_do_nothing_and_tokens_that_are_seen_are_not_flagged() -> None:
    model = leaking_model()
    batch = interp.encode(model, torch.tensor([LEAK]))
    idle, seen = deception_audit(model, batch, slice(3, 4)), deception_audit(model, batch, slice(2, 3))
    assert not idle.flagged.any() and idle.effect[0] < 1e-6
    assert not seen.flagged.any() and seen.effect[0] > 0.5 and seen.largest_mass[0] > 0.99


def test_mass_is_the_attention_on_the_tokens(case_of: CaseOf) -> None:
    case = case_of("llama")
    batch = interp.encode(case.model, [[11, 12, 13, 14, 15, 16], [21, 22, 23, 24]], padding_side="left")
    found = deception_audit(case.model, batch, slice(1, 3))
    at = At(Site.PATTERN)
    patterns = interp.run(case.model, batch, read=[at])[at]
    for row in range(2):
        columns = batch.mask[row].nonzero().flatten()[1:3]
        np.testing.assert_allclose(
            found.mass.per_prompt[row], patterns[:, row, :, -1][..., columns].sum(-1), rtol=1e-5, atol=1e-6
        )
    alone = deception_audit(case.model, interp.encode(case.model, [[21, 22, 23, 24]]), slice(1, 3))
    for name in ("effect", "value_effect", "delete_effect"):
        assert getattr(found, name)[1] == pytest.approx(getattr(alone, name)[0], abs=1e-4), name
    np.testing.assert_allclose(found.schedule[1], alone.schedule[0], atol=1e-4)


def test_deletion_in_the_right_order_falls_faster() -> None:
    model = leaking_model()
    batch = interp.encode(model, torch.tensor([LEAK]), answers=[2])
    right = torch.tensor([[0.0, 2.0, 1.0, 0.0, 0.0]])
    curves = deletion_curves(model, batch, {"right": right, "wrong": -right}, shares=(0, 0.25, 0.5, 1))
    areas = curves.area()
    assert areas["right"][0] < areas["wrong"][0]
    assert curves.values["right"][0, 0] == curves.values["wrong"][0, 0] == pytest.approx(math.log(0.9517), abs=1e-3)
    assert curves.values["right"][0, -1] == pytest.approx(curves.values["wrong"][0, -1], abs=1e-5)  # all are hidden
    assert len(curves.table()) == 8
    assert foremost(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[True, True, True]]), 0.34).tolist() == [
        [True, False, False]
    ]


def test_posthoc_tables_are_the_scores(case_of: CaseOf) -> None:
    case = case_of("llama")
    batch = interp.encode(case.model, [[11, 12, 13, 14, 15, 16]], answers=[(5, 6)])
    found = posthoc_audit(case.model, batch, ["value_aware", "gradient"], top=2, exclude_sinks=None)
    assert set(found.sign_disagreement) == {"value_aware"}, "a size has no sign"
    for how, tables in (("kendall", found.kendall), ("spearman", found.spearman), ("topk", found.overlap)):
        for reference in ("value_aware", "gradient"):
            wanted = {"score": "attention_attribution_agreement", "reference": reference, "how": how, "top": 2}
            own = interp.score(case.model, batch, {"x": wanted})["x"]
            np.testing.assert_allclose(tables[reference].per_prompt, own.per_prompt, atol=1e-6)
    signs = interp.score(case.model, batch, {"x": {"score": "sign_disagreement", "top": 2}})["x"]
    np.testing.assert_allclose(found.sign_disagreement["value_aware"].per_prompt, signs.per_prompt)
    given = posthoc_audit(case.model, batch, {"mine": torch.tensor([[1.0, -2.0, 3.0, 0.0, 1.0, 2.0]])})
    assert list(given.kendall) == ["mine"] and list(given.sign_disagreement) == ["mine"]
    assert len(found.table()) == 8


def test_all_four_together() -> None:
    model = leaking_model()
    batch = interp.encode(model, torch.tensor([LEAK]), answers=[(2, 1)])
    found = audit_attention(model, batch, tokens=slice(1, 2), permutations=2)
    table = found.table()
    assert len(table) == 2 and {"r of head", "permutation", "value_aware: signs", "mass on the tokens"} <= set(table)
    assert found.deception is not None and found.deception.flagged.all() and "1 prompts flagged" in repr(found)
    assert set(found.deletion.values) == {
        *("attention", "attribution", "attention turned round", "attribution turned round"),
    }
    without = audit_attention(model, batch, permutations=2)
    assert without.deception is None and "mass on the tokens" not in without.table()


def test_bad_requests_are_refused(case_of: CaseOf) -> None:
    model = leaking_model()
    batch = interp.encode(model, torch.tensor([LEAK]))
    with pytest.raises(BadInput, match="is among the tokens"):
        deception_audit(model, batch, slice(3, 5))
    with pytest.raises(BadInput, match="permutations=0"):
        attention_battery(model, batch, permutations=0)
    with pytest.raises(BadInput, match="eps=2"):
        attention_battery(model, batch, adversarial=Search(eps=2))
    with pytest.raises(BadInput, match="steps=0"):
        attention_battery(model, batch, adversarial=Search(steps=0))
    with pytest.raises(UnknownName, match="level"):
        attention_battery(model, batch, level="heads")
    with pytest.raises(BadInput, match="rise from 0 to 1"):
        deletion_curves(model, batch, {"x": torch.zeros(1, 5)}, shares=(0.5, 1))
    with pytest.raises(BadInput, match="weights 'x' have shape \\[1, 4\\]"):
        deletion_curves(model, batch, {"x": torch.zeros(1, 4)})
    with pytest.raises(BadInput, match="expected a list of names"):
        posthoc_audit(model, batch, [])
    bypass = case_of("gptj")
    own = bypass.batch(2, 5)
    with pytest.raises(Unsupported, match="cannot be edited"):
        attention_battery(bypass.model, own)
    with pytest.raises(Unsupported, match="cannot be edited"):
        deception_audit(bypass.model, own, slice(1, 2))
    pair = case_of("t5")
    with pytest.raises(Unsupported, match="one stack"):
        deception_audit(pair.model, pair.batch(2), slice(1, 2))
    images = case_of("vit")
    with pytest.raises(BadInput, match="column 0 for a CLS token"):
        posthoc_audit(images.model, images.batch(2), ["gradient"])
    assert posthoc_audit(images.model, images.batch(2), ["gradient"], exclude_sinks=None).kendall
