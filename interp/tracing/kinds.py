"""``TraceMethod``: what a way of tracing is, as data. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Needs = Literal["pass", "gradient", "edits"]


@dataclass(frozen=True)
class TraceMethod:
    """One way of saying what a target token owes to each source token.

    Attributes:
        summary: what it is, in one line.
        value: what one number means.
        range: smallest and largest possible value.
        source: paper and year.
        function: ``module:function`` that makes it: ``function(ask, **options) -> Traced``.
        needs: ``pass`` one forward; ``gradient`` backward passes of a metric; ``edits`` forwards of changed prompts.
        signed: whether a number below 0 speaks against the answer.
        layered: whether it has a value at the top of each layer.
        targets: ``rows`` any token of the stack; ``answer`` the metric alone, whose one target is where the answer is
            read.
        stochastic: whether each row is a distribution over the sources (non-negative, summing to at most 1).
        forwards: how many forwards and backwards it runs, in words.
        options: its own options, name -> what it means and its default.
    """

    summary: str
    value: str
    range: tuple[float, float]
    source: str
    function: str
    needs: Needs
    signed: bool = False
    layered: bool = False
    targets: Literal["rows", "answer"] = "rows"
    stochastic: bool = False
    forwards: str = "one forward"
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        return self.summary
