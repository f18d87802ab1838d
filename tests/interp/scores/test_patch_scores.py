"""Scores of image grids: the card's planted maps, loops over patches, and both bugs of the released code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from planted import reduced
from planted_patches import random_maps, seen_by_all, shifted, vision_ask, with_class
from tiny_models import TINY
from torch import Tensor

import interp
from interp import At, Site
from interp.errors import Unsupported
from interp.scores.ask import Ask
from interp.scores.catalogue.position import ENTRIES
from interp.scores.grids.aligned import (
    aligned_map,
    aligned_offset,
    aligned_shift,
    aligned_sum,
    canvas_offset,
    displacements,
)
from interp.scores.grids.directed import DIRECTIONS, directed_entries, directed_offsets, offset_local
from interp.scores.grids.distance_2d import distances_2d, mean_distance_2d
from interp.scores.grids.grid import PatchGrid, given_grid, patch_grid
from interp.scores.grids.hops import hop_centroid, hop_centroid_of, hop_density, hop_profile, ring_masses, ring_sizes
from interp.scores.grids.patches import patch_maps
from interp.scores.grids.spread_2d import class_use, head_spread, head_std, position_spread, position_std
from interp.scores.planning import function_of

K = 7
GRIDS = [(K, K), (3, 5), (1, 4), (2, 1)]
VISION = [name for name, entry in ENTRIES.items() if entry.where == "vision"]


def score(make: Any, maps: Tensor, rows: int, columns: int, *, rows_per_block: int = 10, **options: Any) -> Tensor:
    """``[sample, head]`` a score of maps planted between the patches of images that have a CLS token."""
    whole = with_class(maps)
    while whole.ndim < 4:
        whole = whole[None]
    ask = vision_ask(rows, columns, batch_size=len(whole))
    return reduced(make(ask, **options), whole, rows_per_block=rows_per_block, **seen_by_all(whole))


def places(rows: int, columns: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(rows) for c in range(columns)]


def aad_by_loops(maps: Tensor, rows: int, columns: int, power: int = 2) -> float:
    """The mean distance written out; ``power`` 4 is the released code's template."""
    total = 0.0
    for i, (r, c) in enumerate(places(rows, columns)):
        for j, (s, d) in enumerate(places(rows, columns)):
            dy, dx = (r - s) / max(rows - 1, 1), (c - d) / max(columns - 1, 1)
            total += float(maps[i, j]) * math.sqrt(abs(dx) ** power + abs(dy) ** power)
    return total / (rows * columns)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rows_per_block", [1, 4, 99])
def test_mean_distance_is_the_definition(grid: tuple[int, int], rows_per_block: int) -> None:
    maps = random_maps(grid[0] * grid[1], grid[0] * grid[1])
    found = score(mean_distance_2d, maps, *grid, rows_per_block=rows_per_block).item()
    assert found == pytest.approx(aad_by_loops(maps, *grid), abs=1e-6)
    assert distances_2d(maps, given_grid((*grid, 0))).mean().item() == pytest.approx(found, abs=1e-6)
    assert 0 <= found <= math.sqrt(2)


def test_identity_and_uniform() -> None:
    """The identity is at distance 0 and offset 0; a uniform map at the mean distance of two patches, offset 0."""
    n = K * K
    assert score(mean_distance_2d, torch.eye(n), K, K).item() == 0
    assert score(aligned_offset, torch.eye(n), K, K).item() == pytest.approx(0, abs=1e-6)
    uniform = torch.full((n, n), 1 / n)
    pairs = [math.dist(a, b) / (K - 1) for a in places(K, K) for b in places(K, K)]
    assert score(mean_distance_2d, uniform, K, K).item() == pytest.approx(np.mean(pairs), abs=1e-6)
    assert score(aligned_offset, uniform, K, K).item() == pytest.approx(0, abs=1e-6)


