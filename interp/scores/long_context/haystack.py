"""Needle-in-a-haystack prompts for any model with a tokenizer: a fact hidden at some depth of a long text, asked for.

A haystack's text is cut to as many tokens as are left beside the fact, the question and the words around them; the
fact goes in at ``int(depth * tokens)``, moved left to where a sentence ends, and the whole is tokenised again. Then the
answer's tokens are looked for inside the fact, token by token: they are what a retrieval head copies. The scheme is
that of Wu et al., 2024 (arXiv 2404.15574), who leave 200 tokens for the rest of the prompt and accept a match of nine
tokens in ten; here the rest is measured, and the match is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.encode import encode
from interp.model.handle import Model

TEMPLATE = "{context}\n\nAnswer from the text above.\nQuestion: {question}\nAnswer:"
SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class Fact:
    """What is hidden: a sentence, the question that it answers, and the part of the sentence that is the answer."""

    sentence: str
    question: str
    answer: str


@dataclass(frozen=True)
class Haystack:
    """One prompt.

    Attributes:
        fact: what is hidden in it.
        length: tokens that were asked for; ``len(ids)`` is as many, or a few less or more where words at the seams
            are tokenised otherwise.
        depth: where the fact was asked to stand, from 0 (at the beginning) to 1 (at the end of the text).
        ids: the prompt's tokens.
        answer_ids: the answer's tokens, as they follow the prompt.
        sentence: positions of the fact in the prompt.
        needle: positions of the answer in the fact: what is to be copied.
    """

    fact: Fact
    length: int
    depth: float
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    sentence: range
    needle: range


def haystack(
    model: Model, text: str, fact: Fact, *, length: int, depth: float, template: str = TEMPLATE, glue: str = " "
) -> Haystack:
    """The prompt in which ``fact`` stands at ``depth`` of a text cut to fit ``length`` tokens.

    Args:
        model: whose tokenizer is used.
        text: the haystack, at least as long as needed.
        fact: sentence, question and answer; the answer stands in the sentence.
        length: tokens of the whole prompt, without the answer.
        depth: from 0 to 1.
        template: the prompt's words around ``{context}`` and ``{question}``.
        glue: between the prompt and its answer.

    Raises:
        BadInput: a text too short, a length with no room, an answer that is not in the sentence, or a sentence that
            is not found again after tokenisation; with the nearest match.

    Example:
        >>> import interp
        >>> model = interp.load("needle")
        >>> fact = Fact("remember mary book lamp cake moon .", "recall mary", "book lamp cake moon")
        >>> filler = "the dog went to the house . " * 20
        >>> found = haystack(model, filler, fact, length=60, depth=0.5, template="{context} {question}")
        >>> len(found.ids), model.tokenizer.decode([found.ids[place] for place in found.needle])
        (60, 'book lamp cake moon')
    """
    tokenizer = _tokenizer(model)
    _refuse(fact, length, depth, template)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    around = tokenizer(template.format(context=fact.sentence, question=fact.question))["input_ids"]
    room = length - len(around)
    if room < 0 or room > len(tokens):
        raise BadInput(
            f"haystack: {length} tokens, of which the fact, the question and the template take {len(around)}, and the "
            f"text {len(tokens)} at most; expected a length from {len(around)} to {len(around) + len(tokens)}."
        )
    place = _sentence_end(tokenizer, tokens, int(room * depth))
    context = _joined(_joined(_said(tokenizer, tokens[:place]), fact.sentence), _said(tokenizer, tokens[place:room]))
    prompt = template.format(context=context, question=fact.question)
    ids = tuple(tokenizer(prompt)["input_ids"])
    whole = tuple(tokenizer(prompt + glue + fact.answer)["input_ids"])
    stop = len(whole) if whole[: len(ids)] == ids else None
    if stop is None or stop == len(ids):
        raise BadInput(
            f"haystack: the answer {fact.answer!r} merges with the end of the prompt when both are tokenised; end the "
            "template with another character, or give glue=."
        )
    sentence = locate(tokenizer, ids, fact.sentence, "the sentence")
    inside = locate(tokenizer, ids[sentence.start : sentence.stop], fact.answer, "the answer")
    needle = range(sentence.start + inside.start, sentence.start + inside.stop)
    return Haystack(fact, length, depth, ids, whole[len(ids) :], sentence, needle)


def haystacks(
    model: Model,
    text: str,
    facts: Fact | Iterable[Fact],
    *,
    lengths: Iterable[int],
    depths: Iterable[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    template: str = TEMPLATE,
    glue: str = " ",
) -> list[Haystack]:
    """Every fact at every length and depth, facts outermost; see :func:`haystack`.

    Example:
        >>> import interp
        >>> model = interp.load("needle")
        >>> fact = Fact("remember mary book lamp cake moon .", "recall mary", "book lamp cake moon")
        >>> made = haystacks(model, "the dog ran . " * 40, fact, lengths=[60, 90], template="{context} {question}")
        >>> len(made), [prompt.sentence.start for prompt in made[:5]]
        (10, [1, 13, 25, 37, 49])
    """
    chosen = [facts] if isinstance(facts, Fact) else list(facts)
    sizes, places = list(lengths), list(depths)
    if not (chosen and sizes and places):
        raise BadInput("haystacks: give at least one fact, one length and one depth.")
    return [
        haystack(model, text, fact, length=length, depth=depth, template=template, glue=glue)
        for fact in chosen
        for length in sizes
        for depth in places
    ]


def haystack_batch(model: Model, prompts: Sequence[Haystack], *, answers: bool = True) -> Batch:
    """The prompts as a batch with the spans ``sentence`` and ``needle``, and, with their answers, ``answer``.

    Args:
        model: the handle.
        prompts: made for this model.
        answers: whether the answers stand at the end, as the score ``retrieval`` wants them; without them
            the prompts are for ``retrieval_generated``.
    """
    if not prompts:
        raise BadInput("haystack_batch: no prompts were given.")
    spans: dict[str, Any] = {
        "sentence": [prompt.sentence for prompt in prompts],
        "needle": [prompt.needle for prompt in prompts],
    }
    rows = [list(prompt.ids) for prompt in prompts]
    if answers:
        rows = [[*row, *prompt.answer_ids] for row, prompt in zip(rows, prompts, strict=True)]
        spans["answer"] = [range(len(prompt.ids), len(prompt.ids) + len(prompt.answer_ids)) for prompt in prompts]
    return encode(model, rows, spans=spans)


def locate(tokenizer: Any, ids: Sequence[int], text: str, what: str = "the text") -> range:
    """Where the tokens of ``text`` stand in ``ids``, exactly and once.

    The text is tokenised as it is, after a space and after a line break, since tokens depend on what stands before.

    Raises:
        BadInput: it is not there, with the window that shares most tokens with it; or it is there twice.
    """
    forms = [form for form in _forms(tokenizer, text) if form]
    found = sorted({(start, len(form)) for form in forms for start in _starts(ids, form)})
    inner = [one for one in found if not any(_within(one, other) for other in found)]
    if len(inner) == 1:
        start, size = inner[0]
        return range(start, start + size)
    if inner:
        raise BadInput(f"haystack: {what} {text!r} stands at {len(inner)} places of the prompt; it must be there once.")
    start, size, shared = _nearest(ids, forms)
    near = _said(tokenizer, ids[start : start + size])
    raise BadInput(
        f"haystack: {what} {text!r} is not found among the prompt's tokens. The nearest match, at {start}, has "
        f"{shared} of its {size} tokens: {near!r}. Words may merge with what stands beside them; put spaces or full "
        "stops there."
    )


def _refuse(fact: Fact, length: int, depth: float, template: str) -> None:
    if not fact.answer or fact.answer not in fact.sentence:
        raise BadInput(f"haystack: the answer {fact.answer!r} is no part of the sentence {fact.sentence!r}.")
    if not 0 <= depth <= 1:
        raise BadInput(f"haystack: depth={depth}; expected a share of the text, from 0 to 1.")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise BadInput(f"haystack: length={length!r}; expected a number of tokens.")
    if "{context}" not in template or "{question}" not in template:
        raise BadInput(f"haystack: template {template!r} lacks {{context}} or {{question}}.")


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise BadInput(f"haystack: {model.name!r} came without a tokenizer; pass load(..., tokenizer=...).")
    return model.tokenizer


def _sentence_end(tokenizer: Any, tokens: Sequence[int], place: int) -> int:
    """The largest place, at most ``place``, at the beginning of the text or after a token that ends a sentence."""
    while place > 0 and not _said(tokenizer, [tokens[place - 1]]).rstrip().endswith(SENTENCE_ENDS):
        place -= 1
    return place


def _said(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)


def _joined(left: str, right: str) -> str:
    between = "" if not left or not right or left[-1].isspace() or right[0].isspace() else " "
    return left + between + right


def _forms(tokenizer: Any, text: str) -> list[tuple[int, ...]]:
    forms = []
    for before in ("", " ", "\n"):
        own = tokenizer(before + text, add_special_tokens=False)["input_ids"]
        lead = tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
        forms.append(tuple(own))
        if lead and own[: len(lead)] == lead:
            forms.append(tuple(own[len(lead) :]))
    return list(dict.fromkeys(forms))


def _starts(ids: Sequence[int], form: tuple[int, ...]) -> list[int]:
    return [start for start in range(len(ids) - len(form) + 1) if tuple(ids[start : start + len(form)]) == form]


def _within(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether another match overlaps this one and is shorter: the same words without the space before them."""
    apart = one[0] + one[1] <= other[0] or other[0] + other[1] <= one[0]
    return not apart and other[1] < one[1]


def _nearest(ids: Sequence[int], forms: Sequence[tuple[int, ...]]) -> tuple[int, int, int]:
    """``(start, tokens, tokens shared)`` of the window that shares the largest part of a form's tokens.

    Of equal ones that with the most tokens in their very places.
    """
    best, found = (-1.0, -1), (0, len(forms[0]), 0)
    for form in forms:
        for start in range(max(1, len(ids) - len(form) + 1)):
            window = ids[start : start + len(form)]
            shared = len(set(form) & set(window))
            in_place = sum(one == other for one, other in zip(form, window, strict=False))
            if (shared / len(set(form)), in_place) > best:
                best, found = (shared / len(set(form)), in_place), (start, len(form), shared)
    return found
