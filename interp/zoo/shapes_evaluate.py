"""What ``shapes-vlm`` is measured by: its answers with a picture, without one, and to what needs none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.zoo.shapes import CLEAR, COLOURS, KINDS, USUAL, Picture, empty_picture, random_picture
from interp.zoo.shapes_model import N_PATCHES
from interp.zoo.shapes_rows import Vocabulary, pixel_values
from interp.zoo.shapes_text import TEXT, VISION, Item, question, text_item
from interp.zoo.words import BOS, PAD

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

CHUNK = 128  # prompts in a forward


def answer_logits(
    network: LlavaForConditionalGeneration, prompts: Sequence[str], pictures: Sequence[Picture] | None
) -> Tensor:
    """``[prompt, vocab]`` logits of the word after each prompt, seen with its picture or (``None``) without any."""
    words = Vocabulary.of_shapes().ids
    rows = [
        [words[BOS]] + [words["<image>"]] * (N_PATCHES if pictures else 0) + [words[word] for word in prompt.split()]
        for prompt in prompts
    ]
    made = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        width = max(map(len, part))
        ids = torch.tensor([row + [words[PAD]] * (width - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        seen = {} if pictures is None else {"pixel_values": pixel_values(list(pictures[start : start + CHUNK]))}
        last = torch.tensor([len(row) - 1 for row in part])
        with torch.no_grad():
            logits = network(input_ids=ids, attention_mask=mask, **seen).logits
        made.append(logits[torch.arange(len(part)), last])
    return torch.cat(made)


def right(logits: Tensor, items: Sequence[Item]) -> list[bool]:
    """Whether the likeliest of all words is the answer, prompt by prompt."""
    words = Vocabulary.of_shapes().ids
    wanted = torch.tensor([words[item.answer] for item in items])
    return (logits.argmax(-1) == wanted).tolist()


def accuracies(network: LlavaForConditionalGeneration, *, n: int = 200, seed: int = 1, **how: Any) -> dict[str, float]:
    """Share of right answers to each kind of question about a picture, over ``n`` pictures of ``random_picture``."""
    found: dict[str, float] = {}
    for number, kind in enumerate(VISION):
        draw = np.random.default_rng([seed, number])
        pictures = [random_picture(draw, **how) for _ in range(n)]
        items = [question(picture, kind, draw) for picture in pictures]
        kept = [index for index, item in enumerate(items) if item.kind == kind]
        answered = right(
            answer_logits(network, [items[i].prompt for i in kept], [pictures[i] for i in kept]),
            [items[i] for i in kept],
        )
        found[kind] = round(float(np.mean(answered)), 4)
    return found


def text_accuracies(
    network: LlavaForConditionalGeneration, *, n: int = 200, seed: int = 2, beside_a_picture: bool = False
) -> dict[str, float]:
    """Share of right answers to each kind of item that needs no picture, without one or beside one."""
    found: dict[str, float] = {}
    for number, kind in enumerate(TEXT):
        draw = np.random.default_rng([seed, number])
        items = [text_item(kind, draw) for _ in range(n)]
        pictures = [random_picture(draw, contrast=CLEAR) for _ in range(n)] if beside_a_picture else None
        found[kind] = round(
            float(np.mean(right(answer_logits(network, [i.prompt for i in items], pictures), items))), 4
        )
    return found


def colours_without(
    network: LlavaForConditionalGeneration, *, blank: bool = False, seed: int = 3
) -> dict[str, dict[str, float]]:
    """Kind -> colour -> its probability as the answer to "what color is the ... ?" with the picture withheld.

    Withheld: no picture at all, or, with ``blank``, a picture of the bare ground (the mean over 32 of them).
    """
    words = Vocabulary.of_shapes().ids
    draw = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        pictures = [empty_picture(draw) for _ in range(32)] if blank else None
        asked = [f"what color is the {kind} ?"] * (32 if blank else 1)
        mean = answer_logits(network, asked, pictures).softmax(-1).mean(0)
        found[kind] = {colour: round(mean[words[colour]].item(), 4) for colour in COLOURS}
    return found


def answers_by_prior(
    network: LlavaForConditionalGeneration, pictures: Sequence[Picture], *, withheld: bool = False, seed: int = 4
) -> dict[str, float]:
    """Of questions for the colour of a shape: the share of right answers, of the kind's usual colour, and of others.

    Args:
        network: the model.
        pictures: one question each. Where every shape has an unusual colour (``random_picture(draw, usual=0)``) an
            answer with the usual one comes from the prior and not from the picture.
        withheld: ask without the pictures.
        seed: of the choice of the shape that is asked for.
    """
    draw = np.random.default_rng(seed)
    items = [question(picture, "color", draw) for picture in pictures]
    words = Vocabulary.of_shapes().ids
    logits = answer_logits(network, [item.prompt for item in items], None if withheld else pictures)
    n_right, n_usual = 0, 0
    for token, item in zip(logits.argmax(-1).tolist(), items, strict=True):
        assert item.about is not None
        n_right += token == words[item.answer]
        n_usual += token == words[USUAL[item.about.kind]] and item.answer != USUAL[item.about.kind]
    n = len(items)
    shares = {"right": n_right, "usual": n_usual, "other": n - n_right - n_usual}
    return {name: round(count / n, 4) for name, count in shares.items()}


def looks_at_the_asked(network: LlavaForConditionalGeneration, *, n: int = 100) -> dict[str, Any]:
    """``heads`` ``[layer][head]``: share of the answer row's attention on the patches of the shape that is asked for.

    Over ``n`` clear pictures of four shapes and the question for a color; ``even``: that shape's share of the patches.
    """
    draw = np.random.default_rng(8)
    pictures = [random_picture(draw, contrast=CLEAR, count=4) for _ in range(n)]
    items = [question(picture, "color", draw) for picture in pictures]
    words = Vocabulary.of_shapes().ids
    lead = [words[BOS], *[words["<image>"]] * N_PATCHES]
    ids = torch.tensor([[*lead, *(words[word] for word in item.prompt.split())] for item in items])
    asked = torch.stack([torch.from_numpy(item.about.patches).flatten() for item in items if item.about is not None])
    kernels = network.config._attn_implementation or "sdpa"
    network.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = network(input_ids=ids, pixel_values=pixel_values(pictures), output_attentions=True).attentions
    finally:
        network.set_attn_implementation(kernels)
    rows = torch.stack([one[:, :, -1, 1 : 1 + N_PATCHES] for one in maps])  # [layer, picture, head, patch]
    found = (rows * asked[None, :, None]).sum(-1).mean(1)
    return {
        "even": round(asked.float().mean().item(), 4),
        "heads": [[round(value, 4) for value in row] for row in found.tolist()],
    }


def losses_without_each_head(network: LlavaForConditionalGeneration, *, n: int = 20) -> dict[str, Any]:
    """Loss of the right answer (nats) with one head of the language model silenced, for vision and for text prompts.

    Returns:
        ``vision`` and ``text``: ``[layer][head]`` means over ``n`` prompts of each kind; ``vision_whole`` and
        ``text_whole``: the same with all heads in place.
    """
    draw = np.random.default_rng(5)
    pictures = [random_picture(draw, contrast=CLEAR) for _ in range(n * len(VISION))]
    seen = [question(picture, VISION[i % len(VISION)], draw) for i, picture in enumerate(pictures)]
    told = [text_item(TEXT[i % len(TEXT)], draw) for i in range(n * len(TEXT))]
    words = Vocabulary.of_shapes().ids

    def loss(items: list[Item], shown: list[Picture] | None) -> float:
        wanted = torch.tensor([words[item.answer] for item in items])
        return F.cross_entropy(answer_logits(network, [item.prompt for item in items], shown), wanted).item()

    config = network.config.get_text_config()
    width = config.hidden_size // config.num_attention_heads
    found: dict[str, Any] = {"vision_whole": round(loss(seen, pictures), 4), "text_whole": round(loss(told, None), 4)}
    found |= {"vision": [], "text": []}
    body: Any = network.model.language_model
    for block in body.layers:
        rows: dict[str, list[float]] = {"vision": [], "text": []}
        for head in range(config.num_attention_heads):
            handle = block.self_attn.o_proj.register_forward_pre_hook(_silence(head * width, (head + 1) * width))
            try:
                rows["vision"].append(round(loss(seen, pictures), 4))
                rows["text"].append(round(loss(told, None), 4))
            finally:
                handle.remove()
        for name, row in rows.items():
            found[name].append(row)
    return found


def _silence(start: int, end: int) -> Any:
    def silence(_module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        kept = inputs[0].clone()
        kept[..., start:end] = 0
        return (kept,)

    return silence