def test_the_released_distance_is_another_number() -> None:
    """Squares taken twice: sqrt(dx^4 + dy^4), which is not the distance; a flag reproduces it."""
    maps = random_maps(K * K, K * K)
    right = score(mean_distance_2d, maps, K, K).item()
    wrong = score(mean_distance_2d, maps, K, K, released_code=True).item()
    assert wrong == pytest.approx(aad_by_loops(maps, K, K, power=4), abs=1e-6)
    assert right - wrong > 0.1
    one_aside = score(mean_distance_2d, shifted(K, K, 0, 1), K, K)
    assert one_aside.item() == pytest.approx((K - 1) / K / (K - 1), abs=1e-6), "border patches look at themselves"


@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (0, -1), (-1, -1), (1, 1)])
def test_a_shift_by_one_patch(down: int, right: int) -> None:
    """Offset 1 / K = .1429 with border patches on themselves (1 / (K - 1) = .1667 inside), directed score 1."""
    maps = shifted(K, K, down, right)
    both = score(aligned_shift, maps, K, K)[0, 0]
    inside = (K - 1) / K if not (down and right) else ((K - 1) / K) ** 2
    torch.testing.assert_close(both, torch.tensor([down, right]).double() * inside / (K - 1), atol=1e-6, rtol=0)
    offset = score(aligned_offset, maps, K, K).item()
    assert offset == pytest.approx(both.norm().item(), abs=1e-7)
    if not (down and right):
        assert offset == pytest.approx(0.142857, abs=1e-5)
    eight = score(directed_offsets, maps, K, K)[0, 0]
    assert eight.argmax() == list(DIRECTIONS.values()).index((down, right)) and eight.max() == 1
    assert score(offset_local, maps, K, K).item() == 1
    interior = [i for i, (r, c) in enumerate(places(K, K)) if 0 < r < K - 1 and 0 < c < K - 1]
    moved = displacements(maps, given_grid((K, K, 0)))[interior]
    torch.testing.assert_close(moved, torch.tensor([down, right]).float().expand(25, 2) / (K - 1))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rows_per_block", [1, 4, 99])
def test_the_aligned_map_is_pasted_patch_by_patch(grid: tuple[int, int], rows_per_block: int) -> None:
    rows, columns = grid
    n = rows * columns
    maps = random_maps(n, n)
    canvas = torch.zeros(2 * rows - 1, 2 * columns - 1, dtype=torch.float64)
    for i, (r, c) in enumerate(places(rows, columns)):
        for j, (s, d) in enumerate(places(rows, columns)):
            canvas[s - r + rows - 1, d - c + columns - 1] += float(maps[i, j]) / n
    torch.testing.assert_close(aligned_sum(maps, given_grid((*grid, 0))) / n, canvas, atol=1e-7, rtol=0)
    found = score(aligned_map, maps, *grid, rows_per_block=rows_per_block)[0, 0]
    torch.testing.assert_close(found.view_as(canvas), canvas, atol=1e-7, rtol=0)
    assert found.sum().item() == pytest.approx(1)
    centre = score(aligned_shift, maps, *grid, rows_per_block=rows_per_block)[0, 0]
    wanted = canvas_offset(canvas).nan_to_num()
    torch.testing.assert_close(centre, wanted if 1 not in grid else centre, atol=1e-6, rtol=0)


def test_bins_of_the_aligned_map() -> None:
    ask = vision_ask(2, 3)
    whole = with_class(shifted(2, 3, 1, -1))[None, None]
    reducer = aligned_map(ask)
    found = reduced(reducer, whole, **seen_by_all(whole))[0, 0]
    bins = reducer.measured().bins
    assert bins is not None and len(bins) == 15 and (bins[0], bins[7], bins[-1]) == ("-1,-2", "0,0", "1,2")
    assert found[list(bins).index("1,-1")].item() == pytest.approx(2 / 6)


