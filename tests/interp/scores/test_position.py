"""Scores of position against written-out maps, loops over tokens, and the diagonals that they shorten."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import ask_for, reduced
from torch import Tensor

import interp
from interp.scores.ask import Ask
from interp.scores.positions import position

REDUCERS = ("previous_token", "duplicate_token", "induction")


def reduce(name: str, pattern: Tensor, ids: Tensor, mask: Tensor | None = None, rows_per_block: int = 3) -> Tensor:
    """``[batch, head]`` the score of planted maps."""
    ask = ask_for(ids=ids, mask=mask, model="induction")
    return reduced(getattr(position, name)(ask), pattern, rows_per_block=rows_per_block).float()


def wanted_keys(name: str, ids: list[int], query: int) -> list[int] | None:
    """The keys that count for one row, ``None`` where the row does not: the definitions, token by token."""
    copies = [key for key in range(query) if ids[key] == ids[query]]
    if name == "previous_token":
        return [query - 1] if query else None
    if name == "duplicate_token":
        return copies or None
    return [key + 1 for key in copies if key + 1 != query] or None


def by_loops(name: str, pattern: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    values = torch.full(pattern.shape[:2], torch.nan)
    for prompt in range(pattern.shape[0]):
        real = torch.nonzero(mask[prompt]).flatten().tolist()
        tokens = ids[prompt, real].tolist()
        for head in range(pattern.shape[1]):
            rows = [
                sum(float(pattern[prompt, head, real[query], real[key]]) for key in keys)
                for query in range(len(tokens))
                if (keys := wanted_keys(name, tokens, query)) is not None
            ]
            if rows:
                values[prompt, head] = sum(rows) / len(rows)
    return values


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Causal patterns over real tokens, padded left, right or not at all."""
    draw = torch.Generator().manual_seed(seed)
    batch, heads, width = 4, 3, 11
    ids = torch.randint(0, 5, (batch, width), generator=draw)
    mask = torch.ones(batch, width, dtype=torch.bool)
    mask[1, :4] = False
    mask[2, 7:] = False
    mask[3, 1:] = False
    visible = torch.ones(width, width).tril().bool() & mask[:, None, :] & mask[:, :, None]
    scores = torch.randn(batch, heads, width, width, generator=draw)
    pattern = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    return pattern, ids, mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [1, 4, 11])
@pytest.mark.parametrize("name", REDUCERS)
def test_equals_the_definition_row_by_row(name: str, seed: int, rows: int) -> None:
    pattern, ids, mask = random_case(seed)
    found = reduce(name, pattern, ids, mask, rows)
    torch.testing.assert_close(found, by_loops(name, pattern, ids, mask), equal_nan=True, atol=1e-6, rtol=0)
    assert found[3].isnan().all(), "one token: no row counts"
    assert found.isnan().logical_or((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("name", REDUCERS)
def test_written_out(name: str) -> None:
    """Tokens 7 8 7 8, a map with a different number in every cell."""
    ids = torch.tensor([[7, 8, 7, 8]])
    pattern = torch.tensor(
        [[1.0, 0.0, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0], [0.5, 0.125, 0.375, 0.0], [0.0625, 0.1875, 0.5, 0.25]]
    )[None, None]
    wanted = {
        "previous_token": (0.25 + 0.125 + 0.5) / 3,
        "duplicate_token": (0.5 + 0.1875) / 2,
        "induction": (0.125 + 0.5) / 2,  # rows 2 and 3: after the 7 came place 1, after the 8 place 2
    }
    found = reduce(name, pattern, ids)
    assert found.item() == pytest.approx(wanted[name], abs=1e-7)


def test_a_word_said_twice_at_once_is_no_induction_row() -> None:
    """What followed the copy is the token itself: that row is left out, and the prompt has no other."""
    ids = torch.tensor([[0, 5, 5]])
    pattern = torch.eye(3)[None, None]
    assert reduce("induction", pattern, ids).isnan().all()
    assert reduce("duplicate_token", pattern, ids).item() == 0


@pytest.mark.parametrize("with_bos", [False, True])
def test_on_repeats_the_diagonal_without_its_first_entry(with_bos: bool) -> None:
    """A head perfect on the S rows of the second copy scores 1 here, and less by the bare diagonal of 1 - S."""
    s = 6
    segment = torch.arange(10, 10 + s)
    ids = torch.cat([torch.tensor([0] * with_bos, dtype=torch.long), segment, segment])[None]
    width = ids.shape[1]
    pattern = (
        torch.randn(1, 1, width, width).masked_fill(~torch.ones(width, width).tril().bool(), -torch.inf).softmax(-1)
    )
    first = width - s
    for query in range(first, width):
        pattern[0, 0, query] = torch.eye(width)[query - s + 1]
    diagonal = pattern[0, 0].diagonal(1 - s)
    stray = diagonal[: len(diagonal) - s]  # rows before the second copy: no induction events
    assert len(stray) == 1 + with_bos
    assert diagonal.mean() == pytest.approx((s + float(stray.sum())) / (s + len(stray)), abs=1e-6)
    assert reduce("induction", pattern, ids).item() == 1


def test_four_copies_sum_over_the_earlier_ones() -> None:
    """Prefix matching: attention spread evenly over what followed each earlier copy scores 1 in every repeat."""
    s, repeats = 5, 4
    ids = torch.cat([torch.tensor([0]), torch.arange(3, 3 + s).repeat(repeats)])[None]
    width = ids.shape[1]
    pattern = torch.zeros(1, 2, width, width)
    for query in range(width):
        copy, place = divmod(query - 1, s)
        followers = [1 + earlier * s + place + 1 for earlier in range(copy)] if query else []
        pattern[0, 0, query, followers or [0]] = 1 / max(len(followers), 1)
        pattern[0, 1, query, [1 + earlier * s + place for earlier in range(copy)] or [0]] = 1 / max(copy, 1)
    torch.testing.assert_close(reduce("induction", pattern, ids), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(reduce("duplicate_token", pattern, ids), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("name", REDUCERS)
def test_stacks_without_tokens_are_refused(name: str) -> None:
    """The scores compare ids: a batch that has none is refused before anything runs."""
    ask = ask_for(4)
    bare = Ask(name, ask.model, replace(ask.batch, ids=None), ask.stack)
    with pytest.raises(interp.BadInput, match="token ids"):
        getattr(position, name)(bare)


def test_left_out_columns_leave_out_the_rows_that_wanted_them() -> None:
    """Without the first token, tokens 8 7 8 7 7 are judged as 7 8 7 7 would be: no 0 for a lost key."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor([[8, 7, 8, 7, 7]])
    pattern = torch.rand(1, 2, 5, 5, generator=draw).tril() + 0.1 * torch.eye(5)
    pattern = pattern / pattern.sum(-1, keepdim=True)
    rest = pattern[..., 1:, 1:] / pattern[..., 1:, 1:].sum(-1, keepdim=True)
    dropped = torch.tensor([[True, False, False, False, False]])
    for name in REDUCERS:
        make = getattr(position, name)
        found = reduced(make(ask_for(5, ids=ids, dropped=dropped)), pattern)
        wanted = reduced(make(ask_for(4, ids=ids[:, 1:])), rest)
        if name == "induction":  # what followed the lost token is still there: row 2 looks at column 1
            wanted = wanted * 2 / 3 + rest[..., 1, 0] / 3
        torch.testing.assert_close(found, wanted.double(), atol=1e-6, rtol=0)
