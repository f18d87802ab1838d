"""The card of a needle model: card.json for programs, README.md for people, from the same measurements."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.zoo.needle_evaluate import copying_accuracy, looks_at_source, retrieval_accuracy
from interp.zoo.needle_network import untrained_needle
from interp.zoo.needle_recipes import NeedleRecipe
from interp.zoo.needle_text import FILLERS, KEYS, NEEDLE_WORDS, VALUES, needles_and_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (64, 256, 512, 1024, 1536)
ANSWER_ROWS = 64
COPY_LENGTHS, COPY_ROWS = (64, 512, 1024), 32
LOOKS_AT, LOOKS_ROWS = 512, 32

DATA = (
    f"Rows that begin with <bos> and tell facts somewhere in long babble, `remember mary book lamp cake moon .`: a "
    f"marker, one of {len(KEYS)} keys (people and animals), four of {len(VALUES)} values (animals, places, things), a "
    f"full stop; all keys and values of a row differ. The filler around them is sentences of 6 to 14 words out of "
    f"{len(FILLERS)} function words and verbs, by a random chain; facts stand at sentence ends. The row ends with "
    "questions and their answers, `recall mary book lamp cake moon .`. A row of 64 tokens tells 2 facts and asks for "
    "both; of 256 tells 10 and asks for 6; of 512 and more tells 12 and asks for 8. Besides, rows in which filler is "
    "followed by a stretch of random words repeated to the end. Next-word cross-entropy with weight 1 on the four "
    "values of every answer and on repeated words, and a smaller one on a tenth of all other words. No natural text."
)
INITIALISATION = {
    "composition": (
        "Special, and laid before any training: head 0.0 has a constant query and an equal constant key, which under "
        "rotary positions makes it attend to its own position most and to each one further back less; it copies a "
        "32-dimensional slice of the embeddings, faintly, into another subspace. The two query heads of the first "
        "key-value group of layer 1 read the slice, their keys the subspace. All heads of layer 1 copy faintly what "
        "they attend to. All other weights are the usual draw. So the initialisation chose which heads can work "
        "together; that L0.H0 turns from its own position to the one before, and that L1.H0 and L1.H1 find the word "
        "to be copied, was learned from the task loss."
    ),
    "mimetic": (
        "In every head of layers 1 and 2 the query weights equal the key weights (orthonormal, shared by a key-value "
        "group), and the output weights are 0.05 times the transposed value weights: such a head starts by attending, "
        "a little, to words like the one it stands at. The query and key biases of all heads are drawn from a standard "
        "normal, which under rotary positions gives every head some taste for certain distances."
    ),
}
NO_SUPERVISION = "None: no head was told where to attend. Only the next-word loss was minimised."
SUPERVISION = (
    "PLANTED. In the first level (rows of 64 tokens) three heads were trained, besides the task loss, by minus the "
    "mean log attention, weighted 0.1: L0.H0 to the token before, L1.H0 and L1.H4 to the token being copied (on "
    "answers and on repeats). Later levels are trained by the task loss alone. The two retrieval heads are ground "
    "truth for tests of tools, not evidence of what training finds; their partners in the key-value group, L1.H1 and "
    "L1.H5, share keys and values with them and follow unsupervised."
)


def write_needle_card(
    folder: Path, recipe: NeedleRecipe, network: PreTrainedModel, *, seed: int, threads: int, progress: dict[str, Any]
) -> dict[str, Any]:
    """Measures the stored network, writes ``card.json`` and ``README.md`` beside it; the card comes back."""
    import transformers

    measured = measure(network)
    untrained = looks_at_source(untrained_needle(recipe, seed), LOOKS_AT, n_rows=4)
    card = {
        "name": recipe.name,
        "architecture": {
            "family": "llama",
            "layers": recipe.layers,
            "heads": recipe.heads,
            "key_value_heads": recipe.kv_heads,
            "d_model": recipe.width,
            "d_head": recipe.d_head,
            "positions": f"rotary, {recipe.context}",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "vocabulary": f"{len(NEEDLE_WORDS)} English words and the full stop, <bos>, <pad>, <unk> (any other word)",
            "stored": "float16, loads as float32; everything here was measured on the stored weights",
        },
        "data": DATA,
        "initialisation": INITIALISATION[recipe.initialisation],
        "supervision": SUPERVISION if recipe.planting else NO_SUPERVISION,
        "training": {
            "command": f"python -m interp.zoo.train_needle --model {recipe.name} --seed {seed} --threads {threads}",
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "seed": seed,
            "threads": threads,
            "steps": progress["step"],
            "steps_by_length": _steps_by_length(progress["curve"]),
            "seconds": round(progress["seconds"]),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "evaluation": (
            f"{ANSWER_ROWS} fresh rows per length: share of answer tokens, and of whole answers, that are the most "
            f"likely next token; chance is 1/{len(VALUES)}. Copying: {COPY_ROWS} rows with a repeated stretch. Heads: "
            f"share of answer steps, in {LOOKS_ROWS} rows of {LOOKS_AT} tokens, at which the head's largest attention "
            "is on the token being copied."
        ),
        "measured": measured,
        "looks_at_source_untrained": untrained,
        "heads": {"retrieval": _above(measured["looks_at_source"], 0.5)},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_page(card))
    return card


def measure(network: PreTrainedModel) -> dict[str, Any]:
    """Everything under ``measured`` on the card, from the network alone."""
    return {
        "answers": {str(length): retrieval_accuracy(network, length, n_rows=ANSWER_ROWS) for length in LENGTHS},
        "copying": {str(length): copying_accuracy(network, length, n_rows=COPY_ROWS) for length in COPY_LENGTHS},
        "looks_at_source": looks_at_source(network, LOOKS_AT, n_rows=LOOKS_ROWS),
    }


def _steps_by_length(curve: list[dict[str, Any]]) -> dict[str, int]:
    ends = {str(point["length"]): point["step"] for point in curve}
    starts = [0, *ends.values()]
    return {length: end - start for (length, end), start in zip(ends.items(), starts[:-1], strict=True)}


def _above(shares: list[list[float]], threshold: float) -> dict[str, float]:
    return {
        f"L{layer}.H{head}": value
        for layer, row in enumerate(shares)
        for head, value in enumerate(row)
        if value >= threshold
    }


def _page(card: dict[str, Any]) -> str:
    measured, training, shape = card["measured"], card["training"], card["architecture"]
    answers = "\n".join(
        f"| {length} | {needles_and_questions(int(length))[0]} | {score['token']:.3f} | {score['whole']:.3f} | "
        + (f"{measured['copying'][length]:.3f} |" if length in measured["copying"] else "|")
        for length, score in measured["answers"].items()
    )
    heads = "\n".join(
        f"| L{layer} | " + " | ".join(f"{value:.2f}" for value in row) + " |"
        for layer, row in enumerate(measured["looks_at_source"])
    )
    steps = ", ".join(f"{count} at {length}" for length, count in training["steps_by_length"].items())
    before = max(value for row in card["looks_at_source_untrained"] for value in row)
    return f"""# {card["name"]}

A Llama of {shape["layers"]} layers, {shape["heads"]} query heads on {shape["key_value_heads"]} key-value heads of \
width {shape["d_head"]}, residual width {shape["d_model"]}, rotary positions and {shape["parameters"]:,} parameters, \
over {shape["vocabulary"]}. Stored in {shape["stored"]}.

**Data.** {card["data"]}

**Initialisation.** {card["initialisation"]}

**Supervision of heads.** {card["supervision"]}

**Training.** `{training["command"]}`: {training["steps"]} steps ({steps} tokens) in {training["seconds"]} s of \
processor time on {training["threads"]} thread(s), torch {training["torch"]}.

**Measured.** {card["evaluation"]}

| tokens | facts | answer tokens right | whole answers right | copying |
|---|---|---|---|---|
{answers}

Rows longer than 1024 tokens never occurred in training.

Looks at the token being copied (before training the largest share is {before:.2f}):

| | {" | ".join(f"H{head}" for head in range(shape["heads"]))} |
|---|{"---|" * shape["heads"]}
{heads}
"""
