"""Visual sinks: planted residuals and maps, the sign of rho, redistribution, and vision-language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case
from planted import ask_for, reduced
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import BadInput, Unsupported
from interp.scores import SCORES
from interp.scores.sinks.visual_attention import VisualSinks, visual_sinks
from interp.scores.sinks.visual_sinks import (
    image_centric,
    image_centric_rows,
    nonsink_ratio,
    sink_size,
    text_after,
    visual_nonsink_ratio,
    visual_sink_mass,
)

VLMS = ("llava", "paligemma", "qwen2_vl", "smolvlm", "idefics3")
IMAGE = slice(1, 5)  # the prompt: BOS, four image tokens, three words
WIDTH = 64


def planted_residual(*sinks: int, dimension: int = 9) -> Tensor:
    """``[1, 8, d]`` unit noise; the given columns are large in one dimension: phi = sqrt(64) but for the noise."""
    x = 0.01 * torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = 1
    for column in sinks:
        x[0, column] *= 0.01
        x[0, column, dimension] = 1
    return x


def planted_map() -> Tensor:
    """Rows of words give 0.1 to BOS, 0.3, 0.2, 0.1, 0.1 to the image, the rest to themselves."""
    pattern = torch.eye(8)
    pattern[5:] = 0
    pattern[5:, :5] = torch.tensor([0.1, 0.3, 0.2, 0.1, 0.1])
    pattern[5, 5] = pattern[6, 6] = pattern[7, 7] = 0.2
    return pattern.expand(2, -1, -1)


def score_of(make: Any, residual: Tensor, pattern: Tensor | None = None, **options: Any) -> float:
    ask = ask_for(8)
    reducer = make(ask, image=IMAGE, **{"dimensions": [9], "tau": 7.0, **options})
    found = reduced(reducer, planted_map() if pattern is None else pattern, seen={Site.RESID_PRE: residual})
    assert found[0, 0].item() == pytest.approx(found[0, 1].item(), nan_ok=True)
    return found[0, 0].item()


def test_the_size_of_sink_dimensions() -> None:
    """The planted columns and nothing else, without any learned gain; scale does not matter."""
    x = planted_residual(0, 2)
    phi = sink_size(x, [9])[0]
    assert (phi > 7).nonzero().flatten().tolist() == [0, 2]
    assert phi.max().item() <= WIDTH**0.5
    torch.testing.assert_close(sink_size(1000 * x, [9])[0, [0, 2]], phi[[0, 2]], rtol=1e-3, atol=0)
    by_hand = x[0, 2, 9].abs() / (x[0, 2].square().mean() + 1e-6).sqrt()
    assert phi[2].item() == pytest.approx(by_hand.item())
    assert sink_size(x, []).eq(0).all()


def test_the_ratio_of_a_planted_map() -> None:
    """The image gets 0.7; column 1 (0.3) is a sink: r = 4/7. The sink at BOS is no image token."""
    assert score_of(visual_nonsink_ratio, planted_residual(0, 1)) == pytest.approx(4 / 7)
    assert score_of(visual_sink_mass, planted_residual(0, 1)) == pytest.approx(0.3)
    assert score_of(visual_nonsink_ratio, planted_residual(0)) == 1, "no visual sink"
    assert score_of(visual_nonsink_ratio, planted_residual(1, 2, 3, 4)) == pytest.approx(0, abs=1e-6)
    assert np.isnan(score_of(visual_nonsink_ratio, planted_residual(1), torch.eye(8).expand(2, -1, -1)))


@pytest.mark.parametrize(("rho", "centric"), [(0.5, 1), (0.8, 0), (0.2, 1)])
def test_rho_bounds_what_is_not_on_sinks(rho: float, centric: int) -> None:
    """r = 4/7 passes 0.5 and 0.2 and not 0.8; a bound on the complement (3/7) would pass 0.5 and 0.8 and not 0.2."""
    assert score_of(image_centric, planted_residual(1), rho=rho) == centric


def test_least_mass() -> None:
    assert score_of(image_centric, planted_residual(1), least_mass=0.69) == 1
    assert score_of(image_centric, planted_residual(1), least_mass=0.71) == 0
    on_image, on_sinks = torch.tensor([0.0, 0.4, 0.4]), torch.tensor([0.0, 0.0, 0.4])
    assert image_centric_rows(on_image, on_sinks).tolist() == [False, True, False]
    assert nonsink_ratio(on_image, on_sinks).nan_to_num(-1).tolist() == [-1, 1, 0]


def test_rows_are_the_text_after_the_image() -> None:
    """Row 0 before it and the image's own rows do not count, unless they are asked for."""
    assert text_after(torch.tensor([[False, True, True, False, False]]), None)[0].tolist() == [False] * 3 + [True] * 2
    pattern = planted_map().clone()
    pattern[:, :5, :5] = 0
    pattern[:, :5, 1] = 1  # everything on the sink
    assert score_of(visual_nonsink_ratio, planted_residual(1), pattern) == pytest.approx(4 / 7)
    assert score_of(visual_nonsink_ratio, planted_residual(1), pattern, queries=slice(2, 4)) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rho": 1.2}, "from 0 to 1"),
        ({"least_mass": True}, "from 0 to 1"),
        ({"tau": -1}, "from 0 to inf"),
        ({"dimensions": []}, "None to derive"),
        ({"dimensions": [10**6]}, "None to derive"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        image_centric(ask_for(8), image=IMAGE, **{"dimensions": [0], **options})


def test_models_without_images_and_prompts_without_text_are_refused(case_of: Callable[[str], Case]) -> None:
    case = case_of("gpt2")
    for name in ("visual_nonsink_ratio", "visual_sink_mass", "image_centric"):
        with pytest.raises(Unsupported, match="takes no images"):
            interp.score(case.model, case.batch(), name)
    with pytest.raises(Unsupported, match="takes no images"):
        visual_sinks(case.model, case.batch())
    with pytest.raises(BadInput, match="ends with its image"):
        visual_nonsink_ratio(ask_for(8), image=slice(3, None), dimensions=[0])


def planted_sinks(pattern_layers: int = 2) -> VisualSinks:
    image = torch.zeros(1, 8, dtype=torch.bool)
    image[0, IMAGE] = True
    phi = {layer: torch.zeros(1, 8) for layer in range(pattern_layers)}
    for sizes in phi.values():
        sizes[0, [0, 1]] = 30.0
    real = torch.ones(1, 8, dtype=torch.bool)
    return VisualSinks(phi, image, text_after(image, None), real, (9,), 20.0, "text")


class Place:
    """The parts of an edit's context that it reads."""

    def __init__(self, rows: int, keys: int) -> None:
        self.rows, self.keys, self.prompts = torch.arange(rows), torch.arange(keys), torch.zeros(1, dtype=torch.long)


def moved(found: VisualSinks, pattern: Tensor, **options: Any) -> Tensor:
    (edit,) = found.redistribution(**options)
    assert edit.function is not None
    return edit.function(pattern[None], Place(*pattern.shape[-2:]))[0]  # type: ignore[arg-type]


def test_redistribution_by_hand() -> None:
    """Sinks keep 0.6: BOS 0.06, column 1 0.18; 0.16 is shared among 0.2, 0.1, 0.1 in proportion."""
    after = moved(planted_sinks(), planted_map())
    row = torch.tensor([0.06, 0.18, 0.28, 0.14, 0.14, 0.2, 0, 0])
    torch.testing.assert_close(after[0, 5], row)
    torch.testing.assert_close(after.sum(-1), torch.ones(2, 8), atol=1e-6, rtol=0)
    torch.testing.assert_close(after[:, 5:, 2] / after[:, 5:, 3], torch.full((2, 3), 2.0))
    assert torch.equal(after[:, :5], planted_map()[:, :5]), "rows before the text"
    assert torch.equal(moved(planted_sinks(), planted_map(), p=1.0), planted_map())


def test_rows_that_are_not_image_centric_stay() -> None:
    assert torch.equal(moved(planted_sinks(), planted_map(), rho=0.8), planted_map())
    assert torch.equal(moved(planted_sinks(), planted_map(), least_mass=0.75), planted_map())


def test_without_visual_sinks_nothing_is_moved_even_with_text_sinks() -> None:
    found = planted_sinks()
    for sizes in found.phi.values():
        sizes[0, 1] = 0
    assert found.redistribution() == [] and found.text(0)[0].nonzero().flatten().tolist() == [0]


def test_the_last_layer_is_left_alone_unless_asked_for() -> None:
    assert [edit.at[0].layer for edit in planted_sinks().redistribution()] == [0]
    assert [edit.at[0].layer for edit in planted_sinks().redistribution(last_layer=True)] == [0, 1]
    with pytest.raises(BadInput, match="from 0 to 1"):
        planted_sinks().redistribution(1.5)


@pytest.mark.parametrize("name", VLMS)
def test_vision_language_models(case_of: Callable[[str], Case], name: str) -> None:
    """Scores against whole maps; a low tau makes sinks of some image tokens, and the edit keeps sums of rows."""
    case = case_of(name)
    batch = case.batch(2, 6)
    found = visual_sinks(case.model, batch, dimensions=[3, 7], tau=1.0)
    asked = {
        kind: {"dimensions": [3, 7], "tau": 1.0}
        for kind in ("visual_nonsink_ratio", "visual_sink_mass", "image_centric")
    }
    scores = interp.score(case.model, batch, asked, block=1)
    run = interp.run(case.model, batch, read=[At(Site.PATTERN), At(Site.RESID_PRE)], kernels="eager")
    met = 0
    for layer in range(2):
        x = run[At(Site.RESID_PRE, layer=layer)]
        phi = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())[..., [3, 7]].abs().amax(-1)
        torch.testing.assert_close(found.phi[layer], phi, rtol=1e-4, atol=1e-4)
        sinks = (phi > 1) & found.image
        met += int(sinks.sum())
        pattern = run[At(Site.PATTERN, layer=layer)]
        on_image = (pattern * found.image[:, None, None]).sum(-1)
        on_sinks = (pattern * sinks[:, None, None]).sum(-1)
        for prompt in range(2):
            rows = found.text_rows[prompt]
            own, part = on_image[prompt][:, rows], on_sinks[prompt][:, rows]
            expected = {
                "visual_nonsink_ratio": (1 - part / own).mean(-1),
                "visual_sink_mass": part.mean(-1),
                "image_centric": ((own >= 0.2) & (1 - part / own >= 0.5)).float().mean(-1),
            }
            for kind, value in expected.items():
                np.testing.assert_allclose(scores[kind].samples[prompt, layer], value, rtol=1e-4, atol=1e-5)
    assert met, "some image token is a sink at this tau"
    edits = found.redistribution(rho=0.0, least_mass=0.0, last_layer=True)
    after = interp.run(case.model, batch, read=[At(Site.PATTERN)], edits=edits)[At(Site.PATTERN)]
    torch.testing.assert_close(after.sum(-1), run[At(Site.PATTERN)].sum(-1), atol=1e-5, rtol=0)
    neutral = found.redistribution(1.0, rho=0.0, least_mass=0.0, last_layer=True)
    same, plain = (interp.run(case.model, batch, edits=given, kernels="eager").logits for given in (neutral, []))
    assert same is not None and plain is not None and torch.equal(same, plain)


