"""Texts as a tokenizer splits them: ids, the characters behind each token, answers as they continue a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import BadInput

Bos = Literal["tokenizer"] | bool


@dataclass(frozen=True)
class Tokenised:
    """One prompt.

    Attributes:
        ids: with the special tokens that the model is given.
        plain: without them.
        offsets: (start, end) characters of each of ``ids``, (0, 0) for special tokens; ``None`` where the tokenizer
            gives none.
    """

    ids: tuple[int, ...]
    plain: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...] | None


class Splitter:
    """A tokenizer with the BOS habit that was asked for.

    Args:
        tokenizer: of the model.
        bos: as for ``interp.encode``.
    """

    def __init__(self, tokenizer: Any, bos: Bos) -> None:
        self.tokenizer, self.bos = tokenizer, bos
        self.unknown = getattr(tokenizer, "unk_token_id", None)
        if self.unknown is not None and self.unknown == getattr(tokenizer, "eos_token_id", None):
            self.unknown = None  # GPT-2 names its end of text so, and knows every byte

    def plain(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids without special tokens."""
        return (
            [tuple(row) for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        )

    def prompts(self, texts: Sequence[str]) -> list[Tokenised]:
        """Every text, as the model gets it.

        Raises:
            BadInput: a tokenizer that ends prompts with a token of its own: nothing would continue them.
        """
        if not texts:
            return []
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        told = {"return_offsets_mapping": True} if fast else {}
        given = self.tokenizer(list(texts), add_special_tokens=self.bos is not False, **told)
        made = []
        for number, (ids, plain) in enumerate(zip(given["input_ids"], self.plain(texts), strict=True)):
            offsets = [(int(a), int(b)) for a, b in given["offset_mapping"][number]] if fast else None
            row = list(ids)
            first = getattr(self.tokenizer, "bos_token_id", None)
            if self.bos is True and first is not None and row[:1] != [first]:
                row, offsets = [first, *row], None if offsets is None else [(0, 0), *offsets]
            if plain and tuple(row[len(row) - len(plain) :]) != plain:
                raise BadInput(
                    f"The tokenizer ends the prompt {texts[number]!r} with tokens of its own "
                    f"({self.spelled(row[-3:])}), which no answer can follow; pass bos=False."
                )
            made.append(Tokenised(tuple(row), plain, None if offsets is None else tuple(offsets)))
        return made

    def columns(self, text: str, prompt: Tokenised, span: tuple[int, int]) -> list[int]:
        """The tokens that overlap a span of characters; none where they cannot be told."""
        if prompt.offsets is not None:
            return [n for n, (a, b) in enumerate(prompt.offsets) if a < span[1] and b > span[0] and b > a]
        if span == (len(text) - 1, len(text)):
            return [len(prompt.ids) - 1]
        found = self._between(text, prompt, span)
        if not found and text[span[0] - 1 : span[0]] == " ":  # the space belongs to the token behind it
            found = self._between(text, prompt, (span[0] - 1, span[1]))
        return found

    def _between(self, text: str, prompt: Tokenised, span: tuple[int, int]) -> list[int]:
        """The tokens of a span at whose ends the text can be cut without changing other tokens; else none."""
        before, both = self.plain([text[:edge] for edge in span]) if span[0] else ((), *self.plain([text[: span[1]]]))
        if prompt.plain[: len(before)] != before or prompt.plain[: len(both)] != both:
            return []
        lead = len(prompt.ids) - len(prompt.plain)
        return list(range(lead + len(before), lead + len(both)))

    def unknown_words(self, text: str, prompt: Tokenised) -> list[str]:
        """What of the text has no token of its own."""
        if self.unknown is None or self.unknown not in prompt.plain:
            return []
        if prompt.offsets is None:
            return ["a word"]
        places = [span for token, span in zip(prompt.ids, prompt.offsets, strict=True) if token == self.unknown]
        return list(dict.fromkeys(text[a:b] for a, b in places if b > a))

    def continuations(
        self, prompts: Sequence[str], tokenised: Sequence[Tokenised], answers: Sequence[Sequence[str]]
    ) -> list[dict[str, tuple[int, ...] | str]]:
        """For each prompt: answer -> the ids that it adds to the prompt, or why it cannot follow it, in words."""
        flat = [prompt + answer for prompt, some in zip(prompts, answers, strict=True) for answer in some]
        rows = iter(self.plain(flat))
        return [
            {answer: self._added(answer, whole.plain, next(rows)) for answer in some}
            for whole, some in zip(tokenised, answers, strict=True)
        ]

    def _added(self, answer: str, before: tuple[int, ...], both: tuple[int, ...]) -> tuple[int, ...] | str:
        if both[: len(before)] != before:
            return (
                f"the border between the prompt and the answer {answer!r} merges: {self.spelled(before[-3:])} becomes "
                f"{self.spelled(both[max(0, len(before) - 3) :])}"
            )
        added = both[len(before) :]
        if not added:
            return f"the answer {answer!r} adds no token to the prompt"
        if self.unknown is not None and self.unknown in added:
            return f"the tokenizer does not know the answer {answer!r}"
        return added

    def spelled(self, ids: Sequence[int]) -> list[str]:
        """The tokens as they are written in the vocabulary."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]


def known_words(model: Any, words: Sequence[str], *, tokens: int = 1) -> list[str]:
    """Those of the words that are ``tokens`` tokens long after a space: names for a task whose pairs must be equal.

    Args:
        model: a handle with a tokenizer.
        words: to choose from.
        tokens: how many.

    Raises:
        BadInput: a model without a tokenizer.

    Example:
        >>> import interp
        >>> known_words(interp.load("needle"), ["mary", "Zanzibar"])
        ['mary']
    """
    if model.tokenizer is None:
        raise BadInput(f"{model.name!r} has no tokenizer.")
    splitter = Splitter(model.tokenizer, "tokenizer")
    rows = splitter.plain([" " + word for word in words])
    return [word for word, ids in zip(words, rows, strict=True) if len(ids) == tokens and splitter.unknown not in ids]
