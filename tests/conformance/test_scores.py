"""Every score on every family: the plain computation on whole maps, its range, and what may not change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import At, Batch, Site
from interp.model.row_blocks import Block
from interp.scores import SCORES
from interp.scores.ask import Ask
from interp.scores.dropping import dropped_columns
from interp.scores.kinds import Score
from interp.scores.planning import function_of, wanted_scores
from interp.scores.reducer import Reducer

from .score_settings import SETTINGS
from .support import DECODERS, Case, families

PASS = [name for name, entry in SCORES.items() if entry.needs == "pass" and entry.prompts == "given"]
LENGTH = 10


def prompts(case: Case, size: int = 3, length: int = LENGTH) -> Batch:
    """Prompts in which some tokens stand twice, so that scores of repeats have rows to count."""
    batch = case.batch(size, length)
    if batch.ids is None or case.tiny.kind == "vision-language":
        return batch
    half = batch.width // 2
    ids = batch.ids.clone()
    ids[:, half : 2 * half] = ids[:, :half]
    inputs = {name: ids if value is batch.ids else value for name, value in batch.inputs.items()}
    return replace(batch, ids=ids, inputs=inputs)


def asked(case: Case, batch: Batch, names: list[str]) -> tuple[dict[str, tuple[Batch, dict[str, Any]]], dict[str, str]]:
    """Name -> (batch, options) of the scores that the family takes, and name -> message of those it refuses."""
    taken, refused = {}, {}
    for name in names:
        own, options = SETTINGS[name](case, batch) if name in SETTINGS else (batch, {})
        try:
            (one,) = wanted_scores(case.model, {name: options}, None)
            function_of(one.entry.function)(Ask(name, case.model, own, one.stack), **options)
        except interp.HeadscopeError as error:
            refused[name] = str(error)
        else:
            taken[name] = (own, options)
    return taken, refused


def plain(case: Case, batch: Batch, name: str, options: Mapping[str, Any], sinks: Any = None) -> np.ndarray:
    """The score from whole maps of the architecture's own eager attention, all rows in one block."""
    (one,) = wanted_scores(case.model, {name: dict(options)}, None)
    stack = one.stack
    ask = Ask(name, case.model, batch, stack, dropped_columns(sinks, batch, stack))
    reducer = function_of(one.entry.function)(ask, **options)
    assert isinstance(reducer, Reducer)
    maps = {Site.PATTERN, Site.SCORES} if reducer.maps else set()
    reads = [At(site, layer=layer, stack=stack.name) for layer in ask.layers for site in maps | set(reducer.sites)]
    seen = interp.run(case.model, batch, read=reads, kernels=None if stack.family.packed else "eager")
    with torch.no_grad():
        for layer in ask.layers:
            held = {site: seen[At(site, layer=layer, stack=stack.name)] for site in reducer.sites}
            early = {site: x for site, x in held.items() if site in (Site.RESID_PRE, Site.Q, Site.K, Site.V)}
            reducer.start(layer, early)
            if reducer.maps:
                pattern = seen[At(Site.PATTERN, layer=layer, stack=stack.name)].float()
                scores = seen[At(Site.SCORES, layer=layer, stack=stack.name)].float()
                _whole_block(reducer, ask, layer, pattern, scores, early)
            reducer.finish(layer, held)
    found = reducer.measured()
    widest = max(stack.n_kv_heads(i) if found.unit == "kv" else stack.n_heads(i) for i in range(stack.n_layers))
    first = next(iter(found.by_layer.values()))
    grid = np.full((len(first), stack.n_layers, widest, *first.shape[2:]), np.nan)
    for layer, values in found.by_layer.items():
        grid[:, layer, : values.shape[1]] = values.double().numpy()
    return grid


def _whole_block(reducer: Reducer, ask: Ask, layer: int, pattern: Any, scores: Any, early: Any) -> None:
    rows = torch.arange(pattern.shape[2]).expand(len(pattern), -1)
    if reducer.rows is not None:
        rows = reducer.rows
    index = rows[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[3])
    pattern, scores = pattern.gather(2, index), scores.gather(2, index)
    real = torch.ones_like(rows, dtype=torch.bool) if ask.mask is None else ask.mask.gather(1, rows)
    visible = (scores > -torch.inf) & real[:, None, :, None]
    kept = None if ask.dropped is None else ~ask.dropped
    block = Block(ask.stack, layer, rows, real, pattern * real[:, None, :, None], visible, kept, scores, early)
    features = reducer.features(layer, block.n_keys, block.rows)
    products = None
    if features is not None:
        products = block.pattern @ features.float().unsqueeze(1)
    reducer.block(block, products)


