"""What the items of each task are like in number: shares, balance, answers worked out a second way."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from circuits.tasks import make_task
from circuits.tasks.acronyms import WORDS
from circuits.tasks.agreement import VERBS
from circuits.tasks.arithmetic import arithmetic_prompt
from circuits.tasks.colored_objects import OBJECTS, SURFACES
from circuits.tasks.fact_lists import RELATIONS
from circuits.tasks.ioi import TEMPLATES
from circuits.tasks.words import COLORS, MEN, NAMES, WOMEN
from interp.errors import BadInput, UnknownName

SCENE = re.compile(
    r"Q: On the (\w+), (there is|you see|I see) (an?) (\w+) (\w+), (an?) (\w+) (\w+), and (an?) (\w+) (\w+)\. "
    r"What color is the (\w+)\?\nA:(?: (\w+)\n)?"
)


# ---- indirect objects ------------------------------------------------------------------------------------------------


def test_ioi_orders_and_templates_are_even_and_names_are_three_mentions_of_two() -> None:
    task = make_task("ioi", n=600, seed=2)
    assert task.counts("order") == {"BABA": 300, "ABBA": 300}
    assert set(task.counts("template").values()) == {40} and len(TEMPLATES) == 15
    both = Counter(zip(task.labels("template"), task.labels("order"), strict=True))
    assert len(both) == 30 and min(both.values()) >= 8
    for item in task:
        said = [word for word in re.findall(r"\w+", str(item.clean)) if word in NAMES]
        subject, other = item.labels["S"], item.labels["IO"]
        assert said == ([subject, other, subject] if item.labels["order"] == "BABA" else [other, subject, subject])
        assert item.right == (" " + other,) and item.wrong == (" " + subject,)
        assert item.marked("S1") == item.marked("S2") == subject and item.marked("IO") == other
        first = item.marked("S1" if item.labels["order"] == "BABA" else "IO")
        assert first == said[0] and item.positions["S1"] < item.positions["S2"]
        assert item.marked("S1+1") == ("and" if item.labels["order"] == "BABA" else item.marked("S1+1"))
    assert len(set(TEMPLATES)) == 15
    people = Counter(item.labels["IO"] for item in task)
    assert len(people) > 50 and max(people.values()) < 30


@pytest.mark.parametrize("order", ["BABA", "ABBA"])
def test_ioi_corruptions_are_what_they_are_called(order: str) -> None:
    def names(corruption: str) -> list[tuple[list[str], list[str], list[str], tuple[str, ...] | None]]:
        return [
            (*([w for w in re.findall(r"\w+", str(text)) if w in NAMES] for text in (i.clean, i.corrupted, i.baseline)),
             i.corrupted_right)
            for i in make_task("ioi", n=40, order=order, corruption=corruption)
        ]  # fmt: skip  # pyright: ignore[reportReturnType]

    first_is_subject = order == "BABA"
    for clean, changed, baseline, answer in names("abc"):
        assert len({*clean, *changed}) == 5 and answer is None and changed == baseline
    for clean, changed, baseline, answer in names("abc-s2"):
        assert changed[:2] == clean[:2] and changed[2] not in clean and answer is None
        assert len({*clean, *baseline}) == 5
    for clean, changed, _, answer in names("abc-s1"):
        place = 0 if first_is_subject else 1
        assert changed[1 - place :: 2][:1] == clean[1 - place :: 2][:1] and len(set(changed)) == 3 and answer is None
        assert changed[place] not in clean and changed[2] == clean[2]
    for clean, changed, _, answer in names("flip"):
        other = clean[1] if first_is_subject else clean[0]
        assert changed == [*clean[:2], other] and answer == (" " + clean[2],)
    for clean, changed, _, answer in names("swap"):
        exchange = {clean[0]: clean[1], clean[1]: clean[0]}
        assert changed == [exchange[name] for name in clean] and answer == (" " + clean[2],)
    for clean, changed, _, answer in names("order"):
        other = clean[1] if first_is_subject else clean[0]
        assert changed == [clean[1], clean[0], clean[2]] and answer == (" " + other,)
    for clean, changed, _, answer in names("random"):
        assert not set(clean) & set(changed) and [clean.index(n) for n in clean] == [changed.index(n) for n in changed]
        assert answer == (" " + next(name for name in changed if changed.count(name) == 1),)


def test_ioi_takes_words_and_templates_of_ones_own() -> None:
    people = ["Ana", "Bob", "Cy", "Di", "Ed"]
    told = make_task("ioi", n=4, names=people, templates=["{X} met {Y}; {S} spoke to"], order="ABBA")
    assert all(set(re.findall("[A-Z][a-z]+", str(item.clean))) <= set(people) for item in told)
    for names in (people[:4], [*people, "Ana"], "Anna", [1, 2, 3, 4, 5]):
        with pytest.raises(BadInput, match="names"):
            make_task("ioi", names=names)
    for templates in ([], ["{X} and {Y} gave"], ["{Y} and {X}: {S} gave"], ["{X} {X} {Y} {S}"]):
        with pytest.raises(BadInput, match="emplate"):
            make_task("ioi", templates=templates)
    with pytest.raises(UnknownName, match="order"):
        make_task("ioi", order="ABAB")


# ---- coloured objects ------------------------------------------------------------------------------------------------


def test_colored_objects_are_as_published() -> None:
    assert len(OBJECTS) == 17 and len(COLORS) == 8 and SURFACES == ("table", "desk", "floor")
    task = make_task("colored-objects", n=999, seed=1)
    assert set(task.counts("queried").values()) == {333}
    phrases: Counter[str] = Counter()
    for item in task:
        shot, asked = SCENE.findall(str(item.clean))
        assert "".join(match.group() for match in SCENE.finditer(str(item.clean))) == item.clean
        for surface, phrase, a1, c1, o1, a2, c2, o2, a3, c3, o3, queried, answer in (shot, asked):
            phrases[phrase] += 1
            assert surface in SURFACES and {o1, o2, o3} <= set(OBJECTS) and {c1, c2, c3} <= set(COLORS)
            assert (a1, a2, a3) == tuple("an" if color == "orange" else "a" for color in (c1, c2, c3))
            color = dict(zip((o1, o2, o3), (c1, c2, c3), strict=True))[queried]
            assert answer in ("", color.capitalize())
            if not answer:
                assert item.right == (" " + color.capitalize(),)
        assert not set(shot[4:11:3]) & set(asked[4:11:3]) and not set(shot[3:10:3]) & set(asked[3:10:3])
        assert len({*shot[4:11:3], *asked[4:11:3]}) == 6 and len({*shot[3:10:3], *asked[3:10:3]}) == 6
    assert min(phrases.values()) > 500 and len(phrases) == 3


def test_the_counterfactual_differs_in_the_queried_object_alone() -> None:
    for item in make_task("colored-objects", n=90, seed=4):
        start, end = item.positions["queried"]
        assert isinstance(item.corrupted, str) and isinstance(item.clean, str)
        other = item.corrupted[start : len(item.corrupted) - (len(item.clean) - end)]
        assert item.corrupted == item.clean[:start] + other + item.clean[end:] and other != item.clean[start:end]
        assert other in item.labels["objects"]
        color = item.labels["colors"][item.labels["objects"].index(other)]
        assert item.corrupted_right == item.wrong == (" " + color.capitalize(),)
        assert item.marked("right_color").capitalize() == item.right[0].strip()
        assert item.marked("wrong_color_1").capitalize() == item.wrong[0].strip()
        assert {item.marked(f"{kind}_{n}") for kind, n in (("wrong_color", 1), ("wrong_color", 2))} | {
            item.marked("right_color")
        } == set(item.labels["colors"])
        assert item.marked("right_object") == item.marked("queried")
    pairs = Counter((i.labels["queried"], i.labels["other"]) for i in make_task("colored-objects", n=600))
    assert len(pairs) == 6 and min(pairs.values()) > 70


def test_colored_objects_options() -> None:
    for item in make_task("colored-objects", n=30, corruption="colors", wrong="present"):
        assert len(item.wrong) == 2 and item.corrupted_right == item.wrong[:1]
        assert item.marked("queried", "corrupted") == item.marked("queried")
        assert (
            sorted(str(item.corrupted)) != [] and item.marked("right_color", "corrupted").capitalize() in item.wrong[0]
        )
    assert str(make_task("colored-objects", n=1, shots=0)[0].clean).count("Q:") == 1
    with pytest.raises(BadInput, match="shots=2"):
        make_task("colored-objects", shots=2)
    colors = [*COLORS, "white"]
    assert (
        str(make_task("colored-objects", n=1, shots=2, colors=colors, objects=[*OBJECTS, "x"])[0].clean).count("Q:")
        == 3
    )


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_greater_than_answers_are_all_years_above_and_not_above() -> None:
    task = make_task("greater-than", n=194, seed=0)
    assert set(task.counts("year").values()) == {2} and set(task.labels("year")) == set(range(2, 99))
    for item in task:
        match = re.fullmatch(r"The \w+ lasted from the year (\d\d)(\d\d) to (\d\d)", str(item.clean))
        assert match and match[1] == match[3] and item.marked("YY") == match[2]
        assert {int(y) for y in map(str, item.right)} == {y for y in range(100) if y > int(match[2])}
        assert {int(y) for y in map(str, item.wrong)} == {y for y in range(100) if y <= int(match[2])}
        assert str(item.corrupted) == str(item.clean).replace(f"{match[1]}{match[2]} ", f"{match[1]}01 ")
        assert all(len(str(year)) == 2 for year in (*item.right, *item.wrong))
    later = make_task("greater-than", n=97, corruption="later", wording="to the year")
    assert all(item.labels["corrupted_year"] > item.labels["year"] for item in later)
    assert str(later[0].clean).endswith(f"to the year {later[0].labels['century']}")
    for options in ({"years": (1, 98)}, {"years": (5, 99)}, {"years": (9, 3)}, {"centuries": (5, 9)}):
        with pytest.raises(BadInput, match="expected"):
            make_task("greater-than", **options)


@pytest.mark.parametrize("form", ["spaced", "tight", "question"])
@pytest.mark.parametrize("operation", ["+", "-", "*", "mixed"])
def test_arithmetic_is_right_when_python_computes_it(form: str, operation: str) -> None:
    task = make_task("arithmetic", n=60, form=form, operation=operation, operands=(0, 40), shots=2)
    for item in task:
        for text, answer in ((item.clean, item.right[0]), (item.corrupted, item.wrong[0])):
            lines = (str(text) + str(answer)).replace("?\nA: ", " = ").replace("Q: What is ", "").split("\n")
            assert len(lines) == 3
            for line in lines:
                asked, _, result = line.partition("=")
                assert eval(asked) == int(result) >= 0
        assert {item.marked("A"), item.marked("B")} >= {str(item.labels["A"]), str(item.labels["B"])}
        same = [item.marked(p) == item.marked(p, "corrupted") for p in ("A", "B")]
        assert sum(same) == 1 and same.index(False) == "AB".index(item.labels["changed"])
    if operation == "mixed":
        assert set(task.counts("operation").values()) == {20}
    assert set(task.counts("changed").values()) == {30}


def test_mental_math_sums_three_and_its_prompt_can_be_made_for_any_operands() -> None:
    task = make_task("mental-math", n=90, seed=5)
    for item in task:
        numbers = tuple(item.labels[letter] for letter in "ABC")
        assert item.right == (f" {sum(numbers)}",) and item.labels["result"] not in numbers
        assert (
            arithmetic_prompt(numbers).text == item.clean and dict(arithmetic_prompt(numbers).spans) == item.positions
        )
        assert [int(str(item.marked(letter))) for letter in "ABC"] == list(numbers)
    assert set(task.counts("changed").values()) == {30}
    allchanged = make_task("mental-math", n=5, corruption="all", operands=(10, 99))
    assert all(item.labels["changed"] == "all" for item in allchanged)
    for options in ({"operands": (1, 3)}, {"operands": (5, 1)}, {"operands": 9}, {"shots": -1}):
        with pytest.raises(BadInput, match="expected"):
            make_task("mental-math", **options)


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 2])
def test_docstring_is_python_and_the_third_documented_parameter_is_the_answer(before: int) -> None:
    for item in make_task("docstring", n=40, before=before):
        code = str(item.clean) + str(item.right[0]) + '\n    """'
        scope: dict[str, object] = {}
        exec(code, scope)
        names = list(scope[item.labels["function"]].__code__.co_varnames[1:])  # pyright: ignore[reportAttributeAccessIssue]
        documented = re.findall(r":param (\w+)", code)
        place = names.index(documented[0])
        assert place == before and documented == names[place : place + 3] and documented[2] == item.labels["answer"]
        assert {str(answer).strip() for answer in item.wrong} == set(names) - {documented[2]}
        assert len(set(re.findall(r"\w+", code)) & set(names)) == len(names) == before + 6


