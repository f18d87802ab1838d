"""What the command says of attribution methods and of ways of tracing."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest
from typer.testing import CliRunner

from circuits.cli import app
from circuits.methods import METHODS as ATTRIBUTION
from interp.tracing import METHODS as TRACES


def call(*words: str) -> str:
    """Standard output of the command, in this process."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_of_methods_holds_the_ways_of_tracing_beside_those_of_attribution() -> None:
    rows = json.loads(call("list", "methods", "--json"))
    assert {row["name"] for row in rows if row["kind"] == "method"} == set(ATTRIBUTION)
    assert {row["name"] for row in rows if row["kind"] == "trace"} == set(TRACES)
    for row in rows:
        if row["kind"] == "trace":
            entry = TRACES[row["name"]]
            assert (row["line"], row["value"], row["cost"], row["source"]) == (
                entry.summary,
                entry.value,
                entry.forwards,
                entry.source,
            )
    traces = json.loads(call("list", "traces", "--json"))
    assert [row["name"] for row in traces] == list(TRACES)


@pytest.mark.parametrize("name", sorted(TRACES))
def test_show_prints_the_whole_card_of_a_way_of_tracing(name: str) -> None:
    entry = TRACES[name]
    about = json.loads(call("show", name, "--kind", "trace", "--json"))
    module, function = entry.function.split(":")
    docstring = inspect.getdoc(getattr(importlib.import_module(module), function))
    assert docstring and about["definition"] == docstring and about["options"] == dict(entry.options)
    out = " ".join(call("show", name, "--kind", "trace").split())
    for words in (entry.summary, entry.value, entry.source, entry.forwards, *entry.options, *entry.options.values()):
        assert " ".join(words.split()) in out, words


def test_a_name_that_both_have_is_shown_of_each() -> None:
    for name in set(TRACES) & set(ATTRIBUTION):
        assert call("show", name).startswith(f"{name} (method): ")
        assert f"Also a trace: circuits show {name} --kind trace" in call("show", name)
        assert call("show", name, "--kind", "trace").startswith(f"{name} (trace): ")
    assert call("show", "rollout").startswith("rollout (trace): ")


def test_show_prints_the_card_of_an_attribution_method() -> None:
    about = json.loads(call("show", "patch", "--kind", "method", "--json"))
    assert about["needs"] == "source" and about["gives"].startswith("effect, exact") and about["definition"]
    assert call("show", "causal_head_gating").startswith("causal_head_gating (method): ")
