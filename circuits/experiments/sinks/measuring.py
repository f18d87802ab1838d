"""What is measured of sinks: scores, anatomy, the same scores without the first token, and masking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import interp
from circuits.experiments.pieces import Pieces, arrays_of, table_of
from circuits.experiments.repeated import context_length, random_prompts
from circuits.units import Arrays
from interp.address import Head
from interp.errors import BadInput, HeadscopeError, Unsupported
from interp.results import HeadScores
from interp.scores.labels.causes import blinded
from interp.scores.prompts import ordinary_tokens, start_token
from interp.scores.sinks.sink_lives import secondary_sinks
from interp.stats import matched_random_sets

if TYPE_CHECKING:
    from circuits.experiments.sinks.config import SinksConfig
    from circuits.outcome import Workplace
    from interp.model.batch import Batch
    from interp.model.handle import Model

PRIMARY = ("sink", "sink_profile")
ANATOMY = ("sink_anatomy", "value_weighted_sink", "result_norm")  # not in every family: some hide q, k and v


@dataclass(frozen=True, eq=False)
class Material:
    """Prompts, in words, and the model they are for.

    Attributes:
        model: the handle.
        batch: the prompts; the span ``loss`` is what masking is judged on, where they are random tokens said twice.
        words: what they are.
        tokens: how long they are, from and to.
    """

    model: Model
    batch: Batch
    words: str
    tokens: tuple[int, int]


def material_for(model: Model, config: SinksConfig) -> Material:
    """The prompts that the settings ask for.

    Raises:
        BadInput: a model that reads no text, or texts without a tokenizer.
    """
    if model.default_stack != "text":
        raise BadInput(
            f"sinks: the model's own stack is {model.default_stack!r}; the experiment draws tokens for a text stack. "
            "Use interp.score(model, batch, ['sink', 'sink_anatomy'], stack=...) on inputs of your own."
        )
    if config.texts:
        if model.tokenizer is None:
            raise BadInput("texts= were given, and this model has no tokenizer; leave them out.")
        batch = interp.encode(model, list(config.texts))
        return Material(model, batch, f"{len(config.texts)} texts", (min(batch.lengths), max(batch.lengths)))
    start = int(start_token(model) is not None)
    room = (min(config.tokens, context_length(model)) - start) // 2
    segment = min(room, len(ordinary_tokens(model)) - start)
    prompts = random_prompts(model, n=config.n_prompts, segment=segment, seed=config.seed, purpose="sinks")
    batch = prompts.batch(model)
    words = (
        f"{len(prompts)} prompts of {'a start token, ' if start else ''}{segment} distinct random tokens and the same "
        f"again, drawn from seed {config.seed}"
    )
    return Material(model, batch, words, (batch.width, batch.width))


def measured(
    material: Material, config: SinksConfig, pieces: Pieces, place: Workplace, key: str
) -> tuple[dict[str, HeadScores], list[str]]:
    """``(tables, notes)``: scores of sinks, and those of ``config.compare`` as they are and without the first token.

    The latter are called ``"<score> without"``. A part of the anatomy that the model hides is left out, and a note says
    so.
    """
    tables: dict[str, HeadScores] = {}
    notes: list[str] = []
    with place.progress.stage("Score every head", 2 + len(ANATOMY)) as done:
        for sinks in (None, "first"):
            names = list(config.compare) if sinks else list(dict.fromkeys([*PRIMARY, *config.compare]))
            found = _piece(material, config, pieces, key, names, sinks)
            tables |= {f"{name} without" if sinks else name: table for name, table in found.items()}
            done()
        for name in ANATOMY:
            try:
                tables |= _piece(material, config, pieces, key, [name], None)
            except Unsupported as error:
                notes.append(f"{name} is left out: {error}")
            done()
    return tables, notes


def _piece(
    material: Material, config: SinksConfig, pieces: Pieces, key: str, names: Sequence[str], sinks: str | None
) -> dict[str, HeadScores]:
    found = pieces.arrays(f"scores/{sinks}/{','.join(names)}", key, lambda: _scores(material, config, names, sinks))
    tables = {}
    for number, name in enumerate(names):
        prefix = f"{number} "
        tables[name] = table_of({key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)})
    return tables


def _scores(material: Material, config: SinksConfig, names: Sequence[str], sinks: str | None) -> Arrays:
    found = interp.score(
        material.model, material.batch, list(names), exclude_sinks=sinks, batch_size=config.batch_size, seed=config.seed
    )
    return {
        f"{number} {part}": value for number, name in enumerate(names) for part, value in arrays_of(found[name]).items()
    }


def secondary(material: Material, place: Workplace) -> pd.DataFrame | None:
    """Tokens that become sinks for some layers, by kind, birth and lifetime; None where residuals are hidden."""
    with place.progress.stage("Look for secondary sinks", 1) as done:
        try:
            rows = secondary_sinks(material.model, material.batch).table()
        except HeadscopeError:
            rows = None
        done()
    if rows is None or not len(rows):
        return rows
    grouped = rows.groupby(["kind", "birth", "lifetime"], as_index=False)
    return grouped.agg(tokens=("token", "size"), alpha=("alpha", "mean"), norm=("norm ratio", "mean"))


@dataclass(frozen=True, eq=False)
class Masked:
    """Loss with heads forbidden to look at a token, minus the loss as it is.

    Attributes:
        alone: ``[prompt, layer, head]`` each head, first token.
        together: ``[prompt]`` the sink heads, first token.
        elsewhere: ``[place, prompt]`` the same heads, another place.
        random: ``[set]`` random sets of as many heads per layer, first token, means over prompts.
        every: ``[prompt]`` all heads, first token.
        loss: ``[prompt]`` the loss as it is.
        heads: the sink heads.
        places: the other places.
    """

    alone: np.ndarray
    together: np.ndarray
    elsewhere: np.ndarray
    random: np.ndarray
    every: np.ndarray
    loss: np.ndarray
    heads: tuple[Head, ...]
    places: tuple[int, ...]


def masked(
    material: Material, config: SinksConfig, sink_heads: Sequence[Head], pieces: Pieces, place: Workplace, key: str
) -> Masked:
    """What the first token is for: the loss without sight of it.

    Raises:
        Unsupported: attention cannot be edited in this model.
    """
    model, heads = material.model, list(material.model.heads())
    widths = [model.stack(None).n_heads(layer) for layer in range(model.stack(None).n_layers)]
    shortest = min(material.batch.lengths)
    places = tuple(range(1, min(9, shortest - 1)))
    sets = (
        matched_random_sets(sink_heads, widths, n_draws=config.random_sets, seed=config.seed).sets if sink_heads else ()
    )
    variants = [blinded([head], 0) for head in heads]
    variants += [blinded(sink_heads, 0)] if sink_heads else []
    variants += [blinded(sink_heads, other) for other in places] if sink_heads else []
    variants += [blinded(chosen, 0) for chosen in sets] + [blinded(heads, 0)]

    def swept() -> Arrays:
        with place.progress.stage("Loss without sight of the first token", len(variants)) as done:
            found = interp.sweep(
                model,
                material.batch,
                variants,
                interp.loss,
                batch_size=config.batch_size,
                progress=lambda count: [done() for _ in range(count)],
            )
        plain = found.unedited.double().cpu().numpy()
        return {"change": (found.values.double().cpu() - found.unedited.double().cpu()).numpy(), "loss": plain}

    named = ",".join(map(str, sink_heads))
    arrays = pieces.arrays(f"masking/{config.random_sets}/{named}", key, swept)
    change, n, found = arrays["change"], len(heads), bool(sink_heads)
    alone = np.full((change.shape[1], len(widths), max(widths)), np.nan)
    for number, head in enumerate(heads):
        alone[:, head.layer, head.index] = change[number]
    first = n + found
    rest = first + found * len(places)
    return Masked(
        alone=alone,
        together=change[n] if found else np.full(change.shape[1], np.nan),
        elsewhere=change[first:rest],
        random=change[rest : rest + len(sets)].mean(1),
        every=change[-1],
        loss=arrays["loss"],
        heads=tuple(sink_heads),
        places=places if found else (),
    )


def uniform_share(tokens: int) -> float:
    """What the first token gets from uniform causal rows on average: ``(1 + 1/2 + ... + 1/T) / T``.

    Example:
        >>> round(uniform_share(20), 2)
        0.18
    """
    return sum(1 / row for row in range(1, tokens + 1)) / tokens
