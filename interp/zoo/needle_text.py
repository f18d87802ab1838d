"""The data of the zoo's needle models: facts told somewhere in long babble and asked for at the end.

A fact is a **needle** ``remember mary book lamp cake moon .``: a marker, a key, four values and a full stop. Around it
stands filler, sentences of a random chain over 128 function words and verbs. At the end of a row some keys are asked
for, ``recall mary book lamp cake moon .``, and the four values after the key are what has to be foreseen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import BadInput
from interp.zoo.words import BOS, SPECIAL, WORDS, vocabulary

TELL, ASK, STOP = "remember", "recall", "."
FILLERS = WORDS[2:130]  # function words and verbs
KEYS = WORDS[173:221]  # people and animals
VALUES = WORDS[221:349]  # animals, places and things
NEEDLE_WORDS = (STOP, TELL, ASK, *FILLERS, *KEYS, *VALUES)
VALUES_PER_KEY = 4
BLOCK = VALUES_PER_KEY + 3  # marker, key, values, full stop

SUCCESSORS = 8  # that a filler word usually has, likely as 1/rank
ANY_FILLER = 0.1  # share of filler words drawn uniformly
SHORTEST_SENTENCE, LONGEST_SENTENCE = 6, 14  # filler words before the full stop
CHAIN_SEED = 11
MOST_NEEDLES, MOST_QUESTIONS = 12, 8


class NeedleRows(NamedTuple):
    """Rows with facts and questions.

    ``source`` is, at every token that a question determines, the position of that token in its needle, and -1
    elsewhere; ``needle`` is True on the needles' tokens, ``asked`` on those of the needles that are asked for.
    """

    ids: Int[Tensor, "row pos"]
    source: Int[Tensor, "row pos"]
    needle: Bool[Tensor, "row pos"]
    asked: Bool[Tensor, "row pos"]


def needle_vocabulary() -> dict[str, int]:
    """Token -> id of the needle models.

    Example:
        >>> len(needle_vocabulary()), needle_vocabulary()["remember"]
        (310, 4)
    """
    return vocabulary(NEEDLE_WORDS)


def needles_and_questions(length: int) -> tuple[int, int]:
    """How many facts a row of this length tells, and how many of them it asks for.

    Example:
        >>> needles_and_questions(64), needles_and_questions(1024)
        ((2, 2), (12, 8))
    """
    told = max(2, min(MOST_NEEDLES, length // 24))
    return told, min(MOST_QUESTIONS, told, length // 48 + 1)


def needle_rows(
    n_rows: int,
    length: int,
    generator: torch.Generator,
    *,
    told: int | None = None,
    questions: int | None = None,
) -> NeedleRows:
    """Rows of ``<bos>``, filler with facts at sentence ends, and questions with their answers.

    Args:
        n_rows: how many.
        length: tokens a row.
        generator: of everything random.
        told: facts a row, all keys and values of which differ; by default as :func:`needles_and_questions` says.
        questions: facts asked for at the end, in random order.

    Raises:
        BadInput: the facts and the questions do not fit into the length, or the words do not suffice.

    Example:
        >>> rows = needle_rows(1, 64, torch.Generator().manual_seed(0))
        >>> words = list(needle_vocabulary())
        >>> " ".join(words[token] for token in rows.ids[0, -14:-7])
        'recall singer lamp barn cup egg .'
    """
    usual = needles_and_questions(length)
    told, questions = usual[0] if told is None else told, usual[1] if questions is None else questions
    room = length - 1 - BLOCK * (told + questions)
    most = len(VALUES) // VALUES_PER_KEY
    if not 1 <= questions <= told <= most or room < LONGEST_SENTENCE + 1:
        raise BadInput(
            f"needle_rows: {told} facts and {questions} questions in {length} tokens; expected "
            f"1 <= questions <= told <= {most} and {1 + BLOCK * (told + questions) + LONGEST_SENTENCE + 1} tokens."
        )
    return NeedleRows(
        *(
            torch.stack(part)
            for part in zip(*(_row(room, told, questions, generator) for _ in range(n_rows)), strict=True)
        )
    )


def _row(room: int, told: int, questions: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = needle_vocabulary()
    keys = torch.randperm(len(KEYS), generator=generator)[:told] + ids[KEYS[0]]
    values = torch.randperm(len(VALUES), generator=generator)[: told * VALUES_PER_KEY] + ids[VALUES[0]]
    facts = torch.cat([keys[:, None], values.view(told, VALUES_PER_KEY)], dim=1).tolist()
    filler = filler_words(room, generator)
    ends = torch.cat([torch.zeros(1, dtype=torch.long), torch.nonzero(filler == ids[STOP]).flatten() + 1])
    places = ends[torch.randint(0, len(ends), (told,), generator=generator)].sort().values.tolist()
    row, starts, filler_ids, done = [ids[BOS]], [], filler.tolist(), 0
    for place, fact in zip(places, facts, strict=True):
        row += filler_ids[done:place]
        done = place
        starts.append(len(row))
        row += [ids[TELL], *fact, ids[STOP]]
    row += filler_ids[done:]
    source = [-1] * len(row)
    order = torch.randperm(told, generator=generator)[:questions].tolist()
    for chosen in order:
        row += [ids[ASK], *facts[chosen], ids[STOP]]
        source += [-1, -1, *range(starts[chosen] + 2, starts[chosen] + 2 + VALUES_PER_KEY), -1]
    needle, asked = torch.zeros(2, len(row), dtype=torch.bool)
    for fact, start in enumerate(starts):
        needle[start : start + BLOCK] = True
        asked[start : start + BLOCK] = fact in order
    return torch.tensor(row), torch.tensor(source), needle, asked


def filler_words(n_tokens: int, generator: torch.Generator) -> Int[Tensor, " pos"]:
    """So many tokens of filler sentences, ending in a full stop.

    Every sentence is a chain of its own: 6 to 14 words, each followed by one of its eight usual successors with
    probability proportional to 1/rank, or, one time in ten, by any filler word.
    """
    ids = needle_vocabulary()
    count = math.ceil(n_tokens / (SHORTEST_SENTENCE + 1))
    usual = _successors()
    likely = 1 / torch.arange(1, SUCCESSORS + 1, dtype=torch.float32)
    word = torch.randint(0, len(FILLERS), (count,), generator=generator)
    chain = [word]
    for _ in range(LONGEST_SENTENCE - 1):
        ranks = torch.multinomial(likely, count, replacement=True, generator=generator)
        anywhere = torch.randint(0, len(FILLERS), (count,), generator=generator)
        jumps = torch.rand(count, generator=generator) < ANY_FILLER
        word = torch.where(jumps, anywhere, usual[word, ranks])
        chain.append(word)
    sentences = torch.stack([*chain, torch.zeros_like(word)], dim=1) + ids[FILLERS[0]]
    lengths = torch.randint(SHORTEST_SENTENCE, LONGEST_SENTENCE + 1, (count,), generator=generator)
    at = torch.arange(LONGEST_SENTENCE + 1)
    sentences = sentences.masked_fill(at == lengths[:, None], ids[STOP])
    words = sentences[at <= lengths[:, None]][:n_tokens]
    words[-1:] = ids[STOP]
    return words


def copy_rows(n_rows: int, length: int, generator: torch.Generator) -> NeedleRows:
    """Rows of ``<bos>``, filler, and a stretch of distinct random words repeated to the end.

    The stretch has 4 words or more, and two copies fit into the row. ``source`` is the position one period earlier,
    from the second token of the second copy on; no token is a needle.
    """
    words = torch.arange(len(SPECIAL), len(needle_vocabulary()))
    ids = torch.zeros(n_rows, length, dtype=torch.long)
    source = torch.full((n_rows, length), -1)
    longest = min((length - 2) // 2, len(words))
    for row in range(n_rows):
        period = int(torch.randint(4, longest + 1, (1,), generator=generator))
        start = int(torch.randint(1, length - 2 * period + 1, (1,), generator=generator))
        stretch = words[torch.randperm(len(words), generator=generator)[:period]]
        ids[row, 1:start] = filler_words(start - 1, generator) if start > 1 else ids[row, 1:1]
        ids[row, start:] = stretch.repeat(math.ceil((length - start) / period))[: length - start]
        source[row, start + period + 1 :] = torch.arange(start + 1, length - period)
    nothing = torch.zeros(n_rows, length, dtype=torch.bool)
    return NeedleRows(ids, source, nothing, nothing.clone())


def _successors() -> Int[Tensor, "filler rank"]:
    draws = torch.rand(len(FILLERS), len(FILLERS), generator=torch.Generator().manual_seed(CHAIN_SEED))
    return draws.argsort(dim=1)[:, :SUCCESSORS]