def test_dimensions_are_derived_from_the_first_token(case_of: Callable[[str], Case]) -> None:
    """A tower of 32 dimensions reaches sqrt(32) at most: with tau 20 there is none, with a planted one it is found."""
    case = case_of("llava")
    batch = case.batch(1, 6)
    none = visual_sinks(case.model, batch)
    assert none.dimensions == () and none.redistribution() == []
    scores = interp.score(case.model, batch, "visual_nonsink_ratio")["visual_nonsink_ratio"]
    np.testing.assert_allclose(scores.values, 1)
    assert scores.metadata["dimensions"] == []

    def plant(module: Any, inputs: Any, output: Tensor) -> Tensor:
        made = output.clone()
        made[:, 0, 11] = 1e4
        return made

    handle = case.hf.get_input_embeddings().register_forward_hook(plant)
    try:
        found = visual_sinks(case.model, batch, tau=5.0)
    finally:
        handle.remove()
    assert found.dimensions == (11,) and found.text(0)[0, 0]
    assert "dimensions [11]" in repr(found) and set(found.table()["layer"]) <= {0, 1}


def test_generated_tokens_are_rows_too(case_of: Callable[[str], Case]) -> None:
    """While generating, keys beyond the prompt are no members, and new rows are text."""
    found = planted_sinks()
    (edit,) = found.redistribution()
    place = Place(1, 9)
    place.rows = torch.tensor([8])
    row = torch.zeros(1, 2, 1, 9)
    row[..., :5] = torch.tensor([0.1, 0.3, 0.2, 0.1, 0.1])
    row[..., 8] = 0.2
    assert edit.function is not None
    after = edit.function(row, place)  # type: ignore[arg-type]
    torch.testing.assert_close(after[0, 0, 0], torch.tensor([0.06, 0.18, 0.28, 0.14, 0.14, 0, 0, 0, 0.2]))
    case = case_of("llava")
    batch = case.batch(1, 6)
    edits = visual_sinks(case.model, batch, dimensions=[3, 7], tau=1.0).redistribution(0.0, rho=0, least_mass=0)
    made = interp.generate(case.model, batch, edits=edits, max_new_tokens=3)
    assert made is not None


def test_sink_dimensions_of_all_prompts_whatever_the_batch_size(case_of: Callable[[str], Case]) -> None:
    """Derived from the prompts together: one prompt at a time would give every prompt dimensions of its own."""
    case = case_of("llama")
    batch = case.batch(3, 9)
    names = ["visual_nonsink_ratio", "visual_sink_mass", "image_centric"]
    assert all(SCORES[name].whole for name in names)
    wanted = {name: {"image": slice(1, 4), "tau": 1.0} for name in names}
    together, apart = (interp.score(case.model, batch, wanted, batch_size=size) for size in (None, 1))
    for name in names:
        assert apart[name].metadata["dimensions"] == together[name].metadata["dimensions"]
        np.testing.assert_array_equal(apart[name].samples, together[name].samples)
