"""Every score that applies, with its null: each is asked on two prompts first, and what refuses is listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import interp
from circuits.experiments.atlas.prompts import Material
from circuits.experiments.pieces import Pieces, arrays_of, table_of
from circuits.units import Arrays
from interp.errors import HeadscopeError
from interp.results import HeadScores
from interp.scores import SCORES

if TYPE_CHECKING:
    from circuits.experiments.atlas.config import AtlasConfig
    from circuits.outcome import Workplace
    from interp.model.handle import Model

PROBED = 2  # prompts that a score is asked on first


@dataclass(frozen=True, eq=False)
class Scored:
    """What every score says.

    Attributes:
        tables: score -> its table.
        nulls: score -> the same on null prompts, one sample per draw; none for scores of weights.
        refused: score -> why it has no meaning here.
    """

    tables: Mapping[str, HeadScores]
    nulls: Mapping[str, HeadScores]
    refused: Mapping[str, str]


def scored(model: Model, material: Material, config: AtlasConfig, pieces: Pieces, place: Workplace, key: str) -> Scored:
    """Every score asked for that applies to the model and the prompts.

    Args:
        model: the handle.
        material: the prompts.
        config: the settings.
        pieces: where finished work lies.
        place: for progress.
        key: fingerprint of the prompts.
    """
    names = config.scores or tuple(SCORES)
    with place.progress.stage("Which scores apply", len(names)) as done:
        asked = pieces.arrays("refused", key, lambda: packed(_refused(model, material, config, names, done)))
    refused: dict[str, str] = unpacked(asked)
    groups: dict[str, list[str]] = {}
    for name in names:
        if name not in refused:
            groups.setdefault(SCORES[name].needs, []).append(name)
    tables: dict[str, HeadScores] = {}
    nulls: dict[str, HeadScores] = {}
    with place.progress.stage("Score every head", len(groups)) as done:
        for needs, members in groups.items():
            found = pieces.arrays(
                f"scores/{needs}/{','.join(members)}",
                key,
                lambda members=members: _measured(model, material, config, members),
            )
            for number, name in enumerate(members):
                tables[name] = table_of(_part(found, f"table {number} "))
                if null := _part(found, f"null {number} "):
                    nulls[name] = table_of(null)
            done()
    order = [name for name in names if name in tables]
    return Scored({name: tables[name] for name in order}, nulls, refused)


def _refused(
    model: Model, material: Material, config: AtlasConfig, names: tuple[str, ...], done: Callable[[], Any]
) -> dict[str, str]:
    few = material.batch.select(list(range(min(PROBED, len(material.batch)))))
    refused = {}
    for name in names:
        try:
            interp.score(model, few, name, exclude_sinks=_sinks(config), seed=config.seed)
        except HeadscopeError as error:
            refused[name] = str(error)
        done()
    return refused


def _measured(model: Model, material: Material, config: AtlasConfig, names: list[str]) -> Arrays:
    tokens = material.batch.ids is not None
    found = interp.score(
        model,
        material.batch,
        names,
        exclude_sinks=_sinks(config),
        null=config.null if tokens else None,
        draws=config.null_draws,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    arrays: Arrays = {}
    for number, name in enumerate(names):
        arrays |= {f"table {number} {part}": value for part, value in arrays_of(found[name]).items()}
        if name in found.nulls:
            arrays |= {f"null {number} {part}": value for part, value in arrays_of(found.nulls[name]).items()}
    return arrays


def _sinks(config: AtlasConfig) -> str | None:
    return "first" if config.exclude_sinks else None


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def packed(content: object) -> Arrays:
    """Anything JSON can hold as an array, for a unit."""
    return {"json": np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)}


def unpacked(arrays: Arrays) -> Any:
    """What :func:`packed` packed."""
    return json.loads(arrays["json"].tobytes())
