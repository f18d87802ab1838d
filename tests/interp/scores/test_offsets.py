"""Scores by distance along a text: planted maps, loops over tokens, and the scores they shorten to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from planted import all_on_first, ask_for, previous_map, reduced, uniform_causal
from planted_patches import vision_ask
from planted_texts import causal_ask, causal_maps, encoder_ask, own, padded
from tiny_models import TINY

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported
from interp.model.row_blocks import Block
from interp.scores.ask import Ask
from interp.scores.positions.distance import distances, first_mass, mean_distance
from interp.scores.positions.offsets import local_mass, offset_masses, offset_profile, self_mass
from interp.scores.positions.position import previous_token

T = 20


PLANTED = {
    "identity": (torch.eye(T), {"self": 1.0, "first": 1 / T, "distance": 0.0, "near": 1.0}),
    "previous": (previous_map(T), {"self": 1 / T, "first": 2 / T, "distance": (T - 1) / T, "near": 1.0}),
    "first": (all_on_first(T), {"self": 1 / T, "first": 1.0, "distance": (T - 1) / 2, "near": 3 / T}),
    # H_20 = 3.59774; a row of t + 1 keys looks t / 2 back and has min(3, t + 1) of them near
    "uniform": (
        uniform_causal(T),
        {"self": 3.597740 / T, "first": 3.597740 / T, "distance": (T - 1) / 4, "near": 0.414661},
    ),
}


@pytest.mark.parametrize("rows_per_block", [1, 3, T])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_maps(name: str, rows_per_block: int) -> None:
    """The values of the card at T = 20: first mass .180 for a uniform head, .1 for a previous-token head."""
    pattern, wanted = PLANTED[name]
    ask = ask_for(T)
    made = {
        "self": self_mass(ask),
        "first": first_mass(ask),
        "distance": mean_distance(ask),
        "near": local_mass(ask, window=3),
    }
    found = {key: reduced(score, pattern, rows_per_block=rows_per_block).item() for key, score in made.items()}
    assert found == pytest.approx(wanted, abs=1e-5)


def test_near_of_a_uniform_head_by_hand() -> None:
    assert sum(min(3, t + 1) / (t + 1) for t in range(T)) / T == pytest.approx(PLANTED["uniform"][1]["near"], abs=1e-6)


@pytest.mark.parametrize("rows", ["all", "having"])
@pytest.mark.parametrize("rows_per_block", [1, 4, 30])
def test_the_profile_is_the_definition_token_by_token(rows: str, rows_per_block: int) -> None:
    mask = padded()
    pattern = causal_maps(1, mask)
    found = reduced(offset_profile(causal_ask(mask), upto=3, rows=rows), pattern, rows_per_block=rows_per_block)
    for prompt, maps in enumerate(own(pattern, mask)):
        length = maps.shape[-1]
        wanted = torch.full((3, 5), torch.nan, dtype=torch.float64)
        for d in range(5):  # the last bin is everything beyond 3
            counted = [i for i in range(length) if i >= d or rows == "all"]
            for head in range(3):
                values = [
                    sum(float(maps[head, i, j]) for j in range(i + 1) if min(i - j, 4) == d) for i in counted
                ]  # fmt: skip
                if values:
                    wanted[head, d] = sum(values) / len(values)
        torch.testing.assert_close(found[prompt], wanted, equal_nan=True, atol=1e-6, rtol=0)
    if rows == "all":
        torch.testing.assert_close(found.sum(-1), torch.ones(4, 3, dtype=torch.float64))


def test_bins_of_the_profile_are_the_other_scores() -> None:
    """Bin 0 is self mass; over the rows that have the key, bin 1 is the previous-token score and LocFoc_1."""
    mask = padded()
    pattern, ask = causal_maps(2, mask), causal_ask(mask)
    having = reduced(offset_profile(ask, upto=2, rows="having"), pattern)
    torch.testing.assert_close(having[..., 0], reduced(self_mass(ask), pattern))
    torch.testing.assert_close(having[..., 1], reduced(previous_token(ask), pattern), equal_nan=True)
    whole = reduced(offset_profile(ask, upto=2), pattern)
    torch.testing.assert_close(whole[..., :2].sum(-1), reduced(local_mass(ask, window=2), pattern))


@pytest.mark.parametrize("seed", range(3))
def test_pure_functions_equal_the_reducers(seed: int) -> None:
    mask = padded()
    pattern, ask = causal_maps(seed, mask), causal_ask(mask)
    profile, distance = reduced(offset_profile(ask, upto=4), pattern), reduced(mean_distance(ask), pattern)
    for prompt, maps in enumerate(own(pattern, mask)):
        torch.testing.assert_close(profile[prompt], offset_masses(maps, 4).mean(1).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(distance[prompt], distances(maps).mean(1).double(), atol=1e-5, rtol=0)


def test_excluded_columns() -> None:
    """Without the first token, a row that saw nothing else is left out and the others are rescaled."""
    mask = padded()
    pattern = causal_maps(3, mask)
    first = mask & (mask.cumsum(-1) == 1)
    ask = causal_ask(mask, dropped=first)
    scores = [offset_profile(ask, upto=2), offset_profile(ask, upto=2, rows="having"), mean_distance(ask)]
    whole, having, distance = (reduced(score, pattern) for score in scores)
    for prompt, maps in enumerate(own(pattern, mask)):
        rest = maps[:, 1:, 1:] / maps[:, 1:, 1:].sum(-1, keepdim=True)
        if not rest.numel():
            assert whole[prompt].isnan().all() and having[prompt].isnan().all() and distance[prompt].isnan().all()
            continue
        alone = ask_for(rest.shape[-1])
        again = [offset_profile(alone, upto=2), offset_profile(alone, upto=2, rows="having"), mean_distance(alone)]
        for found, score in zip((whole, having, distance), again, strict=True):
            torch.testing.assert_close(found[prompt], reduced(score, rest)[0], atol=1e-5, rtol=0)


def test_a_row_with_all_its_mass_on_a_left_out_column_is_left_out() -> None:
    pattern = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0.25, 0.25]])
    ask = ask_for(3, dropped=torch.tensor([[True, False, False]]))
    assert reduced(mean_distance(ask), pattern).item() == pytest.approx(0.5)
    torch.testing.assert_close(
        reduced(offset_profile(ask, upto=1), pattern), torch.tensor([[[0.5, 0.5, 0.0]]], dtype=torch.float64)
    )
    nothing = reduced(mean_distance(ask), all_on_first(3))
    assert nothing.isnan().all(), "no row is left"


def test_both_ways() -> None:
    """In an encoder keys after the query count by their distance; signed bins tell the sides apart."""
    n = 7
    ask = encoder_ask(n)
    seen = torch.ones(n, n, dtype=torch.bool)
    pattern = torch.randn(1, 2, n, n, generator=torch.Generator().manual_seed(3)).softmax(-1)
    for rows_per_block in (1, 2, n):
        keep = {"rows_per_block": rows_per_block, "visible": seen}
        found = reduced(mean_distance(ask), pattern, **keep)
        torch.testing.assert_close(found[0], distances(pattern)[0].mean(-1).double(), atol=1e-5, rtol=0)
        profile = reduced(offset_profile(ask, upto=2), pattern, **keep)
        torch.testing.assert_close(profile[0], offset_masses(pattern, 2)[0].mean(1).double(), atol=1e-6, rtol=0)
        near = reduced(local_mass(ask, window=3), pattern, **keep)
        torch.testing.assert_close(near, profile[..., :3].sum(-1), atol=1e-6, rtol=0)
        signed = reduced(offset_profile(ask, upto=2, signed=True), pattern, **keep)
        sides = [pattern[0].diagonal(k, -2, -1).sum(-1) / n for k in (2, 1, 0, -1, -2)]
        torch.testing.assert_close(signed[0, :, 1:6], torch.stack(sides, -1).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(signed[0, :, 0], pattern[0].triu(3).sum((-2, -1)).double() / n, atol=1e-6, rtol=0)
        torch.testing.assert_close(signed[0, :, 6], pattern[0].tril(-3).sum((-2, -1)).double() / n, atol=1e-6, rtol=0)
        having = reduced(offset_profile(ask, upto=2, signed=True, rows="having"), pattern, **keep)
        counts = torch.tensor([n - 3, n - 2, n - 1, n, n - 1, n - 2, n - 3])
        torch.testing.assert_close(having, signed * n / counts, atol=1e-6, rtol=0)
    assert offset_profile(ask, upto=1, signed=True).bins == ("after", "-1", "0", "1", "beyond")


def test_distances_count_over_a_prompts_own_tokens_also_with_a_hole() -> None:
    mask = torch.tensor([[True, True, False, True, True]])
    pattern = causal_maps(5, mask)
    alone = own(pattern, mask)[0]
    found = reduced(offset_profile(causal_ask(mask), upto=1), pattern)
    torch.testing.assert_close(found[0], offset_masses(alone, 1).mean(1).double(), atol=1e-6, rtol=0)
    found = reduced(mean_distance(causal_ask(mask)), pattern)
    torch.testing.assert_close(found[0], distances(alone).mean(1).double(), atol=1e-6, rtol=0)


def test_long_prompts_lose_no_digits() -> None:
    """Heads that look one or two back, at the end of 4096 tokens: the products are thousands of times larger."""
    length, last = 4096, 64
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = hf.LlamaConfig(vocab_size=8, max_position_embeddings=length, **sizes)
    model = interp.load(hf.LlamaForCausalLM(config).eval(), check=False)
    ask = Ask("planted", model, interp.encode(model, torch.ones(1, length, dtype=torch.long)), model.stack())
    score = mean_distance(ask)
    rows = torch.arange(length)[None, -last:]
    share = torch.rand(last, generator=torch.Generator().manual_seed(0)) * 0.5
    whole = torch.zeros(1, 1, last, length)
    whole[0, 0, torch.arange(last), rows[0] - 1] = 1 - share
    whole[0, 0, torch.arange(last), rows[0] - 2] = share
    visible = (torch.arange(length) <= rows[0][:, None])[None, None]
    block = Block(ask.stack, 0, rows, torch.ones_like(rows, dtype=torch.bool), whole, visible, None, None, {})
    score.block(block, whole @ score.features(0, length, rows).unsqueeze(1))
    assert score.measured().by_layer[0].item() == pytest.approx(1 + share.mean().item(), rel=1e-6)


def test_chosen_queries() -> None:
    """Over the last two rows alone; a span does as well."""
    pattern = uniform_causal(6)
    ask = ask_for(6, spans={"tail": range(4, 6)})
    for queries in (slice(-2, None), "tail", torch.tensor([[4, 5]])):
        found = reduced(mean_distance(ask, queries=queries), pattern, rows_per_block=2).item()
        assert found == pytest.approx((2 + 2.5) / 2)
        assert reduced(first_mass(ask, queries=queries), pattern).item() == pytest.approx((1 / 5 + 1 / 6) / 2)


def test_first_tokens_of_padded_prompts() -> None:
    mask = padded()
    pattern, ask = causal_maps(4, mask), causal_ask(mask)
    for tokens in (1, 2, 50):
        found = reduced(first_mass(ask, tokens=tokens), pattern)
        for prompt, maps in enumerate(own(pattern, mask)):
            wanted = maps[..., :tokens].sum(-1).mean(-1)
            torch.testing.assert_close(found[prompt], wanted.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ask: offset_profile(ask, upto=-1), "upto=-1; expected a whole number of at least 0"),
        (lambda ask: offset_profile(ask, rows="some"), "expected 'all' or 'having'"),
        (lambda ask: local_mass(ask, window=0), "window=0; expected a whole number of at least 1"),
        (lambda ask: local_mass(ask, window=True), "window=True"),
        (lambda ask: first_mass(ask, tokens=True), "tokens=True"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make(ask_for(4))


def test_patches_and_two_sequences_have_no_distance() -> None:
    with pytest.raises(Unsupported, match="use mean_distance_2d"):
        mean_distance(vision_ask(2, 3))
    tiny = TINY["t5"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    for make in (mean_distance, self_mass, local_mass, offset_profile):
        with pytest.raises(Unsupported, match="tokens of two sequences"):
            make(Ask("planted", model, batch, model.stack("cross")))
    found = interp.score(model, batch, "first_mass", stack="cross")["first_mass"].values
    assert ((found > 0) & (found < 1)).all(), "the first token of the other sequence is one"


def test_sounds_are_a_sequence_too() -> None:
    """The frames of an encoder of sounds have no mask: every column is one."""
    tiny = TINY["whisper"]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs())
    at = At(Site.PATTERN, layer=1, stack="encoder")
    maps = interp.run(model, batch, read=[at])[at]
    for block in (None, 1):
        found = interp.score(model, batch, ["mean_distance", "offset_profile"], stack="encoder", block=block)
        np.testing.assert_allclose(found["mean_distance"].samples[:, 1], distances(maps).mean(-1), atol=1e-5)
        np.testing.assert_allclose(found["offset_profile"].samples[:, 1], offset_masses(maps, 16).mean(-2), atol=1e-6)


def test_known_heads_of_the_zoo() -> None:
    """L0.H0 looks one back; L1.H1 is uniform: T keys at half of T - 1 on average."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 6, 7, 8, 9]]))
    found = interp.score(model, batch, ["offset_profile", "mean_distance", "first_mass", "self_mass", "local_mass"])
    n = 8
    np.testing.assert_allclose(found["offset_profile"].values[0, 0, :2], [1 / n, (n - 1) / n], atol=1e-6)
    assert found["offset_profile"].positions == (*map(str, range(17)), "beyond")
    assert found["mean_distance"].values[1, 1] == pytest.approx((n - 1) / 4, abs=1e-5)
    assert found["mean_distance"].metadata["tokens"] == [n]
    uniform = sum(1 / (i + 1) for i in range(n)) / n
    assert found["first_mass"].values[1, 1] == pytest.approx(uniform, abs=1e-6)
    assert found["self_mass"].values[1, 1] == pytest.approx(uniform, abs=1e-6)
