"""Which items of a task fit a tokenizer, and in words why each of the others does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from circuits.tasks.item import SIDES, Answer, Item, Side
from circuits.tasks.tokenised import Bos as Bos
from circuits.tasks.tokenised import Splitter, Tokenised

Answers = Literal["one", "first", "sequence"]
Compared = Literal["equal", "any", "none"]


@dataclass(frozen=True)
class Rules:
    """What an item must be like.

    Attributes:
        answers: ``"one"`` token each; or the ``"first"`` token, or the whole ``"sequence"``, stands for an answer.
        wrong: ``"all"`` wrong answers must fit, or ``"some"``, in which case the others are left out.
        corrupted, baseline: token length ``"equal"`` to the clean prompt's, ``"any"``, or the side is not used.
        limit: tokens that the context holds.
        size: of the vocabulary.
    """

    answers: Answers
    wrong: Literal["all", "some"]
    corrupted: Compared
    baseline: Compared
    limit: int | None
    size: int | None

    def used(self, items: Sequence[Item]) -> tuple[Side, ...]:
        """The sides that are asked for and that at least one item has."""
        asked = {"clean": "equal", "corrupted": self.corrupted, "baseline": self.baseline}
        return tuple(s for s in SIDES if asked[s] != "none" and any(item.text(s) is not None for item in items))


@dataclass(frozen=True)
class Drop:
    """Why an item was left out.

    Attributes:
        item: its index in the task.
        rule: which rule, in a word or two, to count by.
        reason: in words, with what was found.
    """

    item: int
    rule: str
    reason: str


@dataclass(frozen=True)
class Fitted:
    """An item in tokens: the ids of its sides and of its answers, and the columns of its positions."""

    index: int
    ids: Mapping[Side, tuple[int, ...]]
    right: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    columns: Mapping[Side, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)


class _Unfit(Exception):
    def __init__(self, rule: str, reason: str) -> None:
        self.rule, self.reason = rule, reason


def fit_items(items: Sequence[Item], splitter: Splitter | None, rules: Rules) -> tuple[list[Fitted], list[Drop]]:
    """The items that fit, in tokens, and for each of the others the first rule that it breaks.

    Args:
        items: texts, or token ids.
        splitter: the tokenizer; ``None`` for ids.
        rules: what is asked of them.
    """
    sides = rules.used(items)
    split = {side: _split(items, splitter, side) for side in sides}
    added = _answers_of(items, splitter, split["clean"])
    fitted: list[Fitted] = []
    drops: list[Drop] = []
    seen: dict[tuple[int, ...], int] = {}
    for index, item in enumerate(items):
        own: dict[Side, Tokenised | None] = {side: split[side][index] for side in sides}
        try:
            found = _fit(index, item, own, added[index], splitter, rules)
            earlier = seen.setdefault(found.ids["clean"], index)
            if earlier != index:
                raise _Unfit("duplicate", f"the same tokens as item {earlier}")
            fitted.append(found)
        except _Unfit as unfit:
            drops.append(Drop(index, unfit.rule, unfit.reason))
    return fitted, drops


def one_length(fitted: Sequence[Fitted]) -> tuple[list[Fitted], list[Drop]]:
    """Those of the most frequent clean length (of equally frequent ones the shortest), and the others."""
    counts = Counter(len(one.ids["clean"]) for one in fitted)
    length = min(counts, key=lambda size: (-counts[size], size))
    kept = [one for one in fitted if len(one.ids["clean"]) == length]
    reason = f"tokens, and the most frequent length is {length} (keep='one length')"
    others = [one for one in fitted if len(one.ids["clean"]) != length]
    return kept, [Drop(one.index, "another length", f"{len(one.ids['clean'])} {reason}") for one in others]


def _split(items: Sequence[Item], splitter: Splitter | None, side: Side) -> list[Tokenised | None]:
    texts = [item.text(side) for item in items]
    if splitter is None:
        return [None if ids is None else _of_ids(cast("tuple[int, ...]", ids)) for ids in texts]
    given = iter(splitter.prompts([cast(str, text) for text in texts if text is not None]))
    return [None if text is None else next(given) for text in texts]


def _of_ids(ids: tuple[int, ...]) -> Tokenised:
    return Tokenised(ids, ids, tuple((place, place + 1) for place in range(len(ids))))


def _answers_of(
    items: Sequence[Item], splitter: Splitter | None, clean: Sequence[Tokenised | None]
) -> list[dict[Answer, tuple[int, ...] | str]]:
    """Answer -> its ids or why it has none, for each item; ids stand for themselves."""
    answers = [[*item.right, *item.wrong] for item in items]
    made: list[dict[Answer, tuple[int, ...] | str]] = [
        {answer: (answer,) for answer in some if isinstance(answer, int)} for some in answers
    ]
    if splitter is not None:
        texts = [[answer for answer in some if isinstance(answer, str)] for some in answers]
        prompts = [cast(str, item.clean) for item in items]
        for known, found in zip(made, splitter.continuations(prompts, cast(Any, clean), texts), strict=True):
            known.update(found)
    return made


def _fit(
    index: int, item: Item, own: Mapping[Side, Tokenised | None], added: Mapping[Answer, tuple[int, ...] | str],
    splitter: Splitter | None, rules: Rules,
) -> Fitted:  # fmt: skip
    found: dict[Side, Tokenised] = {}
    for side, prompt in own.items():
        if prompt is None:
            raise _Unfit("side missing", f"it has no {side} prompt, which other items have")
        _check_prompt(item, side, prompt, splitter, rules)
        found[side] = prompt
    for side, asked in (("corrupted", rules.corrupted), ("baseline", rules.baseline)):
        if side in found and asked == "equal" and len(found[side].ids) != len(found["clean"].ids):
            raise _Unfit(
                "unequal lengths", f"clean has {len(found['clean'].ids)} tokens, {side} {len(found[side].ids)}"
            )
    if "corrupted" in found and found["corrupted"].ids == found["clean"].ids:
        raise _Unfit("nothing corrupted", "clean and corrupted are the same tokens")
    right = _sequences(item.right, added, rules, "right")
    wrong = _sequences(item.wrong, added, rules, "wrong")
    shared = {ids[0] for ids in right} & {ids[0] for ids in wrong}
    if shared and rules.answers != "sequence":
        told = splitter.spelled(sorted(shared)) if splitter else sorted(shared)
        raise _Unfit("answers alike", f"right and wrong answers begin with the same token {told}")
    columns: dict[Side, dict[str, tuple[int, ...]]] = {
        side: _columns(item, side, prompt, splitter) for side, prompt in found.items()
    }
    return Fitted(index, {side: prompt.ids for side, prompt in found.items()}, right, wrong, columns)


def _check_prompt(item: Item, side: Side, prompt: Tokenised, splitter: Splitter | None, rules: Rules) -> None:
    if not prompt.plain:
        raise _Unfit("empty", f"the {side} prompt has no tokens")
    if rules.limit is not None and len(prompt.ids) > rules.limit:
        raise _Unfit("too long", f"the {side} prompt has {len(prompt.ids)} tokens, the context holds {rules.limit}")
    if splitter is None:
        outside = [token for token in prompt.ids if token < 0 or (rules.size is not None and token >= rules.size)]
        if outside:
            raise _Unfit("outside the vocabulary", f"ids {outside[:5]} of {side} are outside 0 to {rules.size} - 1")
    elif unknown := splitter.unknown_words(cast(str, item.text(side)), prompt):
        raise _Unfit("unknown words", f"the tokenizer does not know {', '.join(map(repr, unknown))} ({side})")


def _sequences(
    answers: Sequence[Answer], added: Mapping[Answer, tuple[int, ...] | str], rules: Rules, which: str
) -> tuple[tuple[int, ...], ...]:
    """The ids of the answers, each sequence once."""
    made: dict[tuple[int, ...], None] = {}
    faults = []
    for answer in answers:
        ids = added[answer]
        if isinstance(ids, str):
            faults.append(("merging border" if "merges" in ids else "unknown answer", ids))
        elif rules.size is not None and not all(0 <= token < rules.size for token in ids):
            faults.append(("outside the vocabulary", f"the answer {answer!r} is outside 0 to {rules.size - 1}"))
        elif rules.answers == "one" and len(ids) > 1:
            faults.append(("several tokens", f"the {which} answer {answer!r} is {len(ids)} tokens"))
        else:
            made[ids[:1] if rules.answers == "first" else ids] = None
    if faults and (which == "right" or rules.wrong == "all" or not made):
        raise _Unfit(*faults[0])
    return tuple(made)


def _columns(item: Item, side: Side, prompt: Tokenised, splitter: Splitter | None) -> dict[str, tuple[int, ...]]:
    made = {}
    for name, (start, end) in item.spans(side).items():
        if splitter is None:
            made[name] = tuple(range(start, end))
            continue
        text = cast(str, item.text(side))
        columns = splitter.columns(text, prompt, (start, end))
        if not columns:
            raise _Unfit(
                "position lost", f"no token of {side} can be told to be position {name!r} ({text[start:end]!r})"
            )
        made[name] = tuple(columns)
    return made
