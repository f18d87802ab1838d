"""Secondary sinks: planted residuals, classes of tokens, and the MLP that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import ask_for, blocks_of, uniform_causal
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput
from interp.scores.sinks.secondary_sinks import lives_of, secondary_sink_mass, sink_window
from interp.scores.sinks.sink_lives import secondary_sinks

DEPTH, LENGTH, WIDTH = 16, 8, 64


def planted_stream(born: int = 4, died: int = 9, token: int = 5, size: float = 3.0) -> Tensor:
    """``[depth + 1, pos, d]`` noise; the first token large from layer 2 to 13; ``token`` points like it for a while."""
    x = torch.randn(DEPTH + 1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), dim=0)
    x[2:14, 0] = 500 * direction
    x[born:died, token] = size * direction
    x[3:13, 7] = -direction  # a copy: most of the depth, the other way round
    return x


def lives(x: Tensor, **options: Any) -> Any:
    cosines = torch.nn.functional.cosine_similarity(x[:-1], x[:-1, :1], dim=-1)
    candidates = torch.ones(1, LENGTH, dtype=torch.bool)
    candidates[0, 0] = False
    return lives_of(cosines[None], x[None, :, 0].norm(dim=-1), candidates, **options)


@pytest.mark.parametrize("size", [0.01, 3.0, 900.0])
def test_birth_and_lifetime_of_a_planted_sink(size: float) -> None:
    """``x_j = c x_first`` over layers a to b: birth a, lifetime b - a, whatever c; the long-lived one is a copy."""
    found = lives(planted_stream(size=size), longest=0.6)
    assert found.secondary[0].nonzero().flatten().tolist() == [5]
    assert (int(found.birth[0, 5]), int(found.lifetime[0, 5])) == (4, 5)
    assert found.copy[0].nonzero().flatten().tolist() == [7]
    assert (int(found.birth[0, 7]), int(found.lifetime[0, 7])) == (3, 10)
    assert found.window.tolist() == [[2, 14]]
    assert found.birth[0, 1] == -1


def test_only_layers_in_which_the_first_token_is_a_sink_are_compared() -> None:
    found = lives(planted_stream(born=0, died=6))
    assert (int(found.birth[0, 5]), int(found.lifetime[0, 5])) == (2, 4)


def test_shares_of_the_depth() -> None:
    assert not lives(planted_stream(), shortest=5 / 16).secondary[0, 5], "more than the share"
    assert lives(planted_stream(), shortest=4 / 16).secondary[0, 5]
    assert lives(planted_stream(), longest=5 / 16).copy[0, 5], "from the share on"


def test_random_states_never_pass() -> None:
    x = torch.randn(DEPTH + 1, 40, WIDTH, generator=torch.Generator().manual_seed(3))
    cosines = torch.nn.functional.cosine_similarity(x[:-1], x[:-1, :1], dim=-1)
    candidates = torch.ones(1, 40, dtype=torch.bool)
    candidates[0, 0] = False
    found = lives_of(cosines[None], x[None, :, 0].norm(dim=-1), candidates, shortest=0.0)
    assert not (found.secondary | found.copy).any()


def test_windows() -> None:
    norms = torch.tensor([[1.0, 9, 9, 9, 1], [1, 1, 1, 1, 9], [5, 4, 3, 2, 1]])
    assert sink_window(norms).tolist() == [[1, 4], [4, 4], [1, 2]]


def seen_of(x: Tensor, layer: int) -> dict[Site, Tensor]:
    return {Site.RESID_PRE: x[None, layer], Site.RESID_POST: x[None, layer + 1]}


@pytest.mark.parametrize("split", [1, 3, 50])
def test_mass_on_each_class(split: int) -> None:
    """On two layers of uniform maps: what a row gives to the first token, to token 5, to token 7."""
    x = planted_stream()
    x = x[[2, 4, 4]]
    x[0, :, :] = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(5))
    x[2, 0] = 0.001 * x[1, 0]
    reducer = secondary_sink_mass(ask_for(LENGTH), shortest=0.25, longest=0.75)
    for layer in (0, 1):
        reducer.start(layer, seen_of(x, layer))
        for block in blocks_of(
            uniform_causal(LENGTH).expand(2, -1, -1), reducer.ask, rows_per_block=split, layer=layer
        ):
            reducer.block(block, None)
        reducer.finish(layer, seen_of(x, layer))
    found = reducer.measured()
    harmonic = [sum(1 / i for i in range(k + 1, LENGTH + 1)) / LENGTH for k in (0, 5, 7)]
    for layer in (0, 1):
        mass = found.by_layer[layer][0, 0]
        assert mass[0].item() == pytest.approx(harmonic[0]) and mass[2].isnan(), "no copy"
        assert mass[1].item() == pytest.approx(harmonic[1] + harmonic[2])
    assert found.totals["classes"] == {"first": 1, "secondary": 2, "copy": 0}


def test_a_class_that_is_left_out_is_nan() -> None:
    """Without the first token nothing can be said of it; the other classes keep their mass."""
    x = planted_stream()[[2, 4, 4]]
    x[0, :, :] = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(5))
    x[2, 0] = 0.001 * x[1, 0]
    dropped = torch.zeros(1, LENGTH, dtype=torch.bool)
    dropped[0, 0] = True
    reducer = secondary_sink_mass(ask_for(LENGTH, dropped=dropped), shortest=0.25, longest=0.75)
    for layer in (0, 1):
        reducer.start(layer, seen_of(x, layer))
        for block in blocks_of(uniform_causal(LENGTH).expand(2, -1, -1), reducer.ask, layer=layer):
            reducer.block(block, None)
        reducer.finish(layer, seen_of(x, layer))
    mass = reducer.measured().by_layer[1][0, 0]
    assert mass[0].isnan() and mass[2].isnan() and mass[1].item() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cosine": 1.5}, "from 0 to 1"),
        ({"shortest": 0.9}, "shortest below longest"),
        ({"longest": True}, "from 0 to 1"),
    ],
)
def test_impossible_shares_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        secondary_sink_mass(ask_for(4), **options)


def written_sink(output: Tensor) -> Tensor:
    """What an MLP writes, with one direction at the first token and, smaller, at token 3."""
    made = output.clone()
    direction = torch.nn.functional.normalize(torch.arange(output.shape[-1]).float() - 7, dim=0)
    made[:, 0], made[:, 3] = 1e4 * direction, 2e3 * direction
    return made


def test_the_tokens_of_a_model(case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose first MLP is made to write a sink: found with its birth, its alpha, and its writer."""
    case, token = case_of("llama"), 3
    batch = case.batch(2, 6)
    mlp = case.model.stack().tap(Site.MLP_OUT, 0).module
    plain = mlp.forward
    with monkeypatch.context() as patched:
        patched.setitem(mlp.__dict__, "forward", lambda x: written_sink(plain(x)))
        found = secondary_sinks(case.model, batch, longest=0.75)
        mass = interp.score(case.model, batch, "secondary_sink_mass")["secondary_sink_mass"]
        table = found.table()
        assert table["column"].tolist() == [token, token] and set(table["kind"]) == {"secondary"}
        assert set(table["birth"]) == {1} and set(table["lifetime"]) == {1} and set(table["writer"]) == {0}
        np.testing.assert_allclose(table["writer cosine"], 1, atol=1e-3)
        np.testing.assert_allclose(table["norm ratio"], 0.2, atol=0.01)
        pattern = interp.run(case.model, batch, read=[At(Site.PATTERN, layer=1)])[At(Site.PATTERN, layer=1)]
        np.testing.assert_allclose(table["alpha"], pattern[:, :, token:, token].mean((1, 2)), rtol=1e-4)
        np.testing.assert_allclose(mass.samples[:, 1, :, 1], pattern[..., token].mean(-1), rtol=1e-4)
        np.testing.assert_allclose(found.mass[1], mass.samples[:, 1], rtol=1e-6)
        assert found.levels()[["birth", "lifetime", "tokens"]].to_numpy().tolist() == [[1, 1, 2]]
        capped = interp.run(case.model, batch, read=[At(Site.MLP_OUT, layer=0)], edits=found.capped(100.0))
        norms = capped[At(Site.MLP_OUT, layer=0)].norm(dim=-1)
        torch.testing.assert_close(norms[:, token], torch.full((2,), 100.0))
        assert norms[0, 0].item() == pytest.approx(1e4, rel=1e-4), "the first token is left alone"


def test_nothing_found(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    found = secondary_sinks(case.model, case.batch(2, 6), cosine=1.0)
    assert not len(found.table()) and "none found" in repr(found) and not len(found.levels())
    with pytest.raises(BadInput, match="nothing to cap"):
        found.capped(10.0)
    with pytest.raises(BadInput, match="above 0"):
        found.capped(0)
    assert found.alpha.shape == (2, 2, 6)


def test_an_ask_without_a_mask_takes_every_row(case_of: Callable[[str], Case]) -> None:
    """A tower of images: all tokens are real, the first is CLS."""
    case = case_of("vit")
    found = interp.score(case.model, case.batch(2), {"secondary_sink_mass": {"shortest": 0.0}})["secondary_sink_mass"]
    run = interp.run(case.model, case.batch(2), read=[At(Site.PATTERN, layer=0)])[At(Site.PATTERN, layer=0)]
    np.testing.assert_allclose(found.samples[:, 0, :, 0], run[..., 0].mean(-1), rtol=1e-5)
