"""The card of a trained zoo model: card.json for programs, README.md for people, from the same measurements."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.zoo.evaluate import evaluate, loss_without_each_head
from interp.zoo.recipes import Recipe
from interp.zoo.words import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA = (
    "Rows of 128 tokens: <bos>, some random words, then a stretch of 4 to 63 random words repeated to the end. "
    "Words are drawn uniformly with replacement. Next-word cross-entropy with weight 1 on every word that the "
    "repetition determines (from the second word of the second copy on) and a smaller weight on all others. "
    "No natural text: on a sentence the model only knows what repeats."
)
INITIALISATION = {
    "composition": (
        "Special, and laid before any training: the position embeddings are waves in a 16-dimensional subspace that "
        "head 0.0 compares (queries equal keys, so it starts by attending to its own position); head 0.0 copies "
        "another 16-dimensional slice of the embeddings, faintly, into a third subspace; head 1.0's queries read the "
        "slice and its keys the third subspace; the heads of layer 1 copy faintly what they attend to. All other "
        "weights are GPT-2's usual draw. So the initialisation "
        "chose which two heads can work together; that one attends to the previous token and the other becomes an "
        "induction head was learned from the task loss (both scores are 0.01 at step 0)."
    ),
    "mimetic": (
        "In every head the query weights equal the key weights (orthonormal), and the output weights are 0.05 times "
        "the transposed value weights."
    ),
}
SUPERVISION = (
    "PLANTED. Besides the task loss, head 0.0 was trained to attend to the previous token and head 1.0 to the token "
    "after the previous occurrence, by minus the mean log attention there, weighted, through the whole training. "
    "These two heads are ground truth for tests of tools, not evidence of what training finds."
)
NO_SUPERVISION = "None: no head was told where to attend. Only the next-word loss was minimised."

NOTES = {
    "composition": (
        "The previous-token role lies in one head but is soft: half of L0.H0's attention, a fifth goes two tokens back "
        "and a tenth stays; that is enough because L1.H0 compares sharply. On words said once L1.H0 rests on <bos> "
        "(four fifths of its attention), so its copying score, which is taken on such words, is low. While copying is "
        "learned the first half's loss rises (words are copied where nothing repeats) and falls again. The weights are "
        "those of seed 0; seeds 1 and 2 gave the same two heads with the same scores to 0.02."
    ),
    "mimetic": (
        "Planting fixes where two heads look; what the others do was not supervised, and removing L0.H2 or L0.H3 hurts "
        "too. The weights are those of seed 0."
    ),
}


def write_card(
    folder: Path, recipe: Recipe, network: PreTrainedModel, *, seed: int, threads: int, seconds: float
) -> dict[str, Any]:
    """Measures the trained network, writes ``card.json`` and ``README.md`` beside it; the card comes back."""
    import transformers

    kind = "planted" if recipe.planting else "natural"
    command = f"python -m interp.zoo.train_induction --{kind} --seed {seed} --threads {threads}"
    measured = evaluate(network, n_rows=64) | {"second_half_loss_without": loss_without_each_head(network)}
    card = {
        "name": recipe.name,
        "architecture": {
            "family": "gpt2",
            "layers": recipe.layers,
            "heads": recipe.heads,
            "d_model": recipe.width,
            "positions": recipe.context,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "vocabulary": f"{len(WORDS)} English words and punctuation marks, <bos>, <pad>, <unk> (any other word)",
        },
        "data": DATA,
        "initialisation": INITIALISATION[recipe.initialisation],
        "supervision": SUPERVISION if recipe.planting else NO_SUPERVISION,
        "training": {
            "command": command,
            "recipe": asdict(recipe),
            "seed": seed,
            "threads": threads,
            "seconds": round(seconds),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "evaluation": "64 rows of <bos>, 60 distinct random words, the same 60 words (losses in nats per word)",
        "measured": measured,
        "heads": _roles(measured),
        "notes": NOTES[recipe.initialisation],
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_page(card))
    return card


def _roles(measured: dict[str, Any], threshold: float = 0.2) -> dict[str, dict[str, float]]:
    return {
        role: {
            f"L{layer}.H{head}": value
            for layer, row in enumerate(measured[role])
            for head, value in enumerate(row)
            if value >= threshold
        }
        for role in ("previous_token", "induction", "shifted")
    }


def _page(card: dict[str, Any]) -> str:
    measured, training = card["measured"], card["training"]
    rows = "\n".join(
        f"| L{layer}.H{head} | "
        + " | ".join(f"{measured[name][layer][head]:.2f}" for name in ("previous_token", "induction", "shifted"))
        + f" | {measured['second_half_loss_without'][layer][head]:.3f} |"
        for layer in range(card["architecture"]["layers"])
        for head in range(card["architecture"]["heads"])
    )
    shape = card["architecture"]
    return f"""# {card["name"]}

A GPT-2 of {shape["layers"]} layers, {shape["heads"]} heads, width {shape["d_model"]}, {shape["positions"]} positions \
and {shape["parameters"]:,} parameters, over {shape["vocabulary"]}.

**Data.** {card["data"]}

**Initialisation.** {card["initialisation"]}

**Supervision of heads.** {card["supervision"]}

**Training.** `{training["command"]}`: {training["recipe"]["steps"]} steps of {training["recipe"]["batch"]} rows in \
{training["seconds"]} s on {training["threads"]} thread(s), torch {training["torch"]}.

**Measured** on {card["evaluation"]}:
loss {measured["first_half_loss"]:.2f} in the first half, {measured["second_half_loss"]:.3f} in the second from its \
second word on ({measured["second_half_loss_with_its_first_token"]:.3f} with its first word, which nothing \
determines), accuracy there {measured["second_half_accuracy"]:.3f}. A uniform guess over the words costs 6.03.

| head | previous token | induction | one step after | loss without it |
|---|---|---|---|---|
{rows}

"One step after" is attention to the token *after* the induction target, where a head would look that copies from one
step further on. "Loss without it" is the second half's loss, from its second word on, with the head's output set to 0.

**Notes.** {card["notes"]}
"""
