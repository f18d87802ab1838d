"""The experiment on vision-aware heads: its numbers by a second road, a user's own questions, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import circuits
import interp
from circuits.config import load_config
from circuits.experiments.vision.job import Job, vision_job
from circuits.experiments.vision.measuring import even_images
from circuits.experiments.vision.questions import questions_of
from circuits.folder import RunFolder
from circuits.outcome import Workplace
from circuits.progress import Silent
from circuits.runner import Finished
from circuits.units import UnitStore
from interp import At, Head, Site
from interp.errors import BadInput
from interp.zoo.shapes import CLEAR, random_picture
from interp.zoo.shapes_text import question

SMALL: dict[str, Any] = {
    "n_prompts": 24,
    "ablation": "zero",
    "random_sets": 20,
    "top": [2],
    "per_layer": [],
    "reinforce_draws": 2,
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One small run."""
    return circuits.run("vision-heads", SMALL, out=tmp_path_factory.mktemp("runs") / "vision")


def job_of(settings: dict[str, Any], folder: Path) -> Job:
    place = Workplace(RunFolder(folder), UnitStore(folder / "units"), Silent())
    (folder / "units").mkdir(parents=True, exist_ok=True)
    return vision_job(load_config("vision-heads", settings).config, place, "vision/test")


def test_it_says_what_it_found_and_keeps_every_number(finished: Finished) -> None:
    assert "shapes-vlm" in finished.answer and "questions with an image" in finished.answer
    assert finished.report.stat().st_size < 8e6
    page = finished.report.read_text(encoding="utf-8")
    for words in ("With the image withheld", "Amplifying the vision-aware heads", "random heads of the same layers"):
        assert words in page
    heads = pd.read_parquet(finished.folder / "heads.parquet")
    assert heads["quantity"].nunique() == 6
    assert set(finished.facts["right"]) == {"with the image", "with an even image", "without the image"}
    assert finished.facts["right"]["with the image"] > 0.8 > finished.facts["right"]["without the image"]


def test_the_numbers_by_a_second_road(finished: Finished, tmp_path: Path) -> None:
    """Divergence from two runs, and an effect from edited logits, both put together here by hand."""
    job = job_of(SMALL, tmp_path)
    model, selected = job.model, job.questions("vision", "selection")
    heads = pd.read_parquet(finished.folder / "heads.parquet").set_index(["quantity", "layer", "head"])["value"]
    batch = selected.batch(model)
    with_image = interp.run(model, batch, read=[At(Site.Z)])
    texts = [prompt.replace("<image> ", "") for prompt in selected.prompts]
    moved = []
    for row, text in enumerate(texts):
        alone = interp.encode(model, [text])
        z = interp.run(model, alone, read=[At(Site.Z)])
        last = batch.lengths[row] - 1
        moved.append(
            [
                (with_image[At(Site.Z, layer=layer)][row, last] - z[At(Site.Z, layer=layer)][0, -1]).norm(dim=-1)
                for layer in range(model.stack().n_layers)
            ]
        )
    plain = np.array([[layer.numpy() for layer in row] for row in moved]).mean(0)
    kept = heads["vision divergence"].to_numpy().reshape(plain.shape)
    assert (kept <= plain + 1e-4).all()  # outliers were set to 0 on some questions, nothing else differs
    assert np.isclose(kept, plain, rtol=1e-3).mean() > 0.5

    judged = job.questions("vision", "evaluation").batch(model)
    head = Head(1, 2)
    logprobs = [
        interp.answer_logprob(interp.run(model, judged, edits=edits, logits="answers").logits, judged).mean().item()
        for edits in ([interp.zero(At(Site.Z, layer=1, heads=(2,)))], [])
    ]
    told = heads["effect on questions with an image", head.layer, head.index]
    assert told == pytest.approx(logprobs[0] - logprobs[1], abs=1e-3)


