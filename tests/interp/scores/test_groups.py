"""Token groups that partition a prompt, and the mass between them, against sums written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from planted import ask_for, reduced, uniform_causal
from small_tokenizers import chatty
from tiny_models import IMAGE_TOKEN, TINY
from torch import Tensor

import interp
from interp.errors import BadAddress, BadInput
from interp.scores.groups.group_mass import group_mass, mass_of_groups, top_of_groups
from interp.scores.groups.groups import token_groups
from interp.scores.long_context.chosen_rows import columns_with_filler, one_before

IDS = torch.tensor([[0, 3, 4, 5, 3, 4, 5, 2]])


def random_maps(batch: int, heads: int, length: int, mask: Tensor | None = None, seed: int = 0) -> Tensor:
    """Causal maps over real tokens; padded rows are 0."""
    scores = torch.randn(batch, heads, length, length, generator=torch.Generator().manual_seed(seed))
    real = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    sees = torch.ones(length, length).tril().bool() & real[:, None] & real[:, :, None]
    return scores.masked_fill(~sees[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)


def padded(width: int = 10) -> Tensor:
    mask = torch.ones(3, width, dtype=torch.bool)
    mask[1, :3] = False
    mask[2, 6:] = False
    return mask


# ---- groups ---------------------------------------------------------------------------------------------------------


def test_groups_partition_every_prompt() -> None:
    model = interp.load("induction")
    mask = padded()
    ids = torch.randint(3, 100, mask.shape)
    ids[0, 0] = ids[1, 3] = 0  # <bos>; the third prompt has none
    spans = {"context": mask & (mask.cumsum(-1) > 1) & (mask.cumsum(-1) <= 4)}
    batch = interp.encode(model, ids, mask=mask, spans=spans)
    groups = interp.token_groups(model, batch, generated=[2, 1, 0])
    assert groups.names == ("bos", "context", "generated", "rest")
    together = torch.stack(list(groups.members.values())).sum(0)
    torch.testing.assert_close(together, mask.long())
    assert groups.table()["bos"].tolist() == [1, 1, 0] and groups.table()["generated"].tolist() == [2, 1, 0]
    assert groups["generated"][1].nonzero().flatten().tolist() == [9]
    assert batch.spans.keys() < groups.within(batch).spans.keys()
    with pytest.raises(BadInput, match="Unknown token group 'contxt'"):
        groups["contxt"]


def test_overlap_is_refused_or_goes_to_the_first() -> None:
    model = interp.load("handmade")
    batch = interp.encode(model, IDS, spans={"a": range(1, 4), "b": range(3, 6)})
    with pytest.raises(
        BadInput, match=r"'a' and 'b' share 1 token\(s\), the first at column 3 of prompt 0.*first_wins"
    ):
        token_groups(model, batch)
    groups = token_groups(model, batch, first_wins=True)
    assert groups["a"].sum() == 3 and groups["b"].sum() == 2
    only = token_groups(model, batch, {"half": slice(4, None)})
    assert only["half"][0].tolist() == [False] * 4 + [True] * 4


def test_a_span_that_leaves_its_prompt_is_refused() -> None:
    model = interp.load("handmade")
    mask = torch.tensor([[True] * 6 + [False] * 2])
    outside = torch.zeros(1, 8, dtype=torch.bool)
    outside[0, 5:7] = True
    batch = interp.encode(model, IDS, mask=mask, spans={"context": outside})
    with pytest.raises(
        BadAddress, match=r"'context' leaves prompt 0: column 6 is padding \(its 6 tokens are columns 0 to 5\)"
    ):
        token_groups(model, batch)
    with pytest.raises(BadAddress, match="outside prompt 0"):
        interp.encode(model, IDS, mask=mask, spans={"context": range(4, 7)})
    with pytest.raises(BadInput, match="generated=9, and the prompts have"):
        token_groups(model, interp.encode(model, IDS), generated=9)


@pytest.mark.parametrize("name", ["llava", "paligemma", "qwen2_vl", "idefics3"])
def test_image_tokens_come_from_the_config(case_of: Callable[..., object], name: str) -> None:
    case = case_of(name)
    batch = case.batch()  # type: ignore[attr-defined]
    groups = token_groups(case.model, batch)  # type: ignore[attr-defined]
    torch.testing.assert_close(groups["image"], batch.ids == IMAGE_TOKEN)
    assert bool(groups["image"].any(-1).all())
    mass = interp.score(case.model, batch, {"m": {"score": "group_mass", "keys": groups}})["m"]  # type: ignore[attr-defined]
    assert mass.positions == groups.names
    np.testing.assert_allclose(mass.samples.sum(-1), 1, atol=1e-6)


def test_roles_of_a_chat_follow_the_template() -> None:
    tiny = TINY["gpt2"]()
    model = interp.load(tiny.hf, tokenizer=chatty())
    chats = [
        [{"role": "system", "content": "Mary had a dog."}, {"role": "user", "content": "John gave a drink to Mary"}],
        [{"role": "user", "content": "user"}, {"role": "assistant", "content": "The store is in the city."}],
    ]
    batch = interp.encode(model, chats)
    groups = token_groups(model, batch, messages=chats)
    words = [[batch.tokens[row][int(batch.mask[row, :c].sum())] for c in groups[role][row].nonzero().flatten().tolist()]
             for row, role in ((0, "system"), (0, "user"), (1, "user"), (1, "assistant"))]  # fmt: skip
    assert words[0] == ["Mary", "had", "a", "dog", "."] and words[1] == ["John", "gave", "a", "drink", "to", "Mary"]
    assert len(words[2]) == 1, "the content, not the header that says the same"
    assert words[3] == ["The", "store", "is", "in", "the", "city", "."]
    assert int(groups["template"][0].sum()) == 6 and bool(groups["bos"][0, 0]), "<s> system </s> <s> user </s> <s>"
    other = [chats[0], [{"role": "user", "content": "The city"}]]
    with pytest.raises(BadInput, match="chat 1 renders to other tokens than prompt 1"):
        token_groups(model, batch, messages=other)
    with pytest.raises(BadInput, match="2 prompts; give one each"):
        token_groups(model, batch, messages=chats[0])


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_of_unequal_number_are_filled_with_rows_that_do_not_count() -> None:
    chosen = torch.tensor([[True, False, True, True], [False, False, False, True]])
    rows = columns_with_filler(chosen)
    assert rows is not None and rows.tolist() == [[0, 2, 3], [3, 0, 0]]
    assert chosen.gather(1, rows).sum(-1).tolist() == [3, 1]
    assert columns_with_filler(torch.ones(1, 4, dtype=torch.bool)) is None


def test_the_row_before_skips_padding() -> None:
    mask = torch.tensor([[False, True, True, False, True]])
    chosen = torch.tensor([[False, True, False, False, True]])
    before, at_start = one_before(chosen, mask)
    assert before.tolist() == [[False, False, True, False, False]] and at_start.tolist() == [True]


# ---- mass -----------------------------------------------------------------------------------------------------------


def test_uniform_attention_over_n_keys_of_which_m() -> None:
    ask = ask_for(8, ids=IDS, spans={"g": range(1, 3)})
    found = reduced(group_mass(ask, keys="g", queries=-1), uniform_causal(8))
    assert found.shape == (1, 1) and found.item() == pytest.approx(2 / 8)


@pytest.mark.parametrize("rows_per_block", [1, 3, 100])
def test_equals_the_sums_written_out(rows_per_block: int) -> None:
    mask = padded()
    pattern = random_maps(3, 2, 10, mask)
    ordinal = mask.cumsum(-1) - 1
    ask = ask_for(10, ids=torch.randint(0, 6, mask.shape), mask=mask)
    keys, queries = {"a": slice(0, 2), "b": slice(2, None)}, {"late": slice(-2, None), "all": None}
    found = reduced(group_mass(ask, keys=keys, queries=queries), pattern, rows_per_block=rows_per_block)
    for prompt in range(3):
        real = mask[prompt].nonzero().flatten()
        a = real[ordinal[prompt, real] < 2]
        late = pattern[prompt][:, real[-2:]][..., a].sum(-1).mean(-1)
        every = pattern[prompt][:, real][..., a].sum(-1).mean(-1)
        torch.testing.assert_close(found[prompt, :, 0].float(), late)
        torch.testing.assert_close(found[prompt, :, 2].float(), every)
        torch.testing.assert_close(found[prompt, :, 1].float(), 1 - late)
    assert group_mass(ask, keys=keys, queries=queries).measured().bins == (
        "late -> a",
        "late -> b",
        "all -> a",
        "all -> b",
    )


def test_pure_function_and_reducer_agree_and_partitions_sum_to_one() -> None:
    pattern = random_maps(1, 3, 8)
    ask = ask_for(8, ids=IDS, spans={"a": range(1, 4)})
    groups = token_groups(ask.model, ask.batch)
    found = reduced(group_mass(ask), pattern)
    members = torch.stack(list(groups.members.values()))
    torch.testing.assert_close(found.float(), mass_of_groups(pattern, members).mean(2))
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 3).double())


def test_the_largest_entries_of_a_group() -> None:
    pattern = random_maps(1, 2, 8)
    ask = ask_for(8, ids=IDS, spans={"a": range(1, 7)})
    found = reduced(group_mass(ask, keys=["a"], queries=slice(-1, None), top=2), pattern)
    by_hand = pattern[0, :, 7, 1:7].sort(-1, descending=True).values[:, :2].sum(-1)
    torch.testing.assert_close(found[0, :, 0].float(), by_hand)
    member = torch.zeros(1, 1, 8, dtype=torch.bool)
    member[..., 1:7] = True
    torch.testing.assert_close(top_of_groups(pattern, member, 2)[0, :, 7, 0], by_hand)
    everything = reduced(group_mass(ask, keys=["a"], top=99), pattern)
    torch.testing.assert_close(everything, reduced(group_mass(ask, keys=["a"]), pattern))


def test_left_out_columns_and_rows_that_have_nothing_left() -> None:
    dropped = torch.zeros(1, 8, dtype=torch.bool)
    dropped[0, 0] = True
    ask = ask_for(8, ids=IDS, spans={"a": range(1, 4)}, dropped=dropped)
    found = reduced(group_mass(ask, keys={"a": "a", "b": slice(4, None)}), uniform_causal(8))
    rows = [min(i, 3) / i for i in range(1, 8)]  # of i open keys min(i, 3) are in a; row 0 sees none and is left out
    assert found[0, 0].tolist() == pytest.approx([sum(rows) / 7, 1 - sum(rows) / 7])


def test_a_query_group_without_a_row_is_nan() -> None:
    model = interp.load("induction")
    batch = interp.encode(model, torch.tensor([[0, 5, 6, 7], [5, 6, 7, 8]]))
    found = interp.score(model, batch, {"m": {"score": "group_mass", "queries": token_groups(model, batch)}})["m"]
    assert found.positions is not None and found.positions[0] == "bos -> bos"
    assert (found.samples[0, ..., 0] == 1).all() and np.isnan(found.samples[1, ..., 0]).all()


def test_refusals() -> None:
    ask = ask_for(8, ids=IDS, spans={"a": range(1, 4)})
    with pytest.raises(BadAddress, match="Unknown span 'b'"):
        group_mass(ask, keys=["a", "b"])
    with pytest.raises(BadInput, match="top=0; expected how many of the largest"):
        group_mass(ask, keys=["a"], top=0)
    with pytest.raises(BadInput, match=r"keys=\[3\]; expected names of spans"):
        group_mass(ask, keys=[3])
    with pytest.raises(BadInput, match="means no token in prompts"):
        group_mass(ask, keys={"none": torch.zeros(1, 8, dtype=torch.bool)})
    with pytest.raises(BadInput, match=r"'late' and 'all' share 3 token\(s\), the first at column 5 of prompt 0"):
        group_mass(ask, keys={"late": slice(-3, None), "all": None})
    assert group_mass(ask, keys=["a"], queries={"late": slice(-3, None), "all": None}).bins, "rows may overlap"
    short = ask_for(10, ids=torch.zeros(3, 10, dtype=torch.long), mask=padded())
    for reaching in (torch.ones(1, 10, dtype=torch.bool), torch.tensor([[4], [2], [4]])):
        with pytest.raises(BadAddress, match=r"keys= leaves prompt 1: column \d is padding"):
            group_mass(short, keys=reaching)
    longer = ask_for(9)
    with pytest.raises(BadInput, match=r"batch = groups.within\(batch\), keys=groups.names"):
        group_mass(ask, keys=token_groups(longer.model, longer.batch))


def test_names_in_the_batch_survive_batch_size_and_order() -> None:
    model = interp.load("induction")
    batch = interp.encode(model, torch.randint(3, 200, (4, 9)), spans={"a": range(2, 5)})
    batch = token_groups(model, batch).within(batch)
    options = {"m": {"score": "group_mass", "keys": ["a", "rest"]}}
    whole = interp.score(model, batch, options)["m"].samples
    parted = interp.score(model, batch, options, batch_size=3)["m"].samples
    np.testing.assert_allclose(parted, whole, atol=1e-6, rtol=1e-5)
    turned = interp.score(model, batch.select([2, 0, 3, 1]), options)["m"].samples
    np.testing.assert_allclose(turned, whole[[2, 0, 3, 1]], atol=1e-6, rtol=1e-5)


def test_groups_of_patches_are_given_as_columns(case_of: Callable[..., object]) -> None:
    case = case_of("vit")
    batch = case.batch()  # type: ignore[attr-defined]
    first = torch.zeros(1, _positions(case, batch), dtype=torch.bool)
    first[0, 0] = True
    keys = {"class": first, "patches": ~first}
    found = interp.score(case.model, batch, {"m": {"score": "group_mass", "keys": keys}})["m"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.samples.sum(-1), 1, atol=1e-6)
    with pytest.raises(BadInput, match=r"give a BoolTensor \[1, key\]"):
        interp.score(case.model, batch, {"m": {"score": "group_mass", "keys": slice(0, 1)}})  # type: ignore[attr-defined]


def _positions(case: object, batch: interp.Batch) -> int:
    pattern = interp.At(interp.Site.PATTERN, layer=0)
    return interp.run(case.model, batch, read=[pattern])[pattern].shape[-1]  # type: ignore[attr-defined]