def test_docstring_corruptions_touch_what_they_say() -> None:
    def parts(text: object) -> tuple[list[str], list[str]]:
        signature = re.search(r"\((.*)\)", str(text))
        assert signature
        return signature[1].split(", ")[1:], re.findall(r":param (\w+):", str(text))

    for corruption, defined, described in (("definition", 1, 0), ("documentation", 0, 1), ("both", 1, 1)):
        for item in make_task("docstring", n=20, corruption=corruption):
            (a, b), (c, d) = parts(item.clean), parts(item.corrupted)
            assert len(set(a[:3]) & set(c[:3])) == (0 if defined else 3) and a[3:] == c[3:]
            assert len(set(b) & set(d)) == (0 if described else 2)
            assert corruption == "documentation" or not set(c[:3]) & set(d) or corruption == "definition"
    for item in make_task("docstring", n=20, corruption="swap"):
        (a, b), (c, d) = parts(item.clean), parts(item.corrupted)
        assert c == [*a[:2], a[3], a[2], *a[4:]] and b == d and item.corrupted_right == (" " + a[3],)


def test_pronouns_follow_names() -> None:
    task = make_task("pronoun", n=120)
    assert task.counts("gender") == {"female": 60, "male": 60} and not set(WOMEN) & set(MEN)
    for item in task:
        assert item.right == ((" she",) if item.marked("name") in WOMEN else (" he",))
        assert item.corrupted_right == ((" she",) if item.marked("name", "corrupted") in WOMEN else (" he",))


