"""The trained models of the zoo keep what their cards promise, measured here with transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import zoo
from interp.errors import BadInput, UnknownName
from interp.zoo.initialise import untrained
from interp.zoo.recipes import RECIPES
from interp.zoo.repeats import evaluation_rows, training_rows
from interp.zoo.train_induction import train
from interp.zoo.words import WORDS, build_tokenizer, vocabulary

TRAINED = sorted(RECIPES)
MEGABYTE = 1_000_000
LENGTH = 60


def card_of(name: str) -> dict[str, Any]:
    return json.loads((zoo.path(name) / "card.json").read_text())


def curve_of(name: str) -> list[dict[str, Any]]:
    return json.loads((zoo.path(name) / "training_curve.json").read_text())


def fresh_rows(n_rows: int, seed: int) -> np.ndarray:
    """Repeated sequences drawn with another generator than the card's."""
    draw = np.random.default_rng(seed)
    words = [draw.choice(np.arange(3, len(vocabulary())), size=LENGTH, replace=False) for _ in range(n_rows)]
    return np.array([[0, *row, *row] for row in words])


def measured_on(path: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Losses and scores, entry by entry from the returned attentions and logits."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(torch.tensor(ids), output_attentions=True)
    probabilities = output.logits.double().softmax(-1).numpy()
    n_rows, width = ids.shape
    losses = np.array(
        [[-np.log(probabilities[row, at - 1, ids[row, at]]) for at in range(1, width)] for row in range(n_rows)]
    )
    patterns = torch.stack(output.attentions).double().numpy()  # [layer, row, head, query, key]
    second = range(LENGTH + 1, width)
    return {
        "first_half_loss": losses[:, :LENGTH].mean(),
        "second_half_loss": losses[:, LENGTH + 1 :].mean(),
        "second_half_loss_with_its_first_token": losses[:, LENGTH:].mean(),
        "previous_token": np.mean([patterns[..., i, i - 1].mean(1) for i in range(1, width)], axis=0),
        "induction": np.mean([patterns[..., i, i - LENGTH + 1].mean(1) for i in second], axis=0),
    }


@pytest.mark.parametrize("name", TRAINED)
def test_the_claims_hold_on_fresh_sequences(name: str) -> None:
    found = measured_on(zoo.path(name), fresh_rows(32, seed=5))
    assert found["second_half_loss_with_its_first_token"] <= 0.2
    assert found["first_half_loss"] / found["second_half_loss_with_its_first_token"] >= 5
    assert found["induction"][1, 0] > 0.8
    assert found["previous_token"][0, 0] > (0.8 if name == "induction-planted" else 0.4)
    others = np.delete(found["previous_token"].ravel(), 0)
    assert others.max() < 0.25, "no other head shares the previous-token role"


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_tells_what_was_measured(name: str) -> None:
    card = card_of(name)
    found = measured_on(zoo.path(name), evaluation_rows(64, length=LENGTH).numpy())
    for key, value in found.items():
        np.testing.assert_allclose(value, card["measured"][key], atol=2e-3, err_msg=key)


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_belongs_to_the_recipe_and_the_registry(name: str) -> None:
    card = card_of(name)
    assert card["training"]["recipe"] == json.loads(json.dumps(asdict(RECIPES[name])))
    assert card["heads"]["induction"].keys() >= set(zoo.ZOO[name].heads["induction"])
    assert card["heads"]["previous_token"].keys() == set(zoo.ZOO[name].heads["previous_token"])
    assert zoo.ZOO[name].checkpoints == RECIPES[name].checkpoints
    assert ("PLANTED" in card["supervision"]) == (name == "induction-planted")
    page = (zoo.path(name) / "README.md").read_text()
    assert card["training"]["command"] in page
    assert f"{card['measured']['second_half_loss']:.3f}" in page


@pytest.mark.parametrize("name", TRAINED)
def test_files_are_small_and_hold_no_pickle(name: str) -> None:
    files = [file for file in zoo.path(name).rglob("*") if file.is_file()]
    beside_checkpoints = [file for file in files if "checkpoints" not in file.parts]
    assert sum(file.stat().st_size for file in beside_checkpoints) < 2 * MEGABYTE
    assert sum(file.stat().st_size for file in files) < 6 * MEGABYTE
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


def test_the_card_says_what_is_lost_without_a_head() -> None:
    """Second road: that head's rows of the output projection set to zero."""
    card = card_of("induction")["measured"]
    ids = evaluation_rows(64, length=LENGTH)
    for layer, head in ((0, 0), (0, 2), (1, 0)):
        model = AutoModelForCausalLM.from_pretrained(zoo.path("induction")).eval()
        with torch.no_grad():
            model.transformer.h[layer].attn.c_proj.weight[head * 16 : head * 16 + 16] = 0
            logp = model(ids).logits.log_softmax(-1)
        loss = -logp[:, LENGTH:-1].gather(-1, ids[:, LENGTH + 1 :, None])[:, 1:].mean().item()
        assert loss == pytest.approx(card["second_half_loss_without"][layer][head], abs=2e-3, rel=2e-3)
        assert (loss > 5) == (head == 0), "only the two known heads matter"


def test_the_notes_on_where_the_heads_rest() -> None:
    """The card's note: L0.H0 half one back, a fifth two back, a tenth on itself; L1.H0 on <bos>."""
    model = AutoModelForCausalLM.from_pretrained(zoo.path("induction"), attn_implementation="eager").eval()
    with torch.no_grad():
        first, second = model(evaluation_rows(32)[:, : LENGTH + 1], output_attentions=True).attentions
    back = [first[:, 0].diagonal(-distance, -2, -1)[:, 10:].mean().item() for distance in range(3)]
    assert back == pytest.approx([0.1, 0.5, 0.2], abs=0.05)
    assert second[:, 0, 10:, 0].mean().item() == pytest.approx(0.8, abs=0.05)


def test_induction_emerges_between_the_checkpoints() -> None:
    """The two heads find their roles together, and the second half's loss leaves its plateau as they do."""
    curve = {row["step"]: row for row in curve_of("induction")}
    kept = [step for step, _ in zoo.checkpoints("induction")]
    induction = [curve[step]["induction"][1][0] for step in kept]
    assert induction[0] < 0.05 and induction[-1] > 0.8
    assert sum(0.1 < score < 0.85 for score in induction) >= 1, "no checkpoint inside the change"
    rise = {
        name: min(step for step, row in curve.items() if row[name][layer][0] > 0.5 * curve[kept[-1]][name][layer][0])
        for name, layer in (("induction", 1), ("previous_token", 0))
    }
    assert all(400 < step < 1500 for step in rise.values())
    assert abs(rise["previous_token"] - rise["induction"]) <= 100
    before, after = curve[rise["induction"] - 250], curve[rise["induction"] + 250]
    assert before["second_half_loss"] - after["second_half_loss"] > 2
    first = [row["first_half_loss"] for row in curve.values()]
    assert max(first) - first[-1] > 0.5, "the bump of the first half's loss"


def test_checkpoints_are_models_whose_scores_are_on_the_curve() -> None:
    curve = {row["step"]: row for row in curve_of("induction")}
    ids = evaluation_rows(16, length=LENGTH).numpy()
    for step, path in (zoo.checkpoints("induction")[at] for at in (0, 6, -1)):
        found = measured_on(path, ids)
        for key in ("induction", "previous_token"):
            np.testing.assert_allclose(found[key], curve[step][key], atol=5e-3, err_msg=f"step {step}, {key}")
    loaded = AutoModelForCausalLM.from_pretrained(zoo.checkpoints("induction")[0].path)
    assert loaded.dtype == torch.float32


def test_step_0_is_what_the_script_starts_from() -> None:
    stored = load_file(zoo.checkpoints("induction")[0].path / "model.safetensors")
    fresh = untrained(RECIPES["induction"], seed=0).state_dict()
    assert stored.keys() == fresh.keys() - {"lm_head.weight"}
    for name, weight in stored.items():
        # orthogonal matrices come from LAPACK, which may round otherwise on another processor
        torch.testing.assert_close(weight.float(), fresh[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_training_is_reproducible(name: str) -> None:
    runs = [train(RECIPES[name], seed=seed, steps=4).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not torch.equal(runs[0]["transformer.wte.weight"], runs[2]["transformer.wte.weight"])
    start = untrained(RECIPES[name], seed=0).state_dict()
    assert not torch.equal(start["transformer.h.0.attn.c_attn.weight"], runs[0]["transformer.h.0.attn.c_attn.weight"])


def test_planting_teaches_the_pattern_and_nothing_else_is_supervised() -> None:
    """A few steps of planting move head 0.0 towards the previous token; the natural recipe has no such term."""
    assert RECIPES["induction"].planting == 0
    recipe = RECIPES["induction-planted"]
    trained = train(recipe, steps=60)
    trained.set_attn_implementation("eager")
    with torch.no_grad():
        pattern = trained(evaluation_rows(2), output_attentions=True).attentions[0]
    scores = pattern.diagonal(-1, -2, -1).mean((0, 2))
    assert scores[0] > 2 * scores[1:].max()


def test_training_rows_repeat_and_weigh_what_the_repetition_determines() -> None:
    rows = training_rows(RECIPES["induction"], torch.Generator().manual_seed(3))
    assert (rows.ids[:, 0] == 0).all() and (rows.ids[:, 1:] >= 3).all()
    for ids, weight, known, period in zip(rows.ids, rows.weight, rows.predictable, rows.period.tolist(), strict=True):
        at = torch.nonzero(known).flatten()
        assert torch.equal(ids[at], ids[at - period])
        assert torch.equal(ids[at - 1], ids[at - 1 - period]), "the word before it repeats too"
        assert (weight[known] == 1).all() and (weight[~known] == RECIPES["induction"].unpredictable_weight).all()
        assert len(at) == ids.shape[0] - at[0], "to the end of the row"


@pytest.mark.parametrize("name", TRAINED)
def test_tokenizer_reads_sentences(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    ids = tokenizer("The old man, and the zebra.").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "the", "old", "man", ",", "and", "the", "<unk>", "."]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length == RECIPES[name].context
    assert tokenizer.get_vocab() == vocabulary() == build_tokenizer(context=8).get_vocab()


def test_words_are_words() -> None:
    assert len(set(WORDS)) == len(WORDS) > 300
    assert all(word.isalpha() and word.islower() for word in WORDS if word not in (",", "."))


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, interp.zoo as zoo; zoo.path('induction'); zoo.checkpoints('induction'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in loaded and "transformers" not in loaded


def test_every_folder_is_listed_and_every_entry_is_there() -> None:
    here = Path(zoo.__file__).parent
    folders = {folder.name for folder in here.iterdir() if (folder / "config.json").is_file()}
    assert folders == {model.folder for model in zoo.ZOO.values()} - {None}
    assert all(model.name == name for name, model in zoo.ZOO.items())
    for name in zoo.ZOO:
        assert all((path / "model.safetensors").is_file() for _, path in zoo.checkpoints(name))


def test_unknown_and_unfit_names_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'induction'"):
        zoo.path("inductoin")
    with pytest.raises(BadInput, match="built by code"):
        zoo.path("handmade")
    with pytest.raises(BadInput, match="stored, not built"):
        zoo.build("induction")
