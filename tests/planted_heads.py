"""One layer of heads with given jobs, worked out on paper: each looks at some tokens or places and votes for tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import interp
from interp import Batch, Model
from interp.zoo.blank import STRONG, WEAK, blank, entry, head_weights, write
from interp.zoo.words import BOS, SPECIAL, vocabulary

NAMES = ("ann", "bob", "cat", "dan", "eve", "fay", "guy", "hal")
FOILS = ("ian", "jim", "kay", "lee", "may", "ned", "oda", "pat")
FILLERS = ("the", "and", "ran", "sat", "saw", "old", "red", "yes", "no")
WORDS = (*NAMES, *FOILS, *FILLERS)
IDS = vocabulary(WORDS)
VOCABULARY = len(SPECIAL) + len(WORDS)  # 28
CONTEXT = 64
D_HEAD = 100
TOKEN = slice(0, 28)
PLACE = slice(28, 28 + CONTEXT)
ONE = PLACE.stop
OUTPUT = slice(ONE + 1, ONE + 29)


@dataclass(frozen=True)
class Job:
    """What a head does.

    Attributes:
        looks_at: words that it looks at, evenly; it rests on ``<bos>`` where none is there.
        places: places that it looks at, evenly.
        votes: what the token that it sees gets, for the tokens of ``votes_for``.
        votes_for: words that it votes for; all by default.
        first: looks at ``<bos>`` whatever comes.
    """

    looks_at: Sequence[str] = ()
    places: Sequence[int] = ()
    votes: float = 0.0
    votes_for: Sequence[str] = WORDS
    first: bool = False


def planted_model(*jobs: Job) -> Model:
    """A GPT-2 of one layer whose heads have these jobs."""
    network, tokenizer = blank(WORDS, layers=1, heads=max(len(jobs), 2), d_head=D_HEAD, context=CONTEXT)
    with torch.no_grad():
        body = network.transformer
        write(body.wte.weight, TOKEN, torch.eye(VOCABULARY))
        write(body.wpe.weight, PLACE, torch.eye(CONTEXT))
        write(body.wpe.weight, slice(ONE, ONE + 1), torch.ones(CONTEXT, 1))
        for index, job in enumerate(jobs):
            head = head_weights(network, 0, index)
            head.query[ONE, 0] = entry(STRONG, D_HEAD)
            for word in job.looks_at:
                head.key[TOKEN.start + IDS[word], 0] = 1.0
            for place in job.places:
                head.key[PLACE.start + place, 0] = 1.0
            if job.looks_at or job.places or job.first:
                head.key[TOKEN.start + IDS[BOS], 0] = 1.0 if job.first else WEAK / STRONG
            chosen = torch.zeros(VOCABULARY)
            chosen[[IDS[word] for word in job.votes_for]] = 1.0
            head.value[TOKEN, :VOCABULARY] = torch.eye(VOCABULARY)
            write(head.output[:VOCABULARY], OUTPUT, job.votes * torch.diag(chosen))
        network.lm_head.weight[:, OUTPUT] = torch.eye(VOCABULARY)
    return interp.load(network, tokenizer=tokenizer)


def name_prompts(model: Model, n: int = 48, *, fixed: bool = False, seed: int = 0) -> Batch:
    """``n`` prompts of fillers with a name and a foil at random places; the name is right, the foil wrong.

    The spans ``subject`` and ``needle`` are the name's place.

    Args:
        model: a planted model.
        n: how many.
        fixed: the name always stands at place 2 and the foil at place 4.
        seed: of the draw.
    """
    draw = torch.Generator().manual_seed(seed)
    rows, answers, places = [], [], []
    for _ in range(n):
        row = [IDS[BOS], *(IDS[FILLERS[int(torch.randint(7, (1,), generator=draw))]] for _ in range(8))]
        name, foil = (IDS[words[int(torch.randint(8, (1,), generator=draw))]] for words in (NAMES, FOILS))
        first, second = (2, 4) if fixed else (torch.randperm(6, generator=draw)[:2] + 1).tolist()
        row[first], row[second] = name, foil
        rows.append(row)
        answers.append((name, foil))
        places.append(range(first, first + 1))
    return interp.encode(model, torch.tensor(rows), answers=answers, spans={"subject": places, "needle": places})


def choice_prompts(model: Model, n: int = 48, *, favoured: float = 0.5, seed: int = 0) -> Batch:
    """``n`` prompts with four options at places 2, 4, 6, 8: one name, which is right, and three foils.

    Args:
        model: a planted model.
        n: how many.
        favoured: share of prompts in which option 1 is right; the others are right equally often otherwise.
        seed: of the draw.
    """
    draw = torch.Generator().manual_seed(seed)
    rows, answers = [], []
    for _ in range(n):
        row = [IDS[BOS], *(IDS[FILLERS[int(torch.randint(7, (1,), generator=draw))]] for _ in range(10))]
        right = (
            1
            if torch.rand(1, generator=draw) < favoured
            else int(torch.tensor([0, 2, 3])[torch.randint(3, (1,), generator=draw)])
        )
        foils = [IDS[FOILS[place]] for place in torch.randperm(8, generator=draw)[:3].tolist()]
        name = IDS[NAMES[int(torch.randint(8, (1,), generator=draw))]]
        options = [*foils[:right], name, *foils[right:]]
        for number, option in enumerate(options):
            row[2 + 2 * number] = option
        rows.append(row)
        answers.append((name, *foils))
    spans = {f"option {number}": range(2 + 2 * number, 3 + 2 * number) for number in range(4)}
    return interp.encode(model, torch.tensor(rows), answers=answers, spans=spans)


def question_prompts(model: Model, n: int = 48, *, seed: int = 0) -> Batch:
    """``n`` prompts with ``yes`` and ``no`` at random places; the answers are ``no`` against ``yes`` in all of them."""
    draw = torch.Generator().manual_seed(seed)
    rows, yes, no = [], [], []
    for _ in range(n):
        row = [IDS[BOS], *(IDS[FILLERS[int(torch.randint(7, (1,), generator=draw))]] for _ in range(8))]
        first, second = (torch.randperm(6, generator=draw)[:2] + 1).tolist()
        row[first], row[second] = IDS["yes"], IDS["no"]
        rows.append(row)
        yes.append(range(first, first + 1))
        no.append(range(second, second + 1))
    answers = [(IDS["no"], IDS["yes"])] * n
    return interp.encode(model, torch.tensor(rows), answers=answers, spans={"yes": yes, "no": no})
