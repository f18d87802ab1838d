"""How the two trained models of the zoo are made: every number that their training depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One training recipe; losses are in nats, lengths in tokens.

    ``initialisation`` is ``"composition"`` (one path from head 0.0 to head 1.0 is laid, untuned) or ``"mimetic"``
    (query and key weights alike in every head). ``planting`` is the weight of the attention supervision, 0 for none.
    """

    name: str
    initialisation: str
    planting: float
    steps: int
    warmup: int
    learning_rate: float
    weight_decay: float
    unpredictable_weight: float = 0.05
    batch: int = 8
    context: int = 128
    width: int = 64
    heads: int = 4
    layers: int = 2
    shortest_segment: int = 4
    longest_segment: int = 63
    evaluate_every: int = 25
    checkpoints: tuple[int, ...] = ()


RECIPES = {
    "induction": Recipe(
        name="induction",
        initialisation="composition",
        planting=0.0,
        steps=4000,
        warmup=300,
        learning_rate=1e-3,
        weight_decay=0.0,
        checkpoints=(0, 300, 500, 600, 700, 800, 900, 1000, 1250, 1750, 2500, 4000),
    ),
    "induction-planted": Recipe(
        name="induction-planted",
        initialisation="mimetic",
        planting=0.3,
        steps=1800,
        warmup=50,
        learning_rate=1.5e-3,
        weight_decay=0.01,
    ),
}
