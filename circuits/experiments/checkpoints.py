"""Where a model keeps the checkpoints of its training."""

from __future__ import annotations

import re
from pathlib import Path

from interp import zoo

_NAMED_BY_STEP = re.compile(r"(?:step|checkpoint)[-_]?0*(\d+)")


def checkpoints_of(model: str) -> list[tuple[int, Path]]:
    """(training step, folder) of each checkpoint of a model, first to last; empty where it has none.

    Args:
        model: a zoo name; or a folder, whose checkpoints are folders ``step-N`` or ``checkpoint-N`` in it or in
            ``checkpoints/`` inside it. A hub id has none.
    """
    if model in zoo.ZOO:
        return [(step, path) for step, path in zoo.checkpoints(model)]
    folder = Path(model).expanduser()
    found = [
        (int(named.group(1)), place)
        for place in [*folder.glob("*/"), *folder.glob("checkpoints/*/")]
        if (named := _NAMED_BY_STEP.fullmatch(place.name)) and (place / "config.json").is_file()
    ]
    return sorted(found)
