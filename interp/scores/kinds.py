"""``Score``: what a head score is, as data. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Needs = Literal["weights", "pass", "layers", "second input", "generation", "gradient"]
Cost = Literal["none", "linear", "elementwise", "select", "sort"]
Where = Literal["any", "text", "causal", "vision"]
Shape = Literal["head", "profile", "layer"]


@dataclass(frozen=True)
class Score:
    """One head score.

    Attributes:
        summary: what it is, in one line.
        direction: what a large value means.
        range: smallest and largest possible value.
        source: paper and year.
        needs: ``weights`` no forward; ``pass`` one forward of the prompts; ``layers`` the maps of two layers side by
            side; ``second input`` another forward of changed prompts; ``generation``; ``gradient``.
        cost: of one row of a map: ``linear`` (one matrix product with a few columns, or a few entries), ``elementwise``
            (every entry), ``select`` (the largest ones), ``sort``; ``none`` without maps.
        function: ``module:function`` that makes it: ``function(ask, **options)``.
        counts: what it does with BOS, padding and a prompt's first row.
        where: stacks on which it has meaning: ``any``; ``text`` (token ids); ``causal``; ``vision`` (a grid of
            patches).
        shape: ``head`` one number per head; ``profile`` several, with labels; ``layer`` one per layer, which every head
            of the layer shows.
        prompts: ``given`` the batch's own, else ``module:function`` that draws them, ``function(ask) -> Batch``.
        options: its own options, name -> what it means and its default.
        sense: +1 where a larger value is meant to say that the head helps, 0 else.
        forwards: how many forwards of its own it runs, for the plan; empty where it shares one pass, or needs none.
        whole: its value is of all prompts together, so that the batch is never taken apart.
    """

    summary: str
    direction: str
    range: tuple[float, float]
    source: str
    needs: Needs
    cost: Cost
    function: str
    counts: str
    where: Where = "any"
    shape: Shape = "head"
    prompts: str = "given"
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sense: int = 0
    forwards: str = ""
    whole: bool = False

    def __str__(self) -> str:
        return self.summary
