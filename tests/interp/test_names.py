"""Lookup by name: the entry, or a refusal that helps."""

from __future__ import annotations

import pytest

from interp.errors import BadInput, UnknownName
from interp.names import lookup, unknown

LETTERS = {"alpha": 1, "beta": 2, "gamma": 3}


def test_a_known_name_gives_its_entry() -> None:
    assert [lookup(name, LETTERS, "letter") for name in ("alpha", "gamma")] == [1, 3]


def test_an_unknown_name_gets_near_matches_and_the_full_list() -> None:
    with pytest.raises(UnknownName) as caught:
        lookup("alhpa", LETTERS, "letter")
    assert str(caught.value) == "Unknown letter 'alhpa'. Did you mean 'alpha'? Known: alpha, beta, gamma."
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, BadInput)


def test_a_name_far_from_all_gets_the_list_alone() -> None:
    assert unknown("zzzz", LETTERS, "letter") == "Unknown letter 'zzzz'. Known: alpha, beta, gamma."


def test_an_empty_registry_says_none() -> None:
    assert unknown("a", {}, "letter") == "Unknown letter 'a'. Known: none."


def test_what_is_no_text_is_shown_as_it_came() -> None:
    assert unknown(None, LETTERS, "letter").startswith("Unknown letter None.")
