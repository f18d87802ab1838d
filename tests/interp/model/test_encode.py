"""Encoding: what becomes which ids, masks, positions, answers and spans, and what is refused before any forward."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tokenizers
import torch
import transformers as hf
from tiny_models import TINY

import interp
from interp import BadAddress, BadInput, Model

WORDS = small_tokenizers.words()
STORIES = Path(__file__).resolve().parents[4] / "shared" / "models" / "stories260k"
SMALL: dict[str, Any] = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 24}


def gpt2(tokenizer: Any = WORDS, *, check: bool = False, **more: Any) -> Model:
    torch.manual_seed(0)
    config = hf.GPT2Config(**{**SMALL, **more}, vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return interp.load(hf.GPT2LMHeadModel(config).eval(), tokenizer=tokenizer, check=check)


def bert(tokenizer: Any = None, *, check: bool = True) -> Model:
    torch.manual_seed(0)
    config = hf.BertConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, max_position_embeddings=16, pad_token_id=0)  # fmt: skip
    return interp.load(hf.BertForMaskedLM(config).eval(), tokenizer=tokenizer, check=check)


GPT2 = gpt2()
FAMILIES: dict[str, Model] = {}


def family(name: str, tokenizer: Any = None) -> Model:
    if name not in FAMILIES:
        FAMILIES[name] = interp.load(TINY[name]().hf, tokenizer=tokenizer, check=False)
    return FAMILIES[name]


def ids_of(text: str) -> list[int]:
    return WORDS(text, add_special_tokens=False)["input_ids"]


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_texts_become_ids_padded_on_the_right_and_a_mask() -> None:
    batch = interp.encode(GPT2, ["Mary had a dog", "John had"])
    assert batch.ids is not None
    assert batch.ids.tolist() == [ids_of("Mary had a dog"), [*ids_of("John had"), 0, 0]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 4, [1, 1, 0, 0]]
    assert "position_ids" not in batch.inputs
    assert batch.read_at.tolist() == [3, 1]
    assert batch.tokens == (("Mary", "had", "a", "dog"), ("John", "had")) and batch.texts == (
        "Mary had a dog",
        "John had",
    )
    assert batch.padding_side == "right"


def test_left_padding_comes_with_positions_counted_over_real_tokens() -> None:
    batch = interp.encode(GPT2, ["Mary had a dog", "John had"], padding_side="left")
    assert batch.mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert batch.read_at.tolist() == [3, 3] and batch.padding_side == "left"
    right = interp.encode(GPT2, ["Mary had a dog", "John had"])
    a, b = interp.run(GPT2, batch, logits="last").logits, interp.run(GPT2, right, logits="last").logits
    torch.testing.assert_close(a, b)


def test_one_text_is_a_batch_of_one() -> None:
    assert len(interp.encode(GPT2, "Mary had")) == 1


def test_ids_are_taken_as_tensor_or_as_lists() -> None:
    ids = [[5, 6, 7], [8, 9]]
    listed = interp.encode(GPT2, ids)
    array = interp.encode(GPT2, [np.array(row) for row in ids])
    tensor = interp.encode(GPT2, torch.tensor([[5, 6, 7], [8, 9, 0]]), mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    for batch in (listed, array, tensor):
        assert batch.ids is not None and batch.ids.tolist() == [[5, 6, 7], [8, 9, 0]]
        assert batch.lengths == [3, 2] and batch.texts == ()
    assert interp.encode(gpt2(None), ids).tokens == (("5", "6", "7"), ("8", "9"))


def test_the_side_of_padded_ids_is_read_off_their_mask() -> None:
    batch = interp.encode(GPT2, torch.tensor([[5, 6], [0, 8]]), mask=torch.tensor([[1, 1], [0, 1]]))
    assert batch.padding_side == "left" and batch.inputs["position_ids"].tolist() == [[0, 1], [0, 0]]


def test_chats_go_through_the_tokenizers_template() -> None:
    model = gpt2(small_tokenizers.chatty())
    message = {"role": "user", "content": "Mary had a dog"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = interp.encode(model, [message])
        two = interp.encode(model, [[message], [message, {"role": "user", "content": "John"}]])
    wanted = [1, *ids_of("user Mary had a dog"), 2, 1]
    assert batch.ids is not None and batch.ids.tolist() == [wanted]
    assert two.lengths == [len(wanted), len(wanted) + len(ids_of("user John")) + 2]
    with pytest.raises(BadInput, match="this tokenizer has no chat template; give texts"):
        interp.encode(GPT2, [message])


@pytest.mark.parametrize(
    ("bos", "own", "wanted"),
    [
        ("tokenizer", False, [False, False]),
        (True, False, [True, False]),
        (False, False, [False, False]),
        ("tokenizer", True, [True, True]),
        (True, True, [True, True]),  # not twice
        (False, True, [False, False]),
    ],
)
def test_bos_is_the_tokenizers_habit_or_the_callers_word(bos: Any, own: bool, wanted: list[bool]) -> None:
    model = gpt2(small_tokenizers.words(bos=own, eos=own))
    batch = interp.encode(model, ["Mary had"], bos=bos)
    assert batch.ids is not None
    row = batch.ids[0].tolist()
    assert [row[0] == 1, row[-1] == 2] == wanted and row.count(1) == wanted[0]
    assert batch.bos == 1


def test_ready_inputs_are_passed_on_as_they_are() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1]]), "use_cache": False}
    batch = interp.encode(GPT2, inputs=inputs)
    assert batch.inputs.keys() == inputs.keys() and all(batch.inputs[name] is inputs[name] for name in inputs)
    assert batch.lengths == [2]
    embeds = torch.randn(2, 5, 8)
    made = interp.encode(GPT2, inputs={"inputs_embeds": embeds})
    assert made.ids is None and made.width == 5
    with torch.no_grad():
        assert torch.equal(interp.run(GPT2, made).logits, GPT2.hf(inputs_embeds=embeds).logits)


@pytest.mark.parametrize(
    ("prompts", "more", "message"),
    [
        (None, {}, "nothing was given; pass texts, ids, chats"),
        ([], {}, "an empty list of prompts"),
        ("", {}, "prompt 0 is empty"),
        (["Mary", ""], {}, "prompt 1 is empty"),
        ([[5], []], {}, "prompt 1 is empty"),
        (torch.zeros(2, 0, dtype=torch.long), {}, "empty prompts"),
        (torch.zeros(0, 3, dtype=torch.long), {}, "empty prompts"),
        (torch.tensor([[5, 6], [0, 0]]), {"mask": torch.tensor([[1, 1], [0, 0]])}, "prompt 1 is empty"),
        (torch.tensor([5, 6]), {}, r"ids of torch.int64 \[2\]; expected a LongTensor \[batch, pos\]"),
        (torch.tensor([[5.0]]), {}, "ids of torch.float32"),
        (torch.tensor([[True]]), {}, "ids of torch.bool"),
        ([5, 6], {}, r"prompts \[5, 6\]; expected texts, chats, a LongTensor"),
        ([[5.5, 6]], {}, r"prompts \[\[5.5, 6\]\]; expected"),
        (["Mary", 5], {}, "prompt 1 is a int; expected texts, ids or chats throughout"),
        (torch.tensor([[400]]), {}, "token ids from 400 to 400; the vocabulary has 0 to 399"),
        (torch.tensor([[-1]]), {}, "token ids from -1 to -1"),
        (torch.tensor([[5, 6]]), {"mask": torch.ones(1, 3)}, r"mask \[1, 3\] for ids \[1, 2\]"),
        (["Mary"], {"mask": torch.ones(1, 1)}, "mask= goes with ids as a tensor"),
        (["Mary"], {"inputs": {"input_ids": torch.tensor([[5]])}}, "give prompts or inputs=, not both"),
        (["Mary"], {"bos": "always"}, "bos='always': expected 'tokenizer', True or False"),
        (["Mary"], {"padding_side": "middle"}, "padding_side='middle'"),
        (["Mary"], {"decoder": ["John"]}, "decoder= is for encoder-decoders"),
        (["Mary"], {"images": [1]}, "came without a processor"),
        (torch.ones(1, 25, dtype=torch.long), {}, "the longest prompt has 25 tokens .* holds 24"),
        (None, {"inputs": {"use_cache": False}}, "holds no tensor"),
        (["Mary"], {"read_at": "first"}, "read_at='first': expected 'last', 'mask' or a position"),
        (["Mary had"], {"read_at": 2}, "read_at=2 is outside the shortest prompt, which has 2 tokens"),
        (["Mary"], {"answer_tokens": "all"}, "answer_tokens='all'"),
    ],
)
def test_bad_prompts_are_refused_with_what_came(prompts: Any, more: dict[str, Any], message: str) -> None:
    calls: list[int] = []
    handle = GPT2.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(BadInput, match=message):
            interp.encode(GPT2, prompts, **more)
    finally:
        handle.remove()
    assert not calls


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"came without a tokenizer; pass load\(\.\.\., tokenizer=\.\.\.\), or give token ids"
    ):
        interp.encode(gpt2(None), ["Mary"])


def test_unknown_words_are_counted_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="1 of 3 tokens are the unknown token '<unk>'"):
        interp.encode(GPT2, ["Mary had zebras"])


def test_padding_that_changes_real_tokens_is_refused_as_measured() -> None:
    model = bert(WORDS)
    assert model.card.padding == "right only"  # its positions are absolute and cannot be given from a mask
    interp.encode(model, ["Mary had", "John"])
    with pytest.raises(BadInput, match=r"padded on the left, which changes .* Pass padding_side='right'"):
        interp.encode(model, ["Mary had", "John"], padding_side="left")
    with pytest.raises(BadInput, match="padded on the left"):
        interp.encode(model, torch.tensor([[5, 6], [0, 8]]), mask=torch.tensor([[1, 1], [0, 1]]))


# ---- where the answer is read --------------------------------------------------------------------------------------


def test_read_at_counts_over_each_prompts_own_tokens() -> None:
    texts = ["Mary had a dog", "John had"]
    for side, first, last in (("right", [0, 0], [3, 1]), ("left", [0, 2], [3, 3])):
        assert interp.encode(GPT2, texts, padding_side=side, read_at=0).read_at.tolist() == first  # type: ignore[arg-type]
        assert interp.encode(GPT2, texts, padding_side=side, read_at=-1).read_at.tolist() == last  # type: ignore[arg-type]


def test_read_at_the_mask_token() -> None:
    model = bert(WORDS)
    batch = interp.encode(model, ["Mary had a <mask>", "<mask> had"], read_at="mask", answers=["dog", "John"])
    assert batch.read_at.tolist() == [3, 0]
    assert batch.answers is not None and batch.answers.tolist() == [ids_of("dog"), ids_of("John")]
    logits = interp.run(model, batch, logits="answers").logits
    torch.testing.assert_close(logits, model.hf(**batch.inputs).logits[torch.arange(2), batch.read_at][:, None])
    for text, count in (("Mary had", 0), ("<mask> had <mask>", 2)):
        with pytest.raises(BadInput, match=rf"needs the mask token exactly once, found \[{count}\]"):
            interp.encode(model, [text], read_at="mask")
    with pytest.raises(BadInput, match="this model has no mask token"):
        interp.encode(bert(None, check=False), [[5, 6]], read_at="mask")


# ---- answers -------------------------------------------------------------------------------------------------------


def test_answers_are_ids_the_right_one_first_and_missing_ones_are_marked() -> None:
    batch = interp.encode(GPT2, ["Mary had a", "John had a"], answers=[(" dog", " lamb", " drink"), " dog"])
    dog, lamb, drink = (ids_of(word)[0] for word in ("dog", "lamb", "drink"))
    assert batch.answers is not None and batch.answers.tolist() == [[dog, lamb, drink], [dog, -1, -1]]


@pytest.mark.parametrize(
    "answers",
    [[(17, 42), (3, 4)], torch.tensor([[17, 42], [3, 4]]), np.array([[17, 42], [3, 4]]),
     [(np.int64(17), np.int64(42)), torch.tensor([3, 4])], [[17, 42], (3, torch.tensor(4))]],
)  # fmt: skip
def test_answers_are_taken_as_ids_in_any_container(answers: Any) -> None:
    batch = interp.encode(GPT2, [[5, 6], [7, 8]], answers=answers)
    assert batch.answers is not None and batch.answers.tolist() == [[17, 42], [3, 4]]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(" dog", " lamb")], "1 answers for 2 prompts; expected one entry per prompt"),
        (" dog", "one text as answers for 2 prompts"),
        ([" dog", ()], "prompt 1 has an empty answer"),
        ([(" dog", " dog"), " lamb"], r"prompt 0: the answers \[' dog', ' dog'\] are the same token"),
        ([" little lamb", " dog"], r"the answer ' little lamb' of prompt 0 is 2 tokens: \['little', 'lamb'\]"),
        ([" dog", ""], "the answer '' of prompt 1 is 0 tokens"),
        ([" dog", " zebra"], r"the tokenizer does not know the answer ' zebra' of prompt 1 \(it becomes \['<unk>'\]\)"),
        ([400, 5], "answer id 400 of prompt 0 is outside 0 to 399"),
        ([5, -1], "answer id -1 of prompt 1 is outside"),
        ([True, 5], "answer True of prompt 0; expected a text or a token id"),
        ([1.5, 5], "answer 1.5 of prompt 0; expected a text or a token id"),
    ],
)
def test_bad_answers_are_refused(answers: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        interp.encode(GPT2, ["Mary had a", "John had a"], answers=answers)


def test_the_first_token_of_a_long_answer_stands_for_it_only_where_declared() -> None:
    batch = interp.encode(GPT2, ["Mary had a"], answers=[" little lamb"], answer_tokens="first")
    assert batch.answers is not None and batch.answers.tolist() == [ids_of("little")]


def test_an_answer_is_tokenised_where_it_stands() -> None:
    tokenizer = small_tokenizers.pieces()
    model = gpt2(tokenizer)
    alone = tokenizer(" John", add_special_tokens=False)["input_ids"]
    assert len(alone) == 1  # with the space in front
    batch = interp.encode(model, ["When Mary and"], answers=[(" John", " Mary")])
    assert batch.answers is not None and batch.answers[0, 0] == alone[0]
    assert batch.tokens[0][-1] == " and"


def test_a_border_that_merges_is_refused_with_both_tokenisations() -> None:
    model = gpt2(small_tokenizers.pieces())
    with pytest.raises(BadInput) as caught:
        interp.encode(model, ["When Mary "], answers=["and"])
    message = str(caught.value)
    assert "the border between prompt 0 and its answer 'and' merges" in message
    assert "the prompt alone is" in message and "'Ġ']" in message  # the space stands alone,
    assert "with the answer it is" in message and "Ġand" in message  # and is swallowed by the answer
    assert "Move the space to the answer's front" in message


def test_class_ids_answer_a_classifier() -> None:
    model = family("vit")
    pixels = torch.randn(2, 3, 8, 8)
    batch = interp.encode(model, inputs={"pixel_values": pixels}, answers=[(6, 0), (1, 2)])
    assert batch.answers is not None and batch.answers.tolist() == [[6, 0], [1, 2]]
    logits = interp.run(model, batch).logits
    assert logits is not None and logits.shape == (2, 7)
    assert interp.logit_difference(logits, batch).tolist() == pytest.approx(
        [float(logits[0, 6] - logits[0, 0]), float(logits[1, 1] - logits[1, 2])]
    )
    with pytest.raises(BadInput, match="answer id 7 of prompt 0 is outside 0 to 6"):
        interp.encode(model, inputs={"pixel_values": pixels}, answers=[7, 0])


# ---- spans ---------------------------------------------------------------------------------------------------------


def spanned(texts: list[str], spans: dict[str, Any], tokenizer: Any = WORDS, **more: Any) -> list[list[str]]:
    """The tokens of each prompt that a span called ``s`` covers."""
    model = gpt2(tokenizer)
    batch = interp.encode(model, texts, spans=spans, **more)
    assert batch.ids is not None
    rows = []
    for row in range(len(batch)):
        rows.append([tokenizer.decode([token]) for token in batch.ids[row][batch.spans["s"][row]].tolist()])
    return rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokenizer", [WORDS, small_tokenizers.words(bos=True, eos=True)], ids=["plain", "specials"])
@pytest.mark.parametrize("bos", ["tokenizer", True, False])
def test_spans_by_substring_range_and_list_fall_on_their_tokens(side: Any, tokenizer: Any, bos: Any) -> None:
    texts = ["Mary had a dog", "John had"]
    more = {"padding_side": side, "bos": bos}
    assert spanned(texts, {"s": "had"}, tokenizer, **more) == [["had"], ["had"]]
    assert spanned(texts, {"s": (0, 4)}, tokenizer, **more) == [["Mary"], ["John"]]
    assert spanned(texts, {"s": ["a dog", "John had"]}, tokenizer, **more) == [["a", "dog"], ["John", "had"]]
    assert spanned(texts, {"s": [["Mary", (11, 14)], "John"]}, tokenizer, **more) == [["Mary", "dog"], ["John"]]


def test_a_span_inside_a_word_takes_the_whole_token() -> None:
    assert spanned(["Mary had a dog"], {"s": (6, 7)}) == [["had"]]
    pieces = small_tokenizers.pieces()
    assert spanned(["When Mary and John"], {"s": "Mary"}, pieces) == [[" Mary"]]  # the space belongs to the token


def test_spans_of_ids_are_ranges_of_positions() -> None:
    batch = interp.encode(
        GPT2, [[5, 6, 7], [8, 9]], spans={"s": range(1, 2), "t": [range(0, 3, 2), range(2)]}, padding_side="left"
    )
    assert batch.spans["s"].tolist() == [[False, True, False], [False, False, True]]
    assert batch.spans["t"].tolist() == [[True, False, True], [False, True, True]]
    mask = torch.tensor([[True, False, False], [False, True, True]])
    assert torch.equal(interp.encode(GPT2, [[5, 6, 7], [8, 9]], spans={"m": mask}).spans["m"], mask)


@pytest.mark.parametrize(
    ("prompts", "span", "error", "message"),
    [
        (["Mary had"], "dog", BadAddress, r"'dog' occurs 0 times in prompt 0 \('Mary had'\); expected exactly once"),
        (["had had"], "had", BadAddress, "occurs 2 times"),
        (["Mary had"], "", BadAddress, "occurs 0 times"),
        (["Mary had"], (4, 20), BadAddress, "characters 4 to 20 are outside prompt 0, which has 8"),
        (["Mary had"], (3, 3), BadAddress, "characters 3 to 3 are outside"),
        (["Mary had"], (4, 5), BadAddress, "no token of prompt 0 overlaps characters 4 to 5"),
        (["Mary had"], ("Mary", "had"), BadInput, "expected a substring, a .start, end. tuple"),
        (["Mary had"], 3, BadInput, "a int; expected a substring"),
        (["Mary had", "John"], ["Mary"], BadInput, "1 entries for 2 prompts"),
        ([[5, 6]], "Mary", BadInput, "prompts given as ids take ranges of positions"),
        (
            [[5, 6]],
            range(1, 3),
            BadAddress,
            r"range\(1, 3\) is outside prompt 0, which has 2 tokens \(positions 0 to 1\)",
        ),
        ([[5, 6]], range(0), BadAddress, "is outside prompt 0"),
        ([[5, 6]], torch.ones(1, 3, dtype=torch.bool), BadInput, r"expected bool \[1, 2\]"),
    ],
)
def test_spans_that_are_not_there_are_refused(prompts: Any, span: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        interp.encode(GPT2, prompts, spans={"s": span})


# ---- images, encoder-decoders --------------------------------------------------------------------------------------


class Processor:
    """As much of a processor as is asked for: image tokens in front of the words, pixels beside them."""

    tokenizer = WORDS

    def __call__(
        self,
        text: list[str] | None = None,
        images: Any = None,
        padding: bool = False,
        padding_side: str = "right",
        return_tensors: str = "pt",
    ) -> dict[str, Any]:
        made: dict[str, Any] = {"pixel_values": torch.stack(list(images))}
        if text is not None:
            assert padding and return_tensors == "pt"
            rows = [[98] * 4 + ids_of(line) for line in text]
            width = max(map(len, rows))
            pads = [[0] * (width - len(row)) for row in rows]
            both = [pad + row if padding_side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)]
            ones = [[1] * len(row) for row in rows]
            masks = [pad + one if padding_side == "left" else one + pad for one, pad in zip(ones, pads, strict=True)]
            made |= {"input_ids": torch.tensor(both), "attention_mask": torch.tensor(masks)}
        return made


def test_images_and_texts_go_through_the_processor() -> None:
    model = interp.load(TINY["llava"]().hf, tokenizer=WORDS, processor=Processor(), check=False)
    images = [torch.randn(3, 8, 8) for _ in range(2)]
    for side, columns in (("right", [7, 5]), ("left", [7, 7])):
        batch = interp.encode(model, ["Mary had a dog", "John had"], images=images, padding_side=side)  # type: ignore[arg-type]
        assert batch.lengths == [8, 6] and batch.read_at.tolist() == columns
        assert batch.inputs["pixel_values"].shape == (2, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(interp.run(model, batch).logits, model.hf(**batch.inputs).logits)
    alone = interp.encode(interp.load(TINY["vit"]().hf, processor=Processor(), check=False), images=images)
    assert alone.ids is None and len(alone) == 2


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_starts_its_decoder_with_its_start_token(name: str) -> None:
    model = interp.load(TINY[name]().hf, tokenizer=small_tokenizers.words(eos=True), check=False)
    batch = interp.encode(model, ["Mary had a dog", "John had"], spans={"verb": "had"}, answers=["dog", "lamb"])
    assert batch.ids is not None and batch.ids.tolist() == [[model.hf.config.decoder_start_token_id]] * 2
    assert batch.mask.tolist() == [[True], [True]] and batch.read_at.tolist() == [0, 0]
    assert batch.encoder_mask is not None and batch.encoder_mask.sum(-1).tolist() == [5, 3]  # </s> behind
    assert batch.spans["verb"].nonzero().tolist() == [[0, 1], [1, 1]]
    given = interp.encode(model, ["Mary had a dog", "John had"], decoder=["a little", "a big"])
    start = model.hf.config.decoder_start_token_id
    assert given.ids is not None and given.ids.tolist() == [[start, *ids_of("a little")], [start, *ids_of("a big")]]
    as_ids = interp.encode(model, ["Mary had a dog", "John had"], decoder=given.ids)
    with torch.no_grad():
        assert torch.equal(interp.run(model, as_ids).logits, model.hf(**given.inputs).logits)
    with pytest.raises(BadInput, match="decoder prompts of unequal length"):
        interp.encode(model, ["Mary", "John"], decoder=["a", "a little"])
    with pytest.raises(BadInput, match="1 decoder prompts for 2 prompts"):
        interp.encode(model, ["Mary", "John"], decoder=["a"])


def test_the_encoders_context_is_checked_and_relative_positions_have_none() -> None:
    long = torch.full((1, 70), 5)
    with pytest.raises(BadInput, match=r"the longest prompt has 70 tokens .* holds 64"):
        interp.encode(family("bart"), long)
    assert interp.encode(family("t5"), long).encoder_mask is not None
    decoder = {"input_ids": long[:, :3], "decoder_input_ids": long}
    with pytest.raises(BadInput, match="the longest prompt has 70 tokens"):
        interp.encode(family("bart"), inputs=decoder)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the published model is not here")
def test_a_published_sentencepiece_tokenizer() -> None:
    model = interp.load(STORIES)
    batch = interp.encode(
        model, ["Once upon a time, there was a little girl named Lily.", "Once upon a"], spans={"s": "Once"}
    )
    assert batch.ids is not None and batch.ids[:, 0].tolist() == [1, 1]  # its BOS
    for row in range(2):
        text = model.tokenizer.decode(batch.ids[row][batch.spans["s"][row]])
        assert text.strip() == "Once"
    with pytest.raises(BadInput, match="context"):
        interp.encode(model, ["Once upon a time. " * 200])