@pytest.mark.parametrize("corruption", ["number", "attractor"])
def test_agreement_follows_the_subject_and_not_the_attractor(corruption: str) -> None:
    task = make_task("agreement", n=160, attractors=2, corruption=corruption)
    assert Counter(zip(task.labels("number"), task.labels("attractor"), strict=True)).total() == 160
    assert set(Counter(zip(task.labels("number"), task.labels("attractor"), strict=True)).values()) == {40}
    assert set(task.counts("verb").values()) == {40}
    for item in task:
        for side, answers in (("clean", item.right), ("corrupted", item.corrupted_right)):
            plural = str(item.marked("subject", side)).endswith("s")
            assert answers is not None and answers[0] in [pair[plural] for pair in VERBS]
        same = [item.marked(p) == item.marked(p, "corrupted") for p in ("subject", "attractor_1", "attractor_2")]
        assert same == ([False, True, True] if corruption == "number" else [True, False, False])
    every = make_task("agreement", n=4, answers="all", attractors=0, attractor="same")[0]
    assert len(every.right) == len(every.wrong) == len(VERBS)
    with pytest.raises(BadInput, match="attractors=0"):
        make_task("agreement", attractors=0, corruption="attractor")


def test_random_induction_repeats_and_its_corruptions_do_not() -> None:
    for corruption in ("answer", "unrepeated"):
        task = make_task("induction-random", n=48, length=13, vocabulary=(5, 60), first=0, corruption=corruption)
        assert set(task.counts("place").values()) == {4} and len(task.counts("place")) == 12
        for item in task:
            ids, place = item.clean, item.labels["place"]
            assert isinstance(ids, tuple) and isinstance(item.corrupted, tuple) and ids[0] == 0 and 0 not in ids[1:]
            copy = ids[1:14]
            assert len(set(copy)) == 13 and ids[14:] == copy[:place] and item.right == (copy[place],)
            assert item.marked("source") == (item.right[0],) and item.marked("previous_copy") == item.marked("END")
            assert item.marked("first_copy") == copy and item.marked("second_copy") == copy[:place]
            assert item.corrupted[14:] == ids[14:] and item.wrong[0] not in ids
            if corruption == "answer":
                assert [a == b for a, b in zip(ids, item.corrupted, strict=True)].count(False) == 1
                assert item.corrupted_right == item.wrong and item.corrupted[1 + place] == item.wrong[0]
            else:
                assert not set(item.corrupted[1:14]) & set(copy) and item.corrupted_right is None
    with pytest.raises(BadInput, match="at least 51 ids"):
        make_task("induction-random", vocabulary=(0, 40))


