"""The whole experiment on models whose heads are known: planted, worked out on paper, trained, absent, or random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import circuits
from circuits.runner import Finished
from interp.zoo import ZOO

STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories260k"
SMALL = {"n_prompts": 16, "segment": 20, "batch_size": 8, "texts": [], "shown": 2, "emergence": False}


def run(folder: Path, **settings: object) -> Finished:
    return circuits.run("induction", {**SMALL, **settings}, out=folder)


def a_set(finished: Finished, name: str) -> dict:
    return next(each for each in finished.facts["sets"] if each["name"] == name)


@pytest.mark.parametrize("name", ["induction-planted", "induction"])
def test_the_heads_of_the_card_are_found_and_no_others(name: str, tmp_path: Path) -> None:
    found = run(tmp_path / "run", model=name)
    heads = found.facts["heads"]
    assert tuple(heads["induction"]) == ZOO[name].heads["induction"] == tuple(heads["prefix_matching"])
    assert tuple(heads["previous_token"]) == ZOO[name].heads["previous_token"]
    for head in (*heads["induction"], *heads["previous_token"]):
        assert head in found.answer
    assert found.facts["loss of the second copy"][0] < 1 and found.facts["loss of the first copy"][0] > 5


def test_what_the_heads_do_is_told_apart(tmp_path: Path) -> None:
    """The induction head moves tokens, so holding patterns still leaves its effect; the previous-token head serves its
    pattern, so holding patterns still leaves nothing. Heads of no role can be taken away."""
    found = run(tmp_path / "run")
    moves, serves = a_set(found, "induction heads"), a_set(found, "previous-token heads")
    assert moves["effect"][0] > 5 and moves["effect with patterns held still"] == pytest.approx(
        moves["effect"][0], abs=0.05
    )
    assert serves["effect"][0] > 5 and abs(serves["effect with patterns held still"]) < 0.1
    assert abs(moves["random effect"][0]) < 0.1 and moves["p"] is None, "three other heads make no p-value"
    assert "every attention pattern held still" in found.answer


def test_the_model_worked_out_on_paper(tmp_path: Path) -> None:
    found = run(tmp_path / "run", model="handmade", segment=6)
    assert {score: list(heads) for score, heads in found.facts["heads"].items()} == {
        "previous_token": ["L0.H0"],
        "duplicate_token": ["L0.H1"],
        "induction": ["L1.H0"],
    }
    notes = " ".join(found.notes)
    assert "The score prefix_matching was left out" in notes and "The score copying was left out" in notes


@pytest.mark.skipif(not STORIES.is_dir(), reason="the small stories model is not here")
def test_a_model_without_induction_heads_gets_none(tmp_path: Path) -> None:
    found = run(tmp_path / "run", model=str(STORIES), segment=50, draws=10)
    assert found.facts["heads"]["induction"] == {} and len(found.facts["heads"]["previous_token"]) >= 3
    assert "there is no induction head" in found.answer and "look one token back" in found.answer
    assert "is hardly foreseen" in found.answer and "complete" not in found.answer


def test_random_weights_get_no_head_and_no_claim(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=8, n_embd=64, n_positions=64, vocab_size=80, bos_token_id=0, eos_token_id=0
    )
    config.initializer_range = 0.2
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    found = run(tmp_path / "run", model=str(tmp_path / "model"), draws=100, top_k=3)
    assert not any(found.facts["heads"].get(score) for score in ("induction", "previous_token"))
    assert "there is no induction head" in found.answer and "no head looks one token back" in found.answer
    assert not any("so they matter by both tests" in note for note in found.notes)


def test_training_shows_when_the_heads_appear(tmp_path: Path) -> None:
    from circuits.experiments.checkpoints import checkpoints_of

    assert checkpoints_of("induction")[0][0] == 0 and len(checkpoints_of("induction")) >= 5
    assert checkpoints_of("handmade") == [] == checkpoints_of("owner/name")
    for name in ("step-20", "checkpoint-3", "checkpoints/step-00100", "step-x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "step-7").mkdir()  # without a config it is something else
    assert [step for step, _ in checkpoints_of(str(tmp_path))] == [3, 20, 100]


@pytest.mark.slow
def test_the_report_follows_the_checkpoints(tmp_path: Path) -> None:
    found = run(tmp_path / "run", emergence=True)
    page = found.report.read_text(encoding="utf-8")
    assert "falls most between steps" in page and "L1.H0 is the first to reach 0.4 for induction, at step" in page
    assert len(page.encode()) < 8e6
