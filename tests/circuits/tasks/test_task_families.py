"""Every task and every corruption, swept: the promises that all of them make."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import circuits.tasks
from circuits.tasks import FAMILIES, OWN, PROMPTS, TASKS, Item, make_task
from circuits.tasks.item import SIDES
from circuits.tasks.make import maker_of

CASES = [(name, corruption) for name, family in FAMILIES.items() for corruption in family.corruptions]
WITHOUT_THE_OPTION = ("country-capital",)
IDS = [f"{name}:{corruption}" for name, corruption in CASES]


@cache
def made(name: str, corruption: str, n: int = 40, seed: int = 0) -> tuple[Item, ...]:
    """Items of one corruption."""
    options = {} if name in WITHOUT_THE_OPTION else {"corruption": corruption}
    return make_task(name, n=n, seed=seed, **options).items


@pytest.mark.parametrize(("name", "corruption"), CASES, ids=IDS)
def test_the_seed_decides_and_the_number_does_not(name: str, corruption: str) -> None:
    items = made(name, corruption, n=40)
    assert items == made.__wrapped__(name, corruption, n=40)
    assert items[:11] == made(name, corruption, n=11)
    assert items[:11] != made(name, corruption, n=11, seed=8)


@pytest.mark.parametrize(("name", "corruption"), CASES, ids=IDS)
def test_prompts_differ_from_each_other_and_from_their_corruption(name: str, corruption: str) -> None:
    items = made(name, corruption)
    assert len({item.clean for item in items}) == len(items)
    assert all(item.corrupted is not None and item.corrupted != item.clean for item in items)
    assert all(item.labels["corruption"] == corruption for item in items)


@pytest.mark.parametrize(("name", "corruption"), CASES, ids=IDS)
def test_answers_and_their_corruption_belong_together(name: str, corruption: str) -> None:
    for item in made(name, corruption):
        assert item.wrong and not set(item.right) & set(item.wrong)
        if item.corrupted_right is not None and corruption not in (
            "order",
            "same-gender",
            "attractor",
            "random",
            "01",
            "later",
            "letters",
        ):
            assert set(item.corrupted_right) <= set(item.wrong)
        if (name, corruption) in {("ioi", "order"), ("pronoun", "same-gender"), ("agreement", "attractor")}:
            assert item.corrupted_right == item.right


@pytest.mark.parametrize(("name", "corruption"), CASES, ids=IDS)
def test_positions_lie_in_their_prompts_and_end_at_the_end(name: str, corruption: str) -> None:
    known = " ".join(FAMILIES[name].positions).replace(",", " ").split()
    for item in made(name, corruption):
        assert set(item.positions) == set(item.corrupted_positions)
        for side in SIDES:
            text = item.text(side)
            if text is None:
                continue
            assert item.spans(side)["END"] == (len(text) - 1, len(text))
            for place in item.spans(side):
                marked = item.marked(place, side)
                assert len(marked) > 0 and (not isinstance(marked, str) or marked == marked.strip())
        assert set(item.positions) >= {place for place in known if place[-1].isalpha() and ".." not in place} - {
            "also", "and", "as"
        } - {place for place in known if place.startswith("_")}  # fmt: skip


@pytest.mark.parametrize(("name", "corruption"), CASES, ids=IDS)
def test_texts_are_clean(name: str, corruption: str) -> None:
    for item in made(name, corruption):
        for side in SIDES:
            text = item.text(side)
            if isinstance(text, str):
                assert "{" not in text and "}" not in text and not text.endswith(" ")
                assert "  " not in text.replace("    ", "")
        for first, second in pairwise(str(item.clean).split()):
            if first in ("a", "A") and name not in ("arithmetic", "mental-math") and second[0].isalpha():
                assert second[0].lower() not in "aeiou", (first, second)
            if first in ("an", "An"):
                assert second[0].lower() in "aeiou" or second == "hour", (first, second)


# where the right answer is something that the clean prompt does not hold at all
SAYS_NOTHING = ("greater-than", "pronoun", "agreement", "arithmetic", "mental-math", "country-capital", "facts")
# where it is copied: how often its word stands in the clean prompt
COPIED = {"ioi": 1, "docstring": 1, "induction-natural": 1, "colored-objects": 0}


@pytest.mark.parametrize(("name", "corruption"), CASES, ids=IDS)
def test_the_answer_is_not_given_away(name: str, corruption: str) -> None:
    for item in made(name, corruption):
        words = (
            str(item.clean).replace(",", " ").replace(".", " ").replace(":", " ").replace(")", " ").replace("(", " ")
        )
        said = words.split()
        if name in SAYS_NOTHING:
            years = name == "greater-than"
            assert not any(
                (years and one in item.positions) or (not years and one.strip() in said) for one in map(str, item.right)
            )
        elif name in COPIED:
            assert said.count(str(item.right[0]).strip()) == COPIED[name]
        if name == "greater-than":
            assert item.marked("YY") in item.wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_listed_is_what_the_function_takes(name: str) -> None:
    family = FAMILIES[name]
    taken = set(inspect.signature(maker_of(name)).parameters)
    assert taken == set(family.options) | (set() if name in WITHOUT_THE_OPTION else {"corruption"})
    module = importlib.import_module(family.maker.partition(":")[0])
    constant = {"induction-random": "RANDOM_CORRUPTIONS", "induction-natural": "NATURAL_CORRUPTIONS"}
    assert set(getattr(module, constant.get(name, "CORRUPTIONS"))) == set(family.corruptions)
    assert family.summary and family.measures and family.answer and family.source


def test_every_file_of_a_task_is_listed() -> None:
    folder = Path(circuits.tasks.__file__).parent
    listed = {family.maker.partition(":")[0].rpartition(".")[2] for family in FAMILIES.values()}
    makers = {file.stem for file in folder.glob("*.py") if "-> Callable[[Draw], Item]" in file.read_text()}
    assert makers == listed
    assert set(TASKS) == set(FAMILIES) | set(PROMPTS) | set(OWN)


def test_items_are_made_without_torch() -> None:
    program = (
        "import sys\nfrom circuits.tasks import FAMILIES, make_task\n"
        "[make_task(name, n=2) for name in FAMILIES]\nimport circuits.task_card\n"
        "print({'torch', 'transformers', 'pandas', 'numpy', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_items_of_a_seed_are_the_same_on_every_machine() -> None:
    told = [[item.as_json() for item in make_task(name, n=20, seed=11)] for name in FAMILIES]
    digest = hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()
    assert digest[:16] == "514e07f2d084a33a", (
        "the items of a seed changed: say so in the changelog, and renew this digest"
    )