def test_natural_induction_asks_for_either_person_equally_often() -> None:
    task = make_task("induction-natural", n=100)
    assert task.counts("asked") == {1: 50, 2: 50} and set(task.counts("template").values()) == {20}
    for item in task:
        first, last = item.marked("first_mention"), item.marked("source")
        assert f"{first} {last}" in str(item.clean) and item.right == (f" {last}",)
        assert item.marked("second_mention") == first and item.wrong == (f" {item.marked('other_source')}",)
        assert item.marked("second_mention", "corrupted") == item.marked("other_mention")


def test_facts_are_of_the_tables_and_relations_are_even() -> None:
    task = make_task("facts", n=96, shots=1)
    assert set(task.counts("relation").values()) == {16}
    for item in task:
        table = dict(RELATIONS[item.labels["relation"]].pairs)
        assert item.right == (" " + table[item.marked("subject")],)
        assert item.wrong == (" " + table[item.marked("subject", "corrupted")],)
        assert str(item.right[0]).strip() not in re.findall(r"\w+", str(item.clean))
    for relation in RELATIONS.values():
        assert len({subject for subject, _ in relation.pairs}) == len(relation.pairs)
        assert all(one == one.strip() and one for pair in relation.pairs for one in pair)
    assert make_task("country-capital", n=3, pairs={"Xa": "Ya", "Xb": "Yb"}, shots=0)[0].right[0] in (" Ya", " Yb")
    with pytest.raises(BadInput, match="different objects"):
        make_task("country-capital", pairs={"Xa": "Ya"})
    with pytest.raises(BadInput, match="one relation"):
        make_task("facts", pairs={"Xa": "Ya"})


