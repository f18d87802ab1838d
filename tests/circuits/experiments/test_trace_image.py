"""The experiment on traces of images: numbers by a second road, the user's own images, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats as scipy_stats

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.trace_image.images import images_of, patch_regions
from circuits.runner import Finished
from interp.errors import BadInput
from interp.zoo.digits import digit_images, pixel_values
from interp.zoo.shapes import CLEAR, random_picture

_stats: Any = scipy_stats
SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "n_images": 6, "methods": ["raw", "rollout", "flow", "gradient-input"], "references": ["blank-out", "gradient"],
        "options": {}, "curves": 4, "curve_draws": 3, "shares": [0.0, 0.2, 1.0], "randomised": ["raw", "rollout"],
        "randomised_images": 3, "random_orders": 10, "shown": 1,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return circuits.run("trace-image", SMALL, out=tmp_path_factory.mktemp("runs") / "image")


def test_the_numbers_by_a_second_road(finished: Finished) -> None:
    """Digits: one patch is one pixel, position 0 is CLS; correlation and pointing by hand."""
    model, digits = interp.load("digits-vit"), digit_images(6)
    labels = [[label] for label in digits.labels.tolist()]
    batch = interp.encode(model, inputs={"pixel_values": pixel_values(digits.images)}, answers=labels)
    rollout = interp.trace(model, batch, "rollout").values[:, 0, 1:]
    gone = interp.trace(model, batch, "blank-out", metric=interp.answer_logprob).values[:, 0, 1:]
    rho = [_stats.spearmanr(a, np.abs(b)).statistic for a, b in zip(rollout, gone, strict=True)]
    assert finished.facts["correlations"]["blank-out"]["rollout"][0] == pytest.approx(np.mean(rho), abs=1e-4)
    ink = (digits.images.numpy() >= 127.5).reshape(6, -1)
    hit = [bool(inside[row.argmax()]) for row, inside in zip(rollout, ink, strict=True)]
    (told,) = [row for row in finished.facts["places"] if row["trace"] == "rollout" and row["measure"] == "pointing"]
    assert told["mean"] == pytest.approx(np.mean(hit)) and told["chance"] == pytest.approx(ink.mean())


def test_it_keeps_every_number_and_shows_the_images(finished: Finished) -> None:
    assert (
        "digits-vit" in finished.answer and "true region" in finished.answer and "covering a patch" in finished.answer
    )
    areas = pd.read_parquet(finished.folder / "areas.parquet")
    assert set(areas["direction"]) == {"deletion", "insertion"}
    rows: list[Any] = areas.to_dict(orient="records")
    own = {row["weights"]: row["area"] for row in rows if row["direction"] == "deletion"}
    assert own["blank-out"] == min(own.values()), "patches whose covering costs most, covered first"
    traces = pd.read_parquet(finished.folder / "traces.parquet")
    assert len(traces[traces["method"] == "flow"]) == 6 * 64 and {"inside", "patch_row"} <= set(traces.columns)
    page = finished.report.read_text(encoding="utf-8")
    assert finished.report.stat().st_size < 8e6 and "data:image/png" in page
    for words in ("Where the answer is", "Covering patches in the order of a trace", "has learnt"):
        assert words in page
    alike = finished.facts["alike with all layers drawn anew"]
    assert set(alike) == {"raw", "rollout"} and not finished.facts["unchanged as layers are drawn anew"]


def test_a_stopped_run_goes_on_where_it_was(finished: Finished) -> None:
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    (finished.folder / "manifest.json").unlink()
    again = circuits.run("trace-image", SMALL, out=finished.folder)
    units = json.loads((finished.folder / "manifest.json").read_text())["units"]
    assert units["computed now"] == 0 and units["from an earlier run"] == sum(manifest["units"].values())
    assert again.facts == finished.facts


def test_pictures_of_shapes_have_their_shape_as_the_region(tmp_path: Path) -> None:
    settings = {**SMALL, "model": "shapes-vlm", "methods": ["raw", "leave-one-out"], "curves": 0, "randomised": []}
    found = circuits.run("trace-image", settings, out=tmp_path / "run")
    assert "leave-one-out" in found.facts["refused"] and "shapes-vlm" in found.answer
    model = interp.load("shapes-vlm", check=False)
    images = images_of(model, load_config("trace-image", settings).config)
    assert images.regions is not None and all(
        region.shape == (6, 6) and 1 <= region.sum() <= 9 for region in images.regions
    )
    batch = images.batch(model)
    logits = interp.run(model, batch, logits="answers").logits
    assert logits is not None
    right = logits[:, 0].argmax(-1).tolist()
    assert np.mean([one[0] == said for one, said in zip(images.answers, right, strict=True)]) > 0.6


def test_regions_of_patches_are_those_that_hold_some_of_the_mask() -> None:
    mask = np.zeros((24, 24), dtype=bool)
    mask[3:9, 3:9] = True
    found = patch_regions([mask], 6, 6).reshape(6, 6)
    assert found[1, 1] and found[0, 1] and not found[0, 0] and found.sum() == 5 and not found[3:].any()


def test_a_users_own_images_and_masks(tmp_path: Path) -> None:
    folder, masks = tmp_path / "images", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    for number in range(4):
        picture = random_picture(np.random.default_rng(number), contrast=CLEAR, count=1)
        Image.fromarray(picture.pixels).save(folder / f"{number}.png")
        Image.fromarray(255 * picture.shapes[0].mask.astype(np.uint8)).save(masks / f"{number}.png")
    settings = {
        **SMALL, "model": "shapes-vlm", "images": str(folder), "regions": str(masks), "methods": ["raw"], "curves": 0,
        "question": "<image> how many shapes are there ?", "randomised": [],
    }  # fmt: skip
    found = circuits.run("trace-image", settings, out=tmp_path / "run")
    assert {row["trace"] for row in found.facts["places"]} == {"raw", "blank-out", "gradient"}
    without = circuits.run("trace-image", {**settings, "regions": None}, out=tmp_path / "other")
    assert without.facts["places"] == [] and "true region" not in without.answer


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "needle"}, "reads no images"),
        ({"images": "nowhere"}, "is no folder"),
        ({"regions": "masks"}, "give images=FOLDER as well"),
        ({"shares": [0.0, 0.5]}, "rise from 0 to 1"),
    ],
)
def test_what_does_not_do_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        circuits.run("trace-image", {**SMALL, **settings}, out=tmp_path / "run")
