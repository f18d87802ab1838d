"""What the command says of an attribution method and of a way of tracing; read from data and source."""

from __future__ import annotations

from typing import Any

from circuits.methods import GATES
from circuits.score_card import docstring, range_of
from interp.attribution.methods import METHODS
from interp.tracing import METHODS as TRACES

KINDS = {
    "exact": "the metric is measured under the edit",
    "estimate": "from gradients, decompositions or samples",
    "gates": "learned",
}
NEEDS = {
    "pass": "one forward",
    "gradient": "a backward pass of a metric",
    "edits": "forwards of changed prompts",
}
TARGETS = {"rows": "any token of the stack", "answer": "where the answer is read, by its metric"}


def method_facts(name: str) -> dict[str, str]:
    """Quantity, kind, cost and source of an attribution method, each in a few words; nothing of a fit of gates."""
    if name in GATES:
        return {}
    entry = METHODS[name]
    return {"gives": f"{entry.quantity}, {entry.kind}", "forwards": entry.cost, "source": entry.source}


def method_card(name: str) -> dict[str, Any]:
    """Everything that is known of an attribution method, as plain values."""
    if name in GATES:
        return {"kind": "method", "name": name, "line": GATES[name]}
    entry = METHODS[name]
    return {
        "kind": "method",
        "name": name,
        "line": entry.summary,
        "gives": f"{entry.quantity}, {entry.kind}: {KINDS[entry.kind]}",
        "sites": ", ".join(entry.sites),
        "by": ", ".join(entry.by),
        "needs": entry.needs or "",
        "forwards": f"{entry.cost}, over the batch; H heads of one stack, K positions",
        "source": entry.source,
        "options": dict(entry.options),
        "definition": docstring(entry.function),
    }


def trace_facts(name: str) -> dict[str, str]:
    """What one number of a way of tracing means, its range, cost and source."""
    entry = TRACES[name]
    return {
        "value": entry.value,
        "range": range_of(entry),
        "cost": entry.forwards,
        "source": entry.source,
    }


def trace_card(name: str) -> dict[str, Any]:
    """Everything that is known of a way of tracing; ``definition`` is the docstring of its function."""
    entry = TRACES[name]
    return {
        "kind": "trace",
        "name": name,
        "line": entry.summary,
        "value": entry.value,
        "range": range_of(entry),
        "source": entry.source,
        "needs": f"{entry.needs}: {NEEDS[entry.needs]}",
        "cost": entry.forwards,
        "targets": f"{entry.targets}: {TARGETS[entry.targets]}",
        "gives": _gives(name),
        "options": dict(entry.options),
        "definition": docstring(entry.function),
    }


def _gives(name: str) -> str:
    entry = TRACES[name]
    words = ["signed numbers" if entry.signed else "numbers without a sign"]
    words += ["each row a distribution over the sources"] * entry.stochastic
    words += ["a value at the top of each layer"] * entry.layered
    return "; ".join(words)