@pytest.mark.parametrize("grid", GRIDS)
def test_directed_scores_are_means_over_patches_that_have_the_neighbour(grid: tuple[int, int]) -> None:
    rows, columns = grid
    maps = random_maps(rows * columns, rows * columns)
    found = score(directed_offsets, maps, *grid, rows_per_block=3)[0, 0]
    for value, (down, right) in zip(found, DIRECTIONS.values(), strict=True):
        entries = [
            float(maps[r * columns + c, (r + down) * columns + c + right])
            for r, c in places(rows, columns)
            if 0 <= r + down < rows and 0 <= c + right < columns
        ]
        assert value.item() == pytest.approx(np.mean(entries), abs=1e-6) if entries else value.isnan()
    largest = score(offset_local, maps, *grid).item()
    assert largest == pytest.approx(np.nanmax(found.numpy()))
    entries, there = directed_entries(maps, given_grid((*grid, 0)))
    torch.testing.assert_close(entries.sum(0) / there.sum(0), found.float(), equal_nan=True, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rows_per_block", [1, 4, 99])
def test_rings_are_the_definition(grid: tuple[int, int], rows_per_block: int) -> None:
    """Mass by loops, density over the patches that have the ring; all bins with CLS sum to 1."""
    rows, columns = grid
    n, hops = rows * columns, max(grid)
    maps = random_maps(n, n)
    mass = torch.zeros(n, hops, dtype=torch.float64)
    size = torch.zeros(n, hops, dtype=torch.float64)
    for i, (r, c) in enumerate(places(rows, columns)):
        for j, (s, d) in enumerate(places(rows, columns)):
            hop = max(abs(r - s), abs(c - d))
            mass[i, hop] += float(maps[i, j])
            size[i, hop] += 1
    plain = given_grid((*grid, 0))
    torch.testing.assert_close(ring_masses(maps, plain), mass, atol=1e-6, rtol=0)
    torch.testing.assert_close(ring_sizes(plain), size)
    profile = score(hop_profile, maps, *grid, rows_per_block=rows_per_block)[0, 0]
    torch.testing.assert_close(profile[:-1], 0.75 * mass.mean(0), atol=1e-6, rtol=0)
    assert profile[-1].item() == pytest.approx(0.25, abs=1e-6) and profile.sum().item() == pytest.approx(1, abs=1e-6)
    density = score(hop_density, maps, *grid, rows_per_block=rows_per_block)[0, 0]
    wanted = [0.75 * float((mass / size)[size[:, k] > 0, k].mean()) for k in range(hops)]
    torch.testing.assert_close(density, torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)
    centroid = score(hop_centroid, maps, *grid, rows_per_block=rows_per_block).item()
    assert centroid == pytest.approx(float(hop_centroid_of(mass.mean(0))), abs=1e-6)


def test_a_uniform_head_is_as_dense_at_every_hop() -> None:
    """Averaged over all patches, without the ring rule, hops 4, 5, 6 would read .98, .82, .49 of it."""
    n = K * K
    density = score(hop_density, torch.full((n, n), 1 / n), K, K)[0, 0]
    torch.testing.assert_close(density, torch.full((K,), 0.75 / n, dtype=torch.float64), atol=1e-7, rtol=0)
    sizes = ring_sizes(given_grid((K, K, 0)))
    without = (sizes > 0).double().mean(0)
    assert without.round(decimals=2).tolist() == [1, 1, 1, 1, 0.98, 0.82, 0.49]


def test_a_shift_by_one_patch_is_one_hop() -> None:
    profile = score(hop_profile, shifted(K, K, 0, 1), K, K)[0, 0] / 0.75
    wanted = torch.tensor([1 / K, 1 - 1 / K, *[0.0] * (K - 2)], dtype=torch.float64)  # the last column is on itself
    torch.testing.assert_close(profile[:-1], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("rows_per_block", [1, 4, 99])
def test_spread_over_positions_and_heads(unbiased: bool, rows_per_block: int) -> None:
    maps = random_maps(2, 2, 15, 15)
    keep = {"rows_per_block": rows_per_block, "unbiased": unbiased}
    by_position = score(position_std, maps, 3, 5, **keep)
    wanted = maps.numpy().std(-2, ddof=int(unbiased)).mean(-1)
    np.testing.assert_allclose(by_position, wanted, atol=1e-6)
    torch.testing.assert_close(position_spread(maps, unbiased=unbiased), by_position, atol=1e-6, rtol=0)
    by_head = score(head_std, maps, 3, 5, **keep)
    wanted = maps.numpy().std(1, ddof=int(unbiased)).mean((-2, -1))
    np.testing.assert_allclose(by_head, np.repeat(wanted[:, None], 2, 1), atol=1e-6)
    torch.testing.assert_close(head_spread(maps, unbiased=unbiased), by_head[:, 0], atol=1e-6, rtol=0)


def test_spreads_that_are_0() -> None:
    column = torch.zeros(9, 9).index_fill(1, torch.tensor([4]), 1)
    assert score(position_std, column, 3, 3).item() == pytest.approx(0, abs=1e-7), "every patch looks at one"
    assert score(position_std, torch.eye(9), 3, 3).item() == pytest.approx(math.sqrt(8) / 9, abs=1e-6)
    same = torch.eye(9).expand(1, 2, 9, 9)
    assert score(head_std, same, 3, 3).abs().max() < 1e-7
    one = score(head_std, torch.eye(9)[None, None], 3, 3)
    assert one.isnan().all(), "one head has no spread"


def test_class_use_is_of_cls_and_not_of_the_first_patch() -> None:
    """The released code reads position 1, the first patch; a flag reproduces it."""
    first = torch.zeros(9, 9).index_fill(1, torch.tensor([0]), 1)
    assert score(class_use, first, 3, 3).item() == pytest.approx(0.25)
    assert score(class_use, first, 3, 3, released_code=True).item() == pytest.approx(0.75)
    siglip = interp.load(TINY["siglip"]().hf)
    batch = interp.encode(siglip, inputs=TINY["siglip"]().inputs())
    with pytest.raises(Unsupported, match="no CLS token, all of its 4 positions are patches"):
        interp.score(siglip, batch, "class_use")


@pytest.mark.parametrize("name", VISION)
def test_a_head_that_looks_at_cls_alone_has_no_map_between_patches(name: str) -> None:
    """NaN, except for what counts CLS: never 0."""
    whole = torch.zeros(10, 10).index_fill(1, torch.tensor([0]), 1).expand(1, 2, 10, 10)
    reducer = function_of(ENTRIES[name].function)(vision_ask(3, 3))
    found = reduced(reducer, whole, **seen_by_all(whole))
    if name == "class_use":
        assert (found == 1).all()
    elif name == "hop_profile":
        assert (found[..., -1] == 1).all() and (found[..., :-1] == 0).all()
    elif name == "hop_density":
        assert (found == 0).all()
    else:
        assert found.isnan().all()


def test_a_row_without_mass_on_patches_stays_0() -> None:
    """One of four patches looks at CLS alone: it counts in distances and neighbours, not in the aligned map."""
    whole = with_class(shifted(2, 2, 0, 1))
    whole[1] = torch.tensor([1.0, 0, 0, 0, 0])  # the first patch, which had looked right
    whole = whole[None, None]

    def of(make: Any) -> Tensor:
        return reduced(make(vision_ask(2, 2)), whole, **seen_by_all(whole))[0, 0]

    assert of(mean_distance_2d).item() == pytest.approx(1 / 4)
    assert of(offset_local).item() == pytest.approx(1 / 2)
    torch.testing.assert_close(of(aligned_shift), torch.tensor([0, 1 / 3], dtype=torch.float64), atol=1e-6, rtol=0)
    assert patch_maps(whole[0, 0], given_grid((2, 2, 1)))[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", VISION)
def test_left_out_columns(name: str) -> None:
    """Without a patch's column, rows are rescaled before anything else."""
    whole = with_class(random_maps(1, 2, 9, 9))
    dropped = torch.zeros(1, 10, dtype=torch.bool)
    dropped[0, 5] = True
    function = function_of(ENTRIES[name].function)
    found = reduced(function(vision_ask(3, 3, dropped=dropped)), whole, **seen_by_all(whole))
    rest = whole * ~dropped
    rest = rest / rest.sum(-1, keepdim=True)
    wanted = reduced(function(vision_ask(3, 3)), rest, **seen_by_all(whole))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("family", ["vit", "dinov2", "clip", "llava", "smolvlm", "qwen2_vl"])
def test_real_towers_against_whole_maps(family: str, name: str) -> None:
    """By the pass, and by the pure functions on maps read whole."""
    tiny = TINY[family]()
    model = interp.load(tiny.hf)
    batch = interp.encode(model, inputs=tiny.inputs(1 if family == "qwen2_vl" else 2))
    grid = patch_grid(model, batch)
    if name == "class_use" and not grid.skipped:
        return
    stack = model.stack(next(stack for stack in model.stacks if stack.startswith("vision")))
    found = interp.score(model, batch, name)[name]
    at = At(Site.PATTERN, layer=1, stack=stack.name)
    whole = interp.run(model, batch, read=[at])[at].float()
    np.testing.assert_allclose(found.samples[:, 1], plainly(name, whole, grid), atol=2e-6)


def plainly(name: str, whole: Tensor, grid: PatchGrid) -> Tensor:
    """A score as its definition reads, on whole maps."""
    maps = patch_maps(whole, grid)
    rings = ring_masses(whole[:, :, grid.order][..., grid.order], grid)
    sizes = ring_sizes(grid)
    canvas = aligned_sum(maps, grid)
    entries, there = directed_entries(maps, grid)
    eight = entries.sum(-2) / there.sum(0)
    made = {
        "mean_distance_2d": lambda: distances_2d(maps, grid).mean(-1),
        "aligned_offset": lambda: canvas_offset(canvas).norm(dim=-1),
        "aligned_shift": lambda: canvas_offset(canvas),
        "aligned_map": lambda: (canvas / canvas.sum((-2, -1), keepdim=True)).flatten(-2),
        "directed_offsets": lambda: eight,
        "offset_local": lambda: eight.amax(-1),
        "hop_profile": lambda: torch.cat(
            [rings.mean(-2), whole[:, :, grid.order][..., list(grid.skipped)].sum(-1).mean(-1, keepdim=True)], -1
        ),
        "hop_density": lambda: (rings / sizes.clamp(min=1)).sum(-2) / (sizes > 0).sum(0),
        "hop_centroid": lambda: hop_centroid_of(rings.mean(-2)),
        "position_std": lambda: position_spread(maps),
        "head_std": lambda: head_spread(maps)[:, None].expand(-1, maps.shape[1]),
        "class_use": lambda: whole[:, :, grid.order, grid.skipped[0]].mean(-1),
    }
    return made[name]()


def test_samples_are_images_in_their_order() -> None:
    ask = vision_ask(3, 4, batch_size=3)
    turned = interp.encode(ask.model, inputs={"pixel_values": ask.batch.inputs["pixel_values"].flip(0)})
    for name in VISION:
        found = interp.score(ask.model, ask.batch, name)[name].samples
        np.testing.assert_allclose(interp.score(ask.model, turned, name)[name].samples[::-1], found, atol=1e-6)


def test_a_text_stack_is_refused() -> None:
    llava = interp.load(TINY["llava"]().hf)
    batch = interp.encode(llava, inputs=TINY["llava"]().inputs())
    for name in VISION:
        with pytest.raises(interp.BadInput, match="stack 'text'"):
            function_of(ENTRIES[name].function)(Ask(name, llava, batch, llava.stack("text")))
