"""How the two needle models of the zoo are made: every number that their training depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One level of the curriculum: rows of ``length`` tokens, ``batch`` of them a step.

    Training goes up a level once answers and copies are both right to ``NeedleRecipe.go_up_at`` there and
    ``least_steps`` were done, or after ``most_steps``; the last level takes ``most_steps`` with the learning rate
    falling to its end.
    """

    length: int
    batch: int
    most_steps: int
    least_steps: int = 50


@dataclass(frozen=True)
class NeedleRecipe:
    """One training recipe; lengths are in tokens.

    ``initialisation`` is ``"composition"`` (one path from head 0.0 to the first key-value group of layer 1 is laid) or
    ``"mimetic"`` (query and key weights alike in every head of layers 1 and 2). ``planting`` is the weight of the
    attention supervision in the first level, 0 for none.
    """

    name: str
    initialisation: str
    planting: float
    levels: tuple[Level, ...]
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    warmup: int = 100
    filler_weight: float = 0.1
    filler_share: float = 0.1
    go_up_at: float = 0.95
    evaluate_every: int = 25
    layers: int = 3
    width: int = 128
    heads: int = 8
    kv_heads: int = 4
    d_head: int = 32
    hidden: int = 256
    context: int = 2048


NEEDLE_RECIPES = {
    "needle": NeedleRecipe(
        name="needle",
        initialisation="composition",
        planting=0.0,
        levels=(Level(64, 24, 1000), Level(256, 6, 300), Level(1024, 2, 600)),
    ),
    "needle-planted": NeedleRecipe(
        name="needle-planted",
        initialisation="mimetic",
        planting=0.1,
        levels=(Level(64, 24, 800), Level(256, 6, 300), Level(1024, 2, 600)),
    ),
}
