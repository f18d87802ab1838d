"""The null of "this head matters": right and wrong answers reassigned, over prompts or to other tokens."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.metrics import answer_logits, logit_difference
from interp.model.batch import Batch
from interp.model.run import Metric
from interp.model.sweep import metric_values

FEWEST_DRAWS = 19  # with fewer reassignments than this no p-value can reach 1/20
FEWEST_TOKENS = 20


@dataclass(frozen=True, eq=False)
class Reassignments:
    """Answers given to prompts anew.

    Attributes:
        rows: ``[row, k]`` every set of answers (right first, -1 where fewer) that some prompt is given.
        own: ``[prompt]`` the row that a prompt has by itself.
        drawn: ``[draw, prompt]`` the row that a prompt has in each reassignment.
        exhaustive: whether ``drawn`` holds every reassignment that differs from the prompts' own.
        words: what was reassigned, for sentences.
    """

    rows: Int[Tensor, "row k"]
    own: Int[np.ndarray, " prompt"]
    drawn: Int[np.ndarray, "draw prompt"]
    exhaustive: bool
    words: str

    def means(
        self, values: Float[np.ndarray, "head prompt row"]
    ) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, "draw head"]]:
        """``(own, reassigned)``: the means over prompts with their own answers, and with those of each draw.

        Args:
            values: one number per head, prompt and set of answers.
        """
        picks = np.concatenate([self.own[None], self.drawn])
        sums = np.zeros((len(picks), values.shape[0]))
        for prompt in range(values.shape[1]):
            sums += values[:, prompt, :].T[picks[:, prompt]]
        means = sums / values.shape[1]
        return means[0], means[1:]


def over_prompts(
    answers: Int[Tensor, "prompt k"], *, draws: int, seed: int = 0, cluster: Sequence[object] | None = None
) -> Reassignments:
    """The answers of every prompt given to another prompt, at random: what is independent of the prompts stays.

    With ``cluster`` whole clusters exchange their answers: those with one set of answers each with any other, otherwise
    those of equal size. All distinct reassignments are taken where there are at most ``draws``.

    Args:
        answers: ``[prompt, k]`` ids, the right one first.
        draws: how many to draw.
        seed: of the draw.
        cluster: one label per prompt.

    Example:
        >>> drawn = over_prompts(torch.tensor([[1, 2], [1, 2], [3, 4]]), draws=10)
        >>> drawn.drawn.tolist(), drawn.exhaustive
        ([[0, 1, 0], [1, 0, 0]], True)
    """
    rows, inverse = torch.unique(answers.cpu(), dim=0, return_inverse=True)
    own = inverse.numpy()
    blocks = _blocks(own, cluster)
    alike = all(len(set(own[block].tolist())) == 1 for block in blocks)
    strata: dict[int, list[np.ndarray]] = {}
    for block in blocks:
        strata.setdefault(0 if alike else len(block), []).append(block)
    contents = [[tuple(own[block].tolist())[: 1 if alike else None] for block in group] for group in strata.values()]
    n_possible = math.prod(_arrangements(Counter(content)) for content in contents)
    exhaustive = n_possible - 1 <= draws
    made = _every(contents) if exhaustive else _some(contents, draws, seed)
    drawn = np.array([_spread(list(strata.values()), one, len(own)) for one in made], dtype=int).reshape(-1, len(own))
    if exhaustive:
        drawn = drawn[(drawn != own).any(1)]
    among = f"{len(own)} prompts" if cluster is None else f"{len(blocks)} clusters of prompts"
    return Reassignments(rows, own, drawn, exhaustive, f"right and wrong answers reassigned over {among}")


def to_other_tokens(
    batch: Batch, vocabulary: Sequence[int], *, draws: int, seed: int = 0, special: Sequence[int] = ()
) -> Reassignments:
    """Every answer replaced by a random other token, the same one in all prompts that share the answer.

    A token that occurs in the prompts is replaced by one that does, and one that does not by one that does not, as long
    as there are at least 20 such tokens; special tokens and answers of the batch are never drawn.

    Args:
        batch: the prompts, with answers.
        vocabulary: the token ids to draw from.
        draws: how many to draw.
        seed: of the draw.
        special: ids that are never drawn.

    Raises:
        BadInput: fewer than 20 tokens to draw from.
    """
    assert batch.answers is not None
    rows, inverse = torch.unique(batch.answers.cpu(), dim=0, return_inverse=True)
    answers = [token for token in torch.unique(rows).tolist() if token >= 0]
    free = sorted(set(vocabulary) - set(special) - set(answers))
    if len(free) < max(FEWEST_TOKENS, 2 * len(answers)):
        raise BadInput(
            f"claims(null='vocabulary'): {len(free)} tokens to draw other answers from; give pool= at least "
            f"{max(FEWEST_TOKENS, 2 * len(answers))} token ids that are neither special nor answers."
        )
    present = set() if batch.ids is None else set(batch.ids[batch.mask].tolist())
    kinds = {kind: [token for token in free if (token in present) == kind] for kind in (True, False)}
    generator = np.random.default_rng(seed)
    groups = {kind: [token for token in answers if (token in present) == kind] for kind in (True, False)}
    enough = all(len(kinds[kind]) >= max(FEWEST_TOKENS, 2 * len(groups[kind])) for kind in groups if groups[kind])
    drawn_rows = []
    for _ in range(draws):
        exchange = {-1: -1}
        for wanted, source in [(groups[kind], kinds[kind]) for kind in groups] if enough else [(answers, free)]:
            exchange |= dict(zip(wanted, generator.choice(source, len(wanted), replace=False), strict=True))
        drawn_rows.append([[exchange[token] for token in row] for row in rows.tolist()])
    own = inverse.numpy()
    every = torch.cat([rows, torch.tensor(np.array(drawn_rows)).flatten(0, 1)])
    drawn = own[None] + len(rows) * np.arange(1, draws + 1)[:, None]
    return Reassignments(every, own, drawn, False, "the answers replaced by random other tokens")


def metric_of_rows(metric: Metric, rows: Int[Tensor, "row k"]) -> Metric:
    """A metric ``[batch, row]``: what ``metric`` gives when every prompt has the answers of a row.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, [[0, 3, 4, 3]], answers=[(4, 5)])
        >>> both = metric_of_rows(interp.logit_difference, torch.tensor([[4, 5], [5, 4]]))
        >>> both(interp.run(model, batch).logits, batch).round().tolist()
        [[10.0, -10.0]]
    """

    def of_rows(logits: Tensor, batch: Batch) -> Float[Tensor, "batch row"]:
        """``[batch, row]`` the metric under each row of answers."""
        given = rows.to(logits.device)
        if metric is logit_difference and bool((given[:, 1:] >= 0).any(1).all()):
            chosen = answer_logits(logits, batch)[:, given.clamp(min=0)]  # [batch, row, k]
            wrong = given[:, 1:] >= 0
            return chosen[..., 0] - chosen[..., 1:].masked_fill(~wrong, 0.0).sum(-1) / wrong.sum(-1)
        each = [
            _measured(metric, logits, dataclasses.replace(batch, answers=row.expand(len(batch), -1))) for row in given
        ]
        return torch.stack(each, dim=1)

    if getattr(metric, "positions", None) == "answers":
        vars(of_rows)["positions"] = "answers"
    of_rows.__name__ = getattr(metric, "__name__", repr(metric))
    return of_rows


def _measured(metric: Metric, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
    values = metric_values(metric, logits, batch)
    if values.ndim != 1:
        name = getattr(metric, "__name__", repr(metric))
        raise BadInput(f"metric {name}: it gave {list(values.shape)}, expected one number per prompt [{len(batch)}].")
    return values


def _blocks(own: np.ndarray, cluster: Sequence[object] | None) -> list[np.ndarray]:
    if cluster is None:
        return [np.array([prompt]) for prompt in range(len(own))]
    labels = [str(label) for label in cluster]
    return [np.array([i for i, one in enumerate(labels) if one == label]) for label in dict.fromkeys(labels)]


def _arrangements(counts: Counter[tuple[int, ...]]) -> int:
    made, total = 1, 0
    for count in counts.values():
        total += count
        made *= math.comb(total, count)
    return made


def _orders(counts: Counter[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Every distinct order of a multiset."""
    if len(counts) <= 1:
        yield list(counts.elements())
        return
    item = min(counts)
    total, others = counts.total(), Counter({key: count for key, count in counts.items() if key != item})
    for tail in _orders(others):
        for places in itertools.combinations(range(total), counts[item]):
            taken, rest = set(places), iter(tail)
            yield [item if place in taken else next(rest) for place in range(total)]


def _every(contents: list[list[tuple[int, ...]]]) -> Iterator[tuple[list[tuple[int, ...]], ...]]:
    return itertools.product(*[list(_orders(Counter(content))) for content in contents])


def _some(contents: list[list[tuple[int, ...]]], draws: int, seed: int) -> Iterator[tuple[list[tuple[int, ...]], ...]]:
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        yield tuple([content[place] for place in generator.permutation(len(content))] for content in contents)


def _spread(groups: list[list[np.ndarray]], one: Sequence[Sequence[tuple[int, ...]]], count: int) -> np.ndarray:
    assigned = np.empty(count, dtype=int)
    for group, contents in zip(groups, one, strict=True):
        given = np.array(contents, dtype=int)  # [block, 1] where a block has one content, else [block, prompt]
        repeats = [len(block) for block in group] if given.shape[1] == 1 else 1
        assigned[np.concatenate(group)] = np.repeat(given, repeats, axis=0).ravel()
    return assigned