def samples(scores: interp.HeadScores) -> np.ndarray:
    return scores.samples


def close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    low, high = SCORES[name].range
    size = max(abs(low), abs(high))
    if np.isinf(size):  # sums whose terms cancel (negative_attention) are as exact as their terms, not as what is left
        size = max(1.0, float(np.nanmax(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * size + 1e-6, err_msg=name, equal_nan=True)


@families
def test_the_plain_computation(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = prompts(case)
    taken, refused = asked(case, batch, PASS)
    assert all(len(message) > 20 for message in refused.values())
    for score, (own, options) in taken.items():
        expected = plain(case, own, score, options)
        for block in (None, 1):
            found = interp.score(case.model, own, {score: options}, block=block)[score]
            close(samples(found), expected, score)
        low, high = SCORES[score].range
        finite = expected[np.isfinite(expected)]
        assert ((finite >= low - 1e-5) & (finite <= high + 1e-5)).all(), score


@families
def test_scores_asked_together_are_scores_asked_alone(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = prompts(case)
    taken, _ = asked(case, batch, PASS)
    common = {score: options for score, (own, options) in taken.items() if own is batch}
    if not common:
        pytest.skip("no score of whole prompts has a meaning here")
    plan: list[str] = []
    together = interp.score(case.model, batch, common, tell=plan.append)
    stacks = {wanted.stack.name for wanted in wanted_scores(case.model, common, None)}
    assert together.plan.forwards == len(stacks) and plan
    for score in common:
        alone = interp.score(case.model, batch, {score: common[score]})[score]
        close(samples(together[score]), samples(alone), score)  # one product for all of them rounds as it likes


@pytest.mark.parametrize("name", DECODERS)
def test_order_and_batch_size(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = prompts(case)
    taken, _ = asked(case, batch, PASS)
    order = torch.tensor([2, 0, 1])
    for score, (own, options) in taken.items():
        if SCORES[score].whole:
            continue
        whole = samples(interp.score(case.model, own, {score: options})[score])
        single = samples(interp.score(case.model, own, {score: options}, batch_size=1)[score])
        close(single, whole, score)
        moved = {
            key: x[order] if isinstance(x, torch.Tensor) and len(x) == len(own) else x for key, x in options.items()
        }
        turned = samples(interp.score(case.model, own.select(order), {score: moved})[score])
        close(turned, whole[order.numpy()], score)


@pytest.mark.parametrize("name", [n for n in DECODERS if n not in ("gptj",)])
@pytest.mark.parametrize("sinks", ["first", 2])
def test_left_out_columns(case_of: Callable[[str], Case], name: str, sinks: Any) -> None:
    case = case_of(name)
    batch = prompts(case)
    taken, _ = asked(case, batch, PASS)
    for score, (own, options) in taken.items():
        expected = plain(case, own, score, options, sinks)
        for block in (None, 1):
            found = interp.score(case.model, own, {score: options}, exclude_sinks=sinks, block=block)[score]
            close(samples(found), expected, score)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "gpt_oss", "bloom"])
def test_padding(case_of: Callable[[str], Case], name: str, side: str) -> None:
    case = case_of(name)
    ids = prompts(case).ids
    assert ids is not None
    lengths = (LENGTH, LENGTH - 2, LENGTH - 4)
    rows = [ids[i, -length:].tolist() for i, length in enumerate(lengths)]
    batch = interp.encode(case.model, rows, padding_side=side)
    for score, (own, options) in asked(case, batch, PASS)[0].items():
        if SCORES[score].whole:
            continue
        if any(isinstance(value, torch.Tensor) for value in options.values()):
            continue
        found = samples(interp.score(case.model, own, {score: options})[score])
        for row in range(len(rows)):
            alone = interp.encode(case.model, rows[row : row + 1])
            single, again = SETTINGS[score](case, alone) if score in SETTINGS else (alone, {})
            expected = samples(interp.score(case.model, single, {score: again})[score])
            np.testing.assert_allclose(found[row], expected[0], rtol=1e-3, atol=2e-4, err_msg=f"{score} {row}")


def test_no_score_is_refused_everywhere(case_of: Callable[[str], Case]) -> None:
    met: set[str] = set()
    for name in ("gpt2", "llama", "vit", "llava"):
        case = case_of(name)
        met |= set(asked(case, prompts(case), PASS)[0])
    assert met == set(PASS)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_text_models_take_every_score_of_tokens(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    _, refused = asked(case, prompts(case), PASS)

    def of_tokens(entry: Score) -> bool:
        return entry.where in ("any", "text", "causal")

    assert not {score: why for score, why in refused.items() if of_tokens(SCORES[score])}
