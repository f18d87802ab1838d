"""The prompts: facts told and asked for, random tokens said twice, sentences, or a user's own texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

import interp
from circuits.experiments.copying.pairs import copying_pairs
from circuits.experiments.trace_text.config import TextSettings
from circuits.experiments.trace_text.sentences import SENTENCES
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.metrics import answer_logits
from interp.model.pooled import embeddings, with_directions
from interp.zoo.needle_text import VALUES_PER_KEY, needle_rows, needle_vocabulary

if TYPE_CHECKING:
    from interp.model.batch import Batch
    from interp.model.handle import Model

TOLD = 3  # facts of a drawn prompt, where they fit


@dataclass(frozen=True, eq=False)
class Prompts:
    """Some prompts with their answers.

    Attributes:
        ids: tokens of each prompt.
        answers: per prompt the id of the right answer and, where known, of a wrong one.
        texts: the prompts as given, where they were texts.
        read_at: column where each prompt's answer is read, counted among its tokens; None for the last.
        about: what they are, in a sentence.
        among: fingerprint of whatever else changes their answers.
        where: column of the token that holds the answer, where a prompt has just one; None where that is not known.
    """

    ids: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...] = ()
    read_at: tuple[int, ...] | None = None
    about: str = ""
    among: str = ""
    where: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Of everything that can change a number."""
        return fingerprint_of(self.ids, self.answers, self.read_at, self.among)

    def select(self, places: Sequence[int]) -> Prompts:
        """The prompts at ``places``, in that order."""
        return Prompts(
            tuple(self.ids[place] for place in places),
            tuple(self.answers[place] for place in places),
            tuple(self.texts[place] for place in places) if self.texts else (),
            None if self.read_at is None else tuple(self.read_at[place] for place in places),
            self.about,
            self.among,
            None if self.where is None else tuple(self.where[place] for place in places),
        )

    def parts(self, size: int) -> list[Prompts]:
        """At most ``size`` prompts at a time, in order."""
        return [self.select(range(begin, min(begin + size, len(self)))) for begin in range(0, len(self), size)]

    def by_length(self) -> Prompts:
        """The shortest first, so that parts are padded little."""
        return self.select(sorted(range(len(self)), key=lambda place: (len(self.ids[place]), place)))

    def batch(self, model: Model) -> Batch:
        """The prompts as ``model`` takes them."""
        columns = set(self.read_at or ())
        read: int | Literal["last", "mask"] = "last" if not columns else columns.pop() if len(columns) == 1 else "mask"
        ids, answers = [list(one) for one in self.ids], [list(one) for one in self.answers]
        return interp.encode(model, ids, answers=answers, read_at=read)

    @property
    def contrasted(self) -> bool:
        """Whether every prompt has a wrong answer."""
        return all(len(answer) > 1 for answer in self.answers)


@dataclass(frozen=True, eq=False)
class Drawn:
    """The prompts of a run, and the model that reads them: one without a head was given one."""

    model: Model
    prompts: Prompts
    pooled: bool = False


