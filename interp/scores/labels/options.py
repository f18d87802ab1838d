"""Pattern tests of choices that stand in the prompts given: multiple choice (spans ``option 0`` ...), yes or no."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import BadInput
from interp.model.batch import Batch
from interp.scores.ask import Ask
from interp.scores.labels.answers import read_rows
from interp.scores.labels.masses import ColumnMasses
from interp.scores.labels.reading import PatternReading, Setup, mean_over_prompts, names_of
from interp.scores.writes.negative import candidates_of, negative_attention_score

_ORDERS = 199  # exchanges of options: they cost no forward


def constant(setup: Setup) -> PatternReading:
    """``n min_k m_k`` of the masses m on n options, from the answer's row: 1 if all of it lies evenly on them.

    The null takes as many other keys for each option, drawn at random among those before the row, the first left out.
    """
    batch, options = setup.prompts, _options(setup)
    count = options.shape[-1]
    generator = setup.generator()
    drawn = [_other_keys(batch, options, generator, setup.name) for _ in range(setup.draws)]
    columns = torch.cat([options, *drawn], dim=-1)

    def least(masses: Tensor) -> Tensor:
        return count * masses.unflatten(-1, (setup.draws + 1, count)).amin(-1)

    counted = read_rows(batch)[..., None].expand(-1, -1, setup.draws + 1)
    found = setup.read(
        batch,
        lambda ask, some: ColumnMasses(ask, columns[some].float(), counted[some], bins=setup.draws + 1, combine=least),
    )
    null = np.moveaxis(mean_over_prompts(found[..., 1:]), -1, 0)
    return PatternReading(found[..., 0], null, setup.labels)


def single_letter(setup: Setup) -> PatternReading:
    """Mass on the option that a head favours over all prompts minus the mean over options, from the answer's row.

    The null exchanges the options of each prompt at random before the favourite is chosen.
    """
    masses = _option_masses(setup)
    above = masses - masses.mean(-1, keepdims=True)
    generator = np.random.default_rng(setup.seed)
    best = np.nan_to_num(mean_over_prompts(above), nan=-np.inf).argmax(-1)
    own = np.take_along_axis(above, best[None, ..., None], -1)[..., 0]
    null = [mean_over_prompts(_exchanged(above, generator)).max(-1) for _ in range(_ORDERS)]
    favourites = np.array([f"option {n}" for n in range(masses.shape[-1])], dtype=object)[best]
    return PatternReading(own, np.stack(null), setup.labels, places=favourites)


def correct_letter(setup: Setup) -> PatternReading:
    """Mass on the right option minus the mean of the others, from the answer's row.

    The right option is the one that holds the right answer's token. The null takes an option drawn at random for the
    right one of each prompt.
    """
    batch, options = setup.prompts, _options(setup)
    masses = _option_masses(setup)
    right = _right_option(setup.name, batch, options)
    count = masses.shape[-1]
    lead = (count * masses - masses.sum(-1, keepdims=True)) / (count - 1)  # mass minus the mean of the others
    rows = np.arange(len(right))
    generator = np.random.default_rng(setup.seed)
    drawn = [generator.integers(0, count, len(right)) for _ in range(_ORDERS)]
    null = np.stack([mean_over_prompts(lead[rows, :, :, one]) for one in drawn])
    return PatternReading(lead[rows, :, :, right], null, setup.labels)


def negative(setup: Setup) -> PatternReading:
    """The negative attention score of the spans ``yes`` and ``no``, summed over the rows behind both.

    Exchanging the two in a prompt changes the score's sign and nothing else: the null exchanges them in prompts drawn
    at random.
    """
    batch = setup.prompts
    columns, behind = candidates_of(_whole(setup, batch), "yes", "no")
    numbers = (behind & batch.mask).sum(-1).cpu().numpy()

    def score(masses: Tensor) -> Tensor:
        return negative_attention_score(masses[..., 0], masses[..., 1]).unsqueeze(-1)

    found = setup.read(
        batch,
        lambda ask, some: ColumnMasses(ask, columns[some], behind[some], bins=1, combine=score),
    )
    own = found[..., 0] * numbers[:, None, None]
    signs = np.random.default_rng(setup.seed).choice([-1.0, 1.0], (_ORDERS, len(batch)))
    null = np.stack([mean_over_prompts(own * one[:, None, None]) for one in signs])
    return PatternReading(own, null, setup.labels)


def _option_masses(setup: Setup) -> Float[np.ndarray, "prompt layer head option"]:
    batch, options = setup.prompts, _options(setup)
    rows = read_rows(batch)
    return setup.read(batch, lambda ask, some: ColumnMasses(ask, options[some].float(), _each(rows, options)[some]))


def _each(rows: Bool[Tensor, "batch pos"], options: Tensor) -> Bool[Tensor, "batch pos option"]:
    return rows[..., None].expand(-1, -1, options.shape[-1])


def _options(setup: Setup) -> Bool[Tensor, "batch pos option"]:
    """``[batch, pos, option]`` the spans ``option 0``, ``option 1`` ... .

    Raises:
        BadInput: fewer than two, or two that share a token.
    """
    batch = setup.prompts
    names = names_of(batch, "option")
    if len(names) < 2:  # noqa: PLR2004 - a choice
        raise BadInput(f"{setup.name}: {len(names)} spans are named 'option 0', 'option 1' ...; name two at least.")
    whole = _whole(setup, batch)
    options = torch.stack([whole.columns(name, name) for name in names], dim=-1)
    if bool((options.sum(-1) > 1).any()):
        raise BadInput(f"{setup.name}: two options share a token; the spans of options must not overlap.")
    return options


def _whole(setup: Setup, batch: Batch) -> Ask:
    return Ask(setup.name, setup.model, batch, setup.model.stack(None))


def _other_keys(
    batch: Batch, options: Bool[Tensor, "batch pos option"], generator: torch.Generator, name: str
) -> Bool[Tensor, "batch pos option"]:
    """As many keys for each option as it has tokens, drawn before the answer's row, without options and first token."""
    made = torch.zeros_like(options)
    sizes = options.sum(1)
    for row in range(len(batch)):
        own = batch.mask[row].nonzero().flatten()
        end = int(batch.read_at[row])
        free = [place for place in own[1:].tolist() if place < end and not bool(options[row, place].any())]
        if len(free) < int(sizes[row].sum()):
            raise BadInput(
                f"{name}: prompt {row} has {len(free)} tokens beside its options, and its null draws "
                f"{int(sizes[row].sum())} of them; give longer prompts."
            )
        order = torch.randperm(len(free), generator=generator).tolist()
        for option, size in enumerate(sizes[row].tolist()):
            for _ in range(size):
                made[row, free[order.pop()], option] = True
    return made


def _right_option(name: str, batch: Batch, options: Bool[Tensor, "batch pos option"]) -> np.ndarray:
    """``[prompt]`` the option that holds the right answer's token."""
    assert batch.ids is not None and batch.answers is not None
    held = (batch.ids[:, :, None] == batch.answers[:, :1, None].to(batch.ids.device)) & options
    found = held.any(1)
    wrong = (found.sum(-1) != 1).nonzero().flatten().tolist()
    if wrong:
        raise BadInput(
            f"{name}: in prompts {wrong[:5]} not one option alone holds the right answer's token; the spans 'option 0' "
            "... must be the tokens that are answered with."
        )
    return found.int().argmax(-1).cpu().numpy()


def _exchanged(
    masses: Float[np.ndarray, "prompt layer head option"], generator: np.random.Generator
) -> Float[np.ndarray, "prompt layer head option"]:
    """The options of each prompt in a random order, the same for all heads."""
    orders = np.argsort(generator.random((len(masses), masses.shape[-1])), axis=-1)
    return np.take_along_axis(masses, orders[:, None, None, :], -1)
