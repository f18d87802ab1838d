"""Every score that applies, with its null: each is asked on two prompts first, and what refuses is listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import interp
from circuits.experiments.atlas.prompts import Material
from circuits.experiments.pieces import Pieces, arrays_of, table_of
from circuits.units import Arrays
from interp.errors import BadInput, HeadscopeError
from interp.model.inputs import context_limit
from interp.results import HeadScores
from interp.scores import SCORES

if TYPE_CHECKING:
    from circuits.experiments.atlas.config import AtlasConfig
    from circuits.outcome import Workplace
    from interp.model.handle import Model

PROBED = 2  # prompts that a score is asked on first
NEW_TOKENS = 4  # generated, where a score asks for text


@dataclass(frozen=True, eq=False)
class Scored:
    """What every score says.

    Attributes:
        tables: score -> its table.
        nulls: score -> the same on null prompts, one sample per draw; none for scores of weights, and none for those
            with forwards of their own unless they are asked for.
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

    Raises:
        BadInput: no score applies.
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
                for kind, made in (("table", tables), ("null", nulls)):
                    if part := _part(found, f"{kind} {number} "):
                        made[name] = table_of(part)
            refused |= unpacked(found) if "json" in found else {}
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
            interp.score(model, few, _asked(model, material, [name]), exclude_sinks=_sinks(config), seed=config.seed)
        except HeadscopeError as error:
            refused[name] = str(error)
        done()
    if len(refused) == len(names):
        reasons = " ".join(f"{name}: {why}" for name, why in list(refused.items())[:3])
        raise BadInput(f"No score applies to this model and these prompts. {reasons}")
    return refused


def _asked(model: Model, material: Material, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores with options: what is generated must fit the context behind the prompts."""
    room = max(1, (context_limit(model) or 2**20) - material.batch.width) if material.batch.ids is not None else 1
    return {name: {"max_new_tokens": min(NEW_TOKENS, room)} if name == "retrieval_generated" else {} for name in names}


def _measured(model: Model, material: Material, config: AtlasConfig, names: Sequence[str]) -> Arrays:
    """Tables and nulls of some scores; where one of them refuses after all, each by itself, with what it says."""
    shared = all(SCORES[name].needs in ("pass", "layers") for name in names)
    null = config.null_prompts if material.batch.ids is not None and (shared or config.null_all) else None
    try:
        return _packed_tables(_scores(model, material, config, names, null), names)
    except HeadscopeError:
        tables, nulls, said = {}, {}, {}
        for name in names:
            for tried in dict.fromkeys([null, None]):
                try:
                    found = _scores(model, material, config, [name], tried)
                except HeadscopeError as error:
                    said[name] = str(error)
                else:
                    tables |= found
                    nulls |= found.nulls
                    break
        made = _packed_tables(interp.Scores(tables, None, nulls), names)
        return {**made, **packed({name: why for name, why in said.items() if name not in tables})}


def _scores(
    model: Model, material: Material, config: AtlasConfig, names: Sequence[str], null: str | None
) -> interp.Scores:
    return interp.score(
        model,
        material.batch,
        _asked(model, material, names),
        exclude_sinks=_sinks(config),
        null=null,  # type: ignore[arg-type]
        draws=config.null_draws,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _packed_tables(found: interp.Scores, names: Sequence[str]) -> Arrays:
    arrays: Arrays = {}
    for number, name in enumerate(names):
        for kind, tables in (("table", found), ("null", found.nulls)):
            if name in tables:
                arrays |= {f"{kind} {number} {part}": value for part, value in arrays_of(tables[name]).items()}
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