def prompts_of(model: Model, config: TextSettings) -> Drawn:
    """The prompts that the settings ask for.

    Raises:
        BadInput: texts that cannot be read, answers of several tokens, or a model that needs texts of its own.
    """
    if model.default_stack not in ("text", "encoder", "decoder"):
        raise BadInput(f"{model.name!r} reads no texts; `circuits run trace-image` traces images.")
    if model.hf.get_output_embeddings() is None and type(model.hf).__name__ == type(model.hf.base_model).__name__:
        return _pooled(model, config)
    if config.texts:
        return Drawn(model, _own(model, config).by_length())
    known = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    if all(known.get(word) == number for word, number in needle_vocabulary().items()):
        return Drawn(model, _facts(config))
    if model.default_stack != "text" or not model.stack().causal:
        raise BadInput(
            f"{model.name!r} does not predict the next token, so that no prompts are drawn for it. Give texts=[...] of "
            "your own, with the mask token where the answer is read, and answers=[[right, wrong], ...]."
        )
    pairs = copying_pairs(
        model, n=config.n_prompts, segment=max(4, config.length // 2), seed=config.seed, purpose="trace"
    )
    answers = tuple((int(right), int(wrong)) for right, wrong in zip(pairs.right, pairs.wrong, strict=True))
    return Drawn(
        model,
        Prompts(
            tuple(tuple(row) for row in pairs.clean.tolist()),
            answers,
            about=f"{len(pairs)} prompts of {pairs.segment} random tokens said twice but for the last, which copying "
            "foresees; the wrong answer is a token that is not in the prompt.",
            where=(pairs.start + pairs.segment - 1,) * len(pairs),
        ),
    )


def _facts(config: TextSettings) -> Prompts:
    """Facts of the zoo's needle models; prompt i is a function of (seed, i)."""
    ids, answers, where = [], [], []
    told = min(TOLD, max(2, config.length // 20))
    for number in range(config.n_prompts):
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        rows = needle_rows(1, config.length + VALUES_PER_KEY + 1, draw, told=told, questions=1)
        row, source = rows.ids[0].tolist(), rows.source[0]
        end = len(row) - 1 - VALUES_PER_KEY  # behind "recall KEY"
        other = rows.needle[0] & ~rows.asked[0]
        first_wrong = int(other.nonzero()[0]) + 2
        assert row[int(source[end])] == row[end]
        ids.append(tuple(row[:end]))
        answers.append((row[end], row[first_wrong]))
        where.append(int(source[end]))
    return Prompts(
        tuple(ids),
        tuple(answers),
        about=f"{config.n_prompts} prompts of {len(ids[0])} tokens in which {told} facts are told among babble and one "
        "is asked for at the end; the wrong answer is the first word of another fact.",
        where=tuple(where),
    )


def _own(model: Model, config: TextSettings) -> Prompts:
    """A user's own texts, answered by what the settings or the model say."""
    texts = config.texts[: config.n_prompts]
    mask = getattr(model.tokenizer, "mask_token", None)
    masked = bool(mask) and all(str(mask) in text for text in texts)
    if not masked and not (model.stack().causal and model.default_stack == "text"):
        raise BadInput(
            f"texts: {model.name!r} does not predict the next token; put its mask token"
            f"{'' if mask is None else f' ({mask})'} into every text, where the answer is read."
        )
    where = "mask" if masked else "last"
    given = {"answers": [list(one) for one in config.answers[: config.n_prompts]]} if config.answers else {}
    batch = interp.encode(model, list(texts), read_at=where, answer_tokens=config.answer_tokens, **given)  # type: ignore[arg-type]
    assert batch.ids is not None
    if batch.answers is None:
        logits = interp.run(model, batch, logits="answers").logits
        assert logits is not None
        best = answer_logits(logits, batch).topk(2).indices.tolist()
        answers = tuple(tuple(one) for one in best)
        said = "the right answer is the token that the model says, the wrong one its second choice"
    else:
        answers = tuple(tuple(one for one in row if one >= 0) for row in batch.answers.tolist())
        said = "the answers are given"
    ids = tuple(tuple(row[here].tolist()) for row, here in zip(batch.ids, batch.mask, strict=True))
    first = batch.mask.to(torch.uint8).argmax(-1)
    read = tuple((batch.read_at - first).tolist()) if masked else None
    return Prompts(ids, answers, tuple(texts), read, f"{len(texts)} texts of your own; {said}.")


def _pooled(model: Model, config: TextSettings) -> Drawn:
    """Sentences for an encoder without a head, each to be told by its own embedding."""
    if config.answers:
        raise BadInput(f"answers: {model.name!r} has no head and gives no answers; leave them out.")
    texts = (config.texts or SENTENCES)[: config.n_prompts]
    batch = interp.encode(model, list(texts))
    assert batch.ids is not None
    own = embeddings(model, batch)
    unit = own / own.norm(dim=-1, keepdim=True)
    ids = tuple(tuple(row[here].tolist()) for row, here in zip(batch.ids, batch.mask, strict=True))
    about = (
        f"{len(texts)} {'texts of your own' if config.texts else 'sentences'}; the model has no head, and the answer "
        "is the length of a text's mean-pooled embedding along what it is for the whole text."
    )
    prompts = Prompts(
        ids, tuple((place,) for place in range(len(texts))), tuple(texts), (0,) * len(texts), about, fingerprint_of(ids)
    )
    return Drawn(with_directions(model, unit), prompts.by_length(), pooled=True)


def counted_sources(model: Model, prompts: Prompts, *, special: bool) -> np.ndarray:
    """``[prompt, source]`` True at the tokens that are compared, columns as in a batch of the longest of them."""
    width = max(map(len, prompts.ids))
    left_out = set() if special else set(getattr(model.tokenizer, "all_special_ids", None) or ())
    made = np.zeros((len(prompts), width), dtype=bool)
    for row, ids in enumerate(prompts.ids):
        made[row, : len(ids)] = [token not in left_out for token in ids]
    return made
