"""The tokenizer check: a task becomes batches of a model, and every item that does not fit is explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

import interp
from circuits.tasks.fitting import Answers, Bos, Compared, Drop, Fitted, Rules, fit_items, one_length
from circuits.tasks.item import SIDES, Item, Side
from circuits.tasks.task import Task
from circuits.tasks.task_batch import TaskBatch
from circuits.tasks.tokenised import Splitter
from interp.errors import BadInput, Unsupported
from interp.model.inputs import context_limit, input_embeddings

_SHOWN = 3  # examples of each rule in a refusal


def encode_task(
    model: interp.Model,
    task: Task,
    *,
    keep: Literal["all fit", "one length"] | int = "all fit",
    answers: Answers = "one",
    wrong: Literal["all", "some"] = "all",
    corrupted: Compared = "equal",
    baseline: Compared = "equal",
    least: float = 0.5,
    bos: Bos = "tokenizer",
    padding_side: Literal["left", "right"] | None = None,
) -> TaskBatch:
    """The items of ``task`` that ``model`` can be asked, as batches; the others stand in ``.dropped`` with a reason.

    An item fits when its clean prompt, its corrupted prompt and its baseline are equally many tokens, no word is
    unknown, every answer continues the clean prompt without merging with it and is one token, right and wrong answers
    differ in their first token, every position has tokens of its own, and no earlier item has the same tokens.

    Args:
        model: a causal language model, with a tokenizer unless the items are ids.
        task: from ``make_task``, ``read_task`` or ``Task.open``.
        keep: ``"all fit"``; ``"one length"``: of these only the most frequent token length, so that positions line up;
            or a number: the first so many that fit.
        answers: ``"one"``: answers of several tokens do not fit; ``"first"``: their first token stands for them;
            ``"sequence"``: ``.sequences`` has all their tokens, and the batches' ``answers`` the first ones.
        wrong: whether ``"all"`` wrong answers must fit, or ``"some"`` of them (the others are left out).
        corrupted, baseline: ``"equal"`` length to the clean prompt, ``"any"`` length, or ``"none"``: not encoded.
        least: the share of the items that must be left.
        bos: as for ``interp.encode``.
        padding_side: as for ``interp.encode``.

    Raises:
        BadInput: fewer items fit than ``least`` of those given, or than ``keep`` asks for; the message counts reasons.
        Unsupported: a model that does not continue texts.

    Example:
        >>> import interp
        >>> from circuits.tasks import make_task
        >>> model = interp.load("induction")
        >>> batch = encode_task(model, make_task("induction-random", n=8, vocabulary=(4, 390), length=20, first=0))
        >>> len(batch), batch.clean.answers.shape, sorted(batch.clean.spans)[:2]
        (8, torch.Size([8, 2]), ['END', 'first_copy'])
    """
    _check_options(keep, answers, wrong, corrupted, baseline, least, bos)
    splitter = _splitter(model, task, bos)
    embeddings = input_embeddings(model)
    rules = Rules(
        answers, wrong, corrupted, baseline, context_limit(model), getattr(embeddings, "num_embeddings", None)
    )
    fitted, drops = fit_items(task.items, splitter, rules)
    if keep == "one length" and fitted:
        fitted, others = one_length(fitted)
        drops += others
    _refuse_few(task, fitted, drops, least, keep)
    if isinstance(keep, int):
        fitted = fitted[:keep]
        drops = [drop for drop in drops if drop.item <= fitted[-1].index]
    given = fitted[-1].index + 1 if isinstance(keep, int) else len(task)
    kept = task.select([one.index for one in fitted])
    sides = rules.used(kept.items)
    encoded = {side: _batch(model, kept.items, fitted, side, bos, padding_side) for side in sides}
    return TaskBatch(
        task=kept,
        clean=encoded["clean"],
        corrupted=encoded.get("corrupted"),
        baseline=encoded.get("baseline"),
        right=_padded([[ids[0] for ids in one.right] for one in fitted]),
        wrong=_padded([[ids[0] for ids in one.wrong] for one in fitted]),
        sequences=tuple((one.right, one.wrong) for one in fitted),
        indices=tuple(one.index for one in fitted),
        drops=tuple(sorted(drops, key=lambda drop: drop.item)),
        given=given,
    )


def _check_options(keep: Any, answers: str, wrong: str, corrupted: str, baseline: str, least: float, bos: Any) -> None:
    known = {
        "answers": (answers, ("one", "first", "sequence")),
        "wrong": (wrong, ("all", "some")),
        "corrupted": (corrupted, ("equal", "any", "none")),
        "baseline": (baseline, ("equal", "any", "none")),
        "bos": (bos, ("tokenizer", True, False)),
    }
    for name, (value, allowed) in known.items():
        if value not in allowed:
            raise BadInput(f"{name}={value!r}: expected {' or '.join(map(repr, allowed))}.")
    whole = isinstance(keep, int) and not isinstance(keep, bool) and keep > 0
    if keep not in ("all fit", "one length") and not whole:
        raise BadInput(f"keep={keep!r}: expected 'all fit', 'one length' or a number of items.")
    if not 0 <= least <= 1:
        raise BadInput(f"least={least!r}: expected a share from 0 to 1.")


def _splitter(model: interp.Model, task: Task, bos: Bos) -> Splitter | None:
    if model.default_stack != "text" or not model.stack().causal:
        raise Unsupported(
            f"{model.name!r} does not continue texts (its default stack is {model.default_stack!r}); a task needs a "
            "causal language model."
        )
    texts = [isinstance(item.clean, str) for item in task.items]
    if not any(texts):
        return None
    if not all(texts):
        raise BadInput(f"Task {task.name!r} mixes texts and ids (item {texts.index(False)} is ids); select one kind.")
    if model.tokenizer is None:
        raise BadInput(
            f"Task {task.name!r} is texts and {model.name!r} has no tokenizer: interp.load(..., tokenizer=)."
        )
    return Splitter(model.tokenizer, bos)


def _refuse_few(task: Task, fitted: Sequence[Fitted], drops: Sequence[Drop], least: float, keep: Any) -> None:
    wanted = keep if isinstance(keep, int) else 1
    if len(fitted) >= max(wanted, least * len(task)):
        return
    lines = []
    for rule, count in Counter(drop.rule for drop in drops).most_common():
        shown = [drop for drop in drops if drop.rule == rule][:_SHOWN]
        lines.append(f"  {rule}: {count}, such as " + "; ".join(f"item {one.item}: {one.reason}" for one in shown))
    asked = f"keep={keep} asks for more" if len(fitted) < wanted else f"least={least:g} of them must fit"
    hint = _hint({drop.rule for drop in drops})
    raise BadInput(
        f"{len(fitted)} of {len(task)} items of {task.name!r} fit this tokenizer, and {asked}. What stood against the "
        "others:\n" + "\n".join(lines) + hint
    )


def _hint(rules: set[str]) -> str:
    hints = {
        "several tokens": "answers='first' lets the first token stand for an answer",
        "answers alike": "answers='sequence' keeps all their tokens",
        "unequal lengths": "corrupted='any' or baseline='any' allows other lengths; words of one token make them equal "
        "(circuits.known_words)",
        "unknown words": "task.spaced() sets punctuation off for tokenizers of whole words, and most tasks take words "
        "of your own",
        "merging border": "another form of the task (circuits show NAME) may keep prompt and answer apart",
    }
    told = [hint for rule, hint in hints.items() if rule in rules]
    return "\nWhat helps: " + "; ".join(told) + "." if told else ""


def _batch(
    model: interp.Model, items: Sequence[Item], fitted: Sequence[Fitted], side: Side, bos: Bos, padding_side: Any
) -> interp.Batch:
    assert side in SIDES
    texts = [item.text(side) for item in items]
    prompts: Any = texts if isinstance(texts[0], str) else [list(text or ()) for text in texts]
    answers = [list(dict.fromkeys([one.right[0][0], *(ids[0] for ids in one.wrong)])) for one in fitted]
    batch = interp.encode(model, prompts, answers=answers, bos=bos, padding_side=padding_side)
    rows = (
        [tuple(batch.ids[row][batch.mask[row]].tolist()) for row in range(len(batch))] if batch.ids is not None else []
    )
    if rows != [one.ids[side] for one in fitted]:  # two ways to the same tokens
        raise BadInput("The tokenizer splits a text otherwise in a list than alone; report this with its name.")
    return replace(batch, spans=_spans(batch, fitted, side))


def _spans(batch: interp.Batch, fitted: Sequence[Fitted], side: Side) -> dict[str, Tensor]:
    """Name -> ``[batch, pos]`` for the positions that every item has on this side."""
    shared = [name for name in fitted[0].columns[side] if all(name in one.columns[side] for one in fitted)]
    places = [row.nonzero()[:, 0] for row in batch.mask]
    made = {}
    for name in shared:
        mask = torch.zeros_like(batch.mask)
        for row, one in enumerate(fitted):
            mask[row, places[row][list(one.columns[side][name])]] = True
        made[name] = mask
    return made


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """``[item, k]``, each id once, -1 behind."""
    different = [list(dict.fromkeys(row)) for row in rows]
    width = max(1, *(len(row) for row in different))
    return torch.tensor([row + [-1] * (width - len(row)) for row in different])