def test_selection_and_evaluation_share_no_question(tmp_path: Path) -> None:
    job = job_of({**SMALL, "n_prompts": 192, "ablation": "mean"}, tmp_path)
    for sort in ("vision", "text"):
        chosen, judged = (job.questions(sort, purpose) for purpose in ("selection", "evaluation"))
        assert not set(chosen.sources) & set(judged.sources)
        for part in job.parts(sort, "evaluation"):
            assert part.reference is not None and len(part.reference) >= 2
            lengths = {*job.batch(part.questions).lengths, *job.batch(part.reference).lengths}
            assert len(lengths) == 1, "means are taken position by position"
    seen = job.questions("vision", "selection").images or ()
    theirs = {image.tobytes() for image in job.questions("vision", "evaluation").images or ()}
    assert not {image.tobytes() for image in seen} & theirs


def test_even_images_hold_the_mean_colour_alone(tmp_path: Path) -> None:
    job = job_of(SMALL, tmp_path)
    batch = job.questions("vision", "selection").batch(job.model)
    even = even_images(batch).inputs["pixel_values"]
    assert even.std((-2, -1)).max() < 1e-6
    np.testing.assert_allclose(even.mean((-2, -1)), batch.inputs["pixel_values"].mean((-2, -1)), atol=1e-6)


def test_a_stopped_run_goes_on_where_it_was(finished: Finished) -> None:
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    (finished.folder / "manifest.json").unlink()
    again = circuits.run("vision-heads", SMALL, out=finished.folder)
    units = json.loads((finished.folder / "manifest.json").read_text())["units"]
    assert units["computed now"] == 0 and units["from an earlier run"] == sum(manifest["units"].values())
    assert again.facts == finished.facts


@pytest.fixture
def own_questions(tmp_path: Path) -> Path:
    """A folder of PNG files and a CSV about them, as a user brings them."""
    draw, rows = np.random.default_rng(11), []
    for number in range(12):
        picture = random_picture(draw, contrast=CLEAR)
        Image.fromarray(picture.pixels).save(tmp_path / f"{number}.png")
        item = question(picture, "color", draw)
        rows.append({"image": f"{number}.png", "question": item.prompt, "answer": item.answer, "wrong": item.wrong})
    for number in ("two", "three", "four", "five", "six", "seven", "eight", "nine"):
        rows.append({"image": "", "question": f"after {number} comes", "answer": "one", "wrong": "ten"})
    path = tmp_path / "questions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "question", "answer", "wrong"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_users_own_pictures_and_questions(own_questions: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "questions": str(own_questions), "metric": "logit_difference"}
    found = circuits.run("vision-heads", settings, out=tmp_path / "run")
    assert found.facts["right"]["with the image"] >= 0.8
    assert {row["question"] for row in found.facts["without the image"]} <= {
        f"what color is the {kind} ?" for kind in ("circle", "square", "triangle", "cross", "ring")
    }


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "induction"}, "takes no images among its tokens"),
        ({"template": "<image>"}, "has no {question} in it"),
        ({"images": "somewhere"}, "give questions=FILE.csv"),
        ({"questions": "nowhere.csv"}, "cannot be read"),
        ({"ablation": "mean", "n_prompts": 16}, "same length"),
    ],
)
def test_what_does_not_do_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        circuits.run("vision-heads", {**SMALL, **settings}, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("image,", "picture,", 1), "lacks the columns image"),
        (lambda text: "\n".join(text.splitlines()[:6]), "5 questions with an image"),
        (lambda text: text.replace("0.png", "absent.png", 1), "cannot be read"),
        (lambda text: text.replace("after two comes", ""), "a question and an answer are needed"),
        (lambda text: text.replace(",ten", ","), "needs the column 'wrong'"),
    ],
)
def test_a_file_that_does_not_do_is_refused(own_questions: Path, change: Any, says: str) -> None:
    own_questions.write_text(change(own_questions.read_text(encoding="utf-8")), encoding="utf-8")
    config = load_config("vision-heads", {"questions": str(own_questions), "metric": "logit_difference"}).config
    with pytest.raises(BadInput, match=says):
        questions_of(config, interp.load("shapes-vlm", check=False))