@pytest.mark.parametrize("letters", ["ABCD", "random"])
@pytest.mark.parametrize("corruption", ["fact", "order", "letters"])
def test_multiple_choice_has_one_choice_that_repeats_the_fact(letters: str, corruption: str) -> None:
    task = make_task("multiple-choice", n=80, letters=letters, corruption=corruption)
    assert set(task.counts("place").values()) == {20}
    for item in task:
        for text, answer in ((item.clean, item.right), (item.corrupted, item.corrupted_right)):
            color = re.findall(r"is (\w+)\.", str(text))[0]
            listed = {choice: letter for letter, choice in re.findall(r"^(\w)\. (\w+)$", str(text), flags=re.MULTILINE)}
            assert len(listed) == 4 == len(set(listed.values())) and answer == (" " + listed[color],)
        assert len(item.wrong) == 3
        assert corruption == "letters" or item.corrupted_right == item.wrong[:1]
        assert item.marked("right_letter") == str(item.right[0]).strip() and item.marked("right_choice") == item.marked(
            "color"
        )


def test_acronyms_have_different_letters() -> None:
    for corruption in ("third", "all"):
        for item in make_task("acronyms", n=50, corruption=corruption):
            words = [str(item.marked(f"W{n}")) for n in (1, 2, 3)]
            assert len({word[0] for word in words}) == 3 and set(words) <= set(WORDS)
            assert (item.marked("L1"), item.marked("L2"), item.right[0]) == tuple(word[0] for word in words)
            assert item.wrong[0] == str(item.marked("W3", "corrupted"))[0] and item.wrong[0] not in {
                w[0] for w in words
            }
    assert make_task("acronyms", n=1, form="spaced")[0].right[0].startswith(" ")  # pyright: ignore[reportAttributeAccessIssue]


def test_lists_hold_each_word_once() -> None:
    for words in (NAMES, COLORS, OBJECTS, WORDS):
        assert len(set(words)) == len(words)
    assert all(left != right for left, right in pairwise(sorted(NAMES)))
