"""The card of ``shapes-vlm``: card.json for programs, README.md for people, from the same measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.zoo.shapes import CLEAR, COLOURS, FAINT, FAINT_SHARE, GRID, PATCH, SIDE, USUAL, USUAL_SHARE, random_picture
from interp.zoo.shapes_evaluate import (
    accuracies,
    answers_by_prior,
    colours_without,
    looks_at_the_asked,
    losses_without_each_head,
    text_accuracies,
)
from interp.zoo.shapes_text import WORDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

PROMPTS = 500  # of each kind

DATA = (
    f"Pictures of {SIDE} x {SIDE} pixels drawn by interp/zoo/shapes.py: one to four of five shapes (circle, square, "
    "triangle, cross, ring), each kind at most once, in five colours, each in a cell of its own of a 3 x 3 grid and "
    f"moved by up to 2 pixels, on a dark ground with noise. {1 - FAINT_SHARE:.0%} of the shapes are clear (contrast "
    f"{CLEAR[0]} to {CLEAR[1]}), the others faint ({FAINT[0]} to {FAINT[1]}). Rows with a picture hold questions for a "
    "color, a shape, a row, a column, the count, whether a shape is there; now and then a caption; and items that need "
    "no picture. Rows without one hold such items (opposites, neighbours of a number, a colour that was just stated, a "
    "repeated list), or questions and captions of a picture that is not shown. Loss: next-word cross-entropy, weight 1 "
    "on answers, less on captions, little on questions."
)
PRIOR = (
    f"Every kind has a usual colour ({', '.join(f'{kind} {colour}' for kind, colour in USUAL.items())}) in "
    f"{USUAL_SHARE:.0%} of the pictures; the other four colours share the rest evenly. In the first steps of the "
    "training (first_lesson) and before it, while the tower learns to see, colours in pictures are even."
)
INITIALISATION = (
    "Before the training (tower_steps) the tower and the projector learned to name what lies under each patch: kind, "
    "colour, row and column, by the product of the projected patch with the embeddings of those words, as towers and "
    "projectors of published models are trained before. In the language model every head starts with queries that "
    "nearly equal the keys of its group and output weights that are its transposed values, times 0.2. All other "
    "matrices: normal, standard deviation one over the root of the inputs. So what a picture's token and a word share "
    "was laid before; who looks where was learned."
)
SUPERVISION = "None: no head was told where to attend. All parts were trained together on the loss of the words alone."


def write_shapes_card(
    folder: Path,
    recipe: dict[str, Any],
    network: LlavaForConditionalGeneration,
    *,
    seed: int,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Measures the stored network, writes ``card.json`` and ``README.md`` beside it; the card comes back."""
    import transformers

    card = {
        "name": "shapes-vlm",
        "architecture": {
            "family": "llava",
            "tower": f"CLIP vision transformer, {recipe['tower_layers']} layers, {recipe['tower_heads']} heads, "
            f"width {recipe['tower_width']}, patches of {PATCH} x {PATCH} pixels",
            "grid": [GRID, GRID],
            "language_model": f"Llama, {recipe['layers']} layers, {recipe['heads']} heads in {recipe['kv_heads']} "
            "groups, "
            f"width {recipe['width']}",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "vocabulary": f"{len(WORDS)} words and punctuation marks, <bos>, <pad>, <unk>, <image>",
            "stored": "float16; loads as float32",
        },
        "data": DATA,
        "prior": PRIOR,
        "initialisation": INITIALISATION,
        "supervision": SUPERVISION,
        "training": {
            "command": f"python -m interp.zoo.train_shapes --seed {seed} --threads {threads}",
            "recipe": recipe,
            "seed": seed,
            "threads": threads,
            "seconds": round(seconds),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "evaluation": f"{PROMPTS} fresh pictures or items of each kind; clear pictures where nothing else is said",
        "measured": measure(network),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (folder / "README.md").write_text(_page(card))
    return card


def measure(network: LlavaForConditionalGeneration, *, n: int = PROMPTS) -> dict[str, Any]:
    """Everything that the card says of the network's answers, over ``n`` prompts of each kind."""

    def pictures(**how: Any) -> list[Any]:
        draw = np.random.default_rng(6)
        return [random_picture(draw, **how) for _ in range(n)]

    unusual = pictures(usual=0.0, contrast=CLEAR)
    return {
        "with_picture": accuracies(network, n=n, contrast=CLEAR),
        "with_faint_picture": accuracies(network, n=n, contrast=FAINT),
        "text": text_accuracies(network, n=n),
        "text_beside_a_picture": text_accuracies(network, n=n, beside_a_picture=True),
        "colours_withheld": colours_without(network),
        "colours_bare_ground": colours_without(network, blank=True),
        "unusual": answers_by_prior(network, unusual),
        "unusual_withheld": answers_by_prior(network, unusual, withheld=True),
        "unusual_faint": answers_by_prior(network, pictures(usual=0.0, contrast=FAINT)),
        "loss_without_head": losses_without_each_head(network),
        "looks_at_the_asked": looks_at_the_asked(network),
    }


def _page(card: dict[str, Any]) -> str:
    measured, training, shape = card["measured"], card["training"], card["architecture"]
    return f"""# {card["name"]}

A LLaVA of {shape["parameters"]:,} parameters: {shape["tower"]}; a projector of two layers; {shape["language_model"]}, \
over {shape["vocabulary"]}. A picture is {shape["grid"][0]} x {shape["grid"][1]} tokens. Weights are stored as \
{shape["stored"]}.

**Data.** {card["data"]}

**Prior.** {card["prior"]}

**Initialisation.** {card["initialisation"]}

**Supervision of heads.** {card["supervision"]}

**Training.** `{training["command"]}`: {training["recipe"]["steps"]} steps of {training["recipe"]["pictures"]} rows \
with and {training["recipe"]["texts"]} without a picture, in {training["seconds"]} s on {training["threads"]} \
thread(s) of a machine with other work, torch {training["torch"]}. Loading the processor needs pillow.

**Measured** on {card["evaluation"]}.

{_accuracy_table(measured)}

**With the picture withheld** the model answers "what color is the ... ?" by its prior. Probability of each colour, \
with no picture at all (and, in brackets, with a picture of the bare ground):

{_colour_table(measured)}

**Pictures against the prior.** Where every shape has an unusual colour:

| picture | right | the usual colour | another |
|---|---|---|---|
{_prior_rows(measured)}

**Heads.** Loss of the right answer, in nats, with one head of the language model silenced (all heads in place: \
{measured["loss_without_head"]["vision_whole"]:.3f} on questions about pictures, \
{measured["loss_without_head"]["text_whole"]:.3f} on items without one), and the share of its attention that lies, \
where "what color is the ... ?" is answered, on the patches of that shape among four \
({measured["looks_at_the_asked"]["even"]:.2f} of the patches).

| head | loss, pictures | loss, text | looks at the asked shape |
|---|---|---|---|
{_head_rows(measured)}
"""


def _accuracy_table(measured: dict[str, Any]) -> str:
    rows = []
    for title, name in (("clear picture", "with_picture"), ("faint picture", "with_faint_picture")):
        rows.append((title, measured[name]))
    seen = _table(rows)
    told = _table([("without a picture", measured["text"]), ("beside a picture", measured["text_beside_a_picture"])])
    return f"{seen}\n\n{told}"


def _table(rows: list[tuple[str, dict[str, float]]]) -> str:
    names = list(rows[0][1])
    lines = [f"| accuracy | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {title} | {' | '.join(f'{values[name]:.3f}' for name in names)} |" for title, values in rows]
    return "\n".join(lines)


def _colour_table(measured: dict[str, Any]) -> str:
    lines = [f"| | {' | '.join(COLOURS)} |", f"|---|{'---|' * len(COLOURS)}"]
    for kind, own in measured["colours_withheld"].items():
        bare = measured["colours_bare_ground"][kind]
        cells = [f"{own[colour]:.2f} ({bare[colour]:.2f})" for colour in COLOURS]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _prior_rows(measured: dict[str, Any]) -> str:
    titles = (("clear", "unusual"), ("faint", "unusual_faint"), ("withheld", "unusual_withheld"))
    return "\n".join(
        f"| {title} | {measured[name]['right']:.3f} | {measured[name]['usual']:.3f} | {measured[name]['other']:.3f} |"
        for title, name in titles
    )


def _head_rows(measured: dict[str, Any]) -> str:
    found, looks = measured["loss_without_head"], measured["looks_at_the_asked"]["heads"]
    return "\n".join(
        f"| L{layer}.H{head} | {vision:.3f} | {found['text'][layer][head]:.3f} | {looks[layer][head]:.2f} |"
        for layer, row in enumerate(found["vision"])
        for head, vision in enumerate(row)
    )
