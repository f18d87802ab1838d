"""The mean attention of pairs of tokens, by the relation that the two stand in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.names import unknown
from interp.scores.ask import Ask, Measured
from interp.scores.long_context.chosen_rows import columns_with_filler, standing
from interp.scores.positions.position import ids_and_mask
from interp.scores.reducer import Reducer

IGNORED = -1
BY_TOKEN = ("itself", "same token", "other token")
BY_LABEL = ("itself", "same token", "same label", "different label")

Rows = Int[Tensor, "batch row"]
Classes = Int[Tensor, "batch row key"]  # IGNORED, or the number of a class


@dataclass(frozen=True, eq=False)
class Relation:
    """A class for every pair of a query and a key.

    Attributes:
        classes: names of the classes 0, 1, ...
        of_rows: ``[batch, row]`` columns of query rows -> ``[batch, row, key]`` classes, -1 for pairs left out.
    """

    classes: tuple[str, ...]
    of_rows: Callable[[Tensor], Tensor]


def relation_of(
    ask: Ask, *, labels: Any = None, relation: Any = None, classes: Sequence[str] | None = None
) -> Relation:
    """The relation that a score's options mean: given as it is, or made of one label per token.

    Args:
        ask: what is scored.
        labels: one label per token; see :func:`label_codes`.
        relation: a LongTensor ``[pos, pos]`` or ``[batch, pos, pos]`` of classes, or a function of the batch and of
            ``[batch, row]`` columns that gives ``[batch, row, key]``; -1 where a pair does not count.
        classes: names of the relation's classes 0, 1, ...

    Raises:
        BadInput: both are given, a shape that is not that of the prompts, or classes without a name.
    """
    if relation is None:
        if classes is not None:
            raise BadInput(f"{ask.name}: classes= names the classes of relation=, which was not given; leave it out.")
        ids, mask = ids_and_mask(ask)
        codes = None if labels is None else label_codes(ask, labels)
        return by_label(ids, mask, codes)
    if labels is not None:
        raise BadInput(f"{ask.name}: give labels= or relation=, not both.")
    if not classes:
        raise BadInput(f"{ask.name}: name the classes 0, 1, ... of relation= with classes=[...].")
    if callable(relation):
        given: Any = relation
        return Relation(tuple(map(str, classes)), lambda rows: given(ask.batch, rows))
    return _of_tensor(ask, relation, classes)


def _of_tensor(ask: Ask, relation: Any, classes: Sequence[str]) -> Relation:
    n, width = len(ask.batch), ask.batch.width
    wanted = ((width, width), (n, width, width))
    if not isinstance(relation, Tensor) or relation.is_floating_point() or tuple(relation.shape) not in wanted:
        came = list(relation.shape) if isinstance(relation, Tensor) else type(relation).__name__
        raise BadInput(
            f"{ask.name}: relation= {came}; expected whole numbers [pos, pos] or [batch, pos, pos] {list(wanted[1])}."
        )
    table = relation.long().expand(n, -1, -1).to(ask.model.device)
    if int(table.min()) < IGNORED:
        raise BadInput(f"{ask.name}: relation= holds {int(table.min())}; classes count from 0, and -1 is left out.")
    most = int(table.max()) + 1
    names = tuple(map(str, classes))
    if len(names) < most:
        raise BadInput(f"{ask.name}: relation= has {most} classes and classes= names {len(names)}; name each.")
    return Relation(names, lambda rows: table.gather(1, rows[..., None].expand(-1, -1, width)))


def label_codes(ask: Ask, labels: Any) -> Int[Tensor, "batch pos"]:
    """``[batch, pos]`` a number per label, -1 at tokens without one and at padding.

    Args:
        ask: what is scored.
        labels: a LongTensor ``[batch, pos]`` (-1 for none); a list with one list per prompt, one label per token (None
            for none); or a function token text -> label or None.

    Raises:
        BadInput: another number of labels than tokens.
    """
    ids, mask = ids_and_mask(ask)
    if isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.shape != ids.shape:
            raise BadInput(
                f"{ask.name}: labels= {labels.dtype} {list(labels.shape)}; expected whole numbers {list(ids.shape)}."
            )
        return labels.long().to(ids.device).clamp(min=IGNORED).masked_fill(~mask, IGNORED)
    if callable(labels):
        rows: Any = [[labels(token) for token in tokens] for tokens in ask.batch.tokens]
    else:
        rows = list(labels)
    lengths = ask.batch.lengths
    if len(rows) != len(ids) or any(len(row) != length for row, length in zip(rows, lengths, strict=False)):
        raise BadInput(
            f"{ask.name}: labels= has {[len(row) for row in rows][:8]} labels; the prompts have {lengths[:8]} tokens; "
            "give one label per token, None for none."
        )
    known: dict[Hashable, int] = {}
    codes = torch.full_like(ids, IGNORED)
    for row, found in enumerate(rows):
        own = [IGNORED if label is None else known.setdefault(label, len(known)) for label in found]
        codes[row, mask[row]] = torch.tensor(own, device=ids.device)
    return codes


def by_label(
    ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], codes: Int[Tensor, "batch pos"] | None
) -> Relation:
    """Pairs of the same position, of the same token, of the same label, of different labels; the first that holds.

    Without labels: itself, same token, other token. Pairs with a token that has no label do not count.
    """

    def of_rows(rows: Tensor) -> Tensor:
        columns = torch.arange(ids.shape[1], device=ids.device)
        real = mask[:, None, :] & mask.gather(1, rows)[..., None]
        if codes is None:
            made = torch.full(real.shape, 2, device=ids.device)
        else:
            own = codes.gather(1, rows)[..., None]
            made = torch.where(own == codes[:, None, :], 2, 3)
            real = real & (own >= 0) & (codes >= 0)[:, None, :]
        made = made.masked_fill(ids.gather(1, rows)[..., None] == ids[:, None, :], 1)
        made = made.masked_fill(rows[..., None] == columns, 0)
        return made.masked_fill(~real, IGNORED)

    return Relation(BY_TOKEN if codes is None else BY_LABEL, of_rows)


def relation_sums(
    pattern: Float[Tensor, "batch head row key"],
    visible: Bool[Tensor, "#batch #head row key"],
    cells: Int[Tensor, "batch row key"],
    n_cells: int,
) -> tuple[Float[Tensor, "batch head cell"], Float[Tensor, "batch head cell"]]:
    """``[batch, head, cell]`` attention summed over the visible pairs of each cell, and how many pairs these are.

    Args:
        pattern: attention.
        visible: pairs that count.
        cells: the cell of each pair, -1 for none.
        n_cells: how many there are.
    """
    batch, heads = pattern.shape[:2]
    place = torch.where(cells < 0, n_cells, cells).flatten(1)[:, None]

    def summed(values: Tensor) -> Tensor:
        made = torch.zeros(*values.shape[:2], n_cells + 1, dtype=torch.float64, device=values.device)
        index = place.expand(-1, values.shape[1], -1)
        return made.scatter_add(-1, index, values.flatten(2).double())[..., :n_cells]

    seen = visible.expand(batch, -1, -1, -1)
    return summed(pattern * seen), summed(seen).expand(-1, heads, -1)


class RelationSums(Reducer):
    """Sums of attention and numbers of visible pairs by class (and by distance), for one relation or several.

    Args:
        ask: what is scored.
        relations: the relation, and others with the same classes (permuted labels, rewired graphs).
        queries: ``[batch, pos]`` the query rows that count, None for all.
        edges: rising distances at which a new stratum begins, the first one 0; None for no strata.
    """

    def __init__(
        self,
        ask: Ask,
        relations: Sequence[Relation],
        queries: Tensor | None = None,
        edges: Sequence[int] | None = None,
    ) -> None:
        super().__init__(ask)
        self.relations, self.queries = relations, queries
        self.classes = relations[0].classes
        self.edges = torch.tensor(edges or [0])
        self.rows = None if queries is None else columns_with_filler(queries)
        self.sums: dict[int, Tensor] = {}  # [relation, batch, head, stratum, class]
        self.counts: dict[int, Tensor] = {}
        self.numbers: dict[int, Tensor] = {}  # [relation, batch, head] rows that have a pair
        self._cells: tuple[Tensor, int, list[Tensor]] | None = None

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the pairs of the block."""
        counted = standing(block, self.queries)
        per_head = counted if counted.ndim == 3 else counted[:, None]  # noqa: PLR2004 - batch, head, row
        seen = block.open_keys & per_head[..., None]
        n_cells = len(self.edges) * len(self.classes)
        sums, counts, numbers = [], [], []
        for cells in self.cells(block):
            total, pairs = relation_sums(block.pattern, seen, cells, n_cells)
            shape = (*total.shape[:2], len(self.edges), len(self.classes))
            sums.append(total.view(shape))
            counts.append(pairs.reshape(shape))
            has_pair = (seen & (cells >= 0)[:, None]).any(-1).sum(-1)
            numbers.append(has_pair.expand(total.shape[:2]).double())
        added = (torch.stack(sums), torch.stack(counts), torch.stack(numbers))
        if block.layer in self.sums:
            before = (self.sums[block.layer], self.counts[block.layer], self.numbers[block.layer])
            added = tuple(old + new for old, new in zip(before, added, strict=True))
        self.sums[block.layer], self.counts[block.layer], self.numbers[block.layer] = added

    def measured(self) -> Measured:
        """The mean attention per pair of each class of the first relation, strata put together."""
        made = {layer: mean_by_class(sums[0], self.counts[layer][0]) for layer, sums in self.sums.items()}
        return Measured(made, bins=self.classes)

    def cells(self, block: Block) -> list[Tensor]:
        """Per relation ``[batch, row, key]`` the cell of each pair; the same for every layer."""
        if self._cells is None or self._cells[0] is not block.rows or self._cells[1] != block.n_keys:
            columns = torch.arange(block.n_keys, device=block.rows.device)
            apart = (block.rows[..., None] - columns).abs()
            stratum = torch.bucketize(apart, self.edges.to(apart.device), right=True) - 1
            made = []
            for relation in self.relations:
                classes = relation.of_rows(block.rows)[..., : block.n_keys]
                if classes.numel() and int(classes.max()) >= len(self.classes):
                    raise BadInput(
                        f"{self.ask.name}: relation= gave class {int(classes.max())} and classes= names "
                        f"{len(self.classes)}; name each."
                    )
                made.append(torch.where(classes < 0, IGNORED, stratum * len(self.classes) + classes))
            self._cells = (block.rows, block.n_keys, made)
        return self._cells[2]


def mean_by_class(
    sums: Float[Tensor, "*any stratum cls"],
    counts: Float[Tensor, "*any stratum cls"],
    compared: Sequence[int] | None = None,
) -> Float[Tensor, "*any cls"]:
    """The mean attention per pair of each class; NaN where there is no pair.

    ``M_r = sum_{pairs of r} A / #{pairs of r}``. With ``compared`` the classes' pairs are matched by stratum:
    ``M_r = sum_s w_s M_{r,s} / sum_s w_s`` with ``w_s`` the smallest number of pairs that a compared class has in
    stratum s; the classes not compared are NaN.

    Example:
        >>> mean_by_class(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])).tolist()
        [0.5, nan]
    """
    if compared is None:
        return sums.sum(-2) / counts.sum(-2)
    own = counts[..., list(compared)]
    weight = own.min(-1, keepdim=True).values
    means = torch.where(weight > 0, sums[..., list(compared)] / own, torch.zeros_like(own))
    made = torch.full_like(sums[..., 0, :], torch.nan)
    made[..., list(compared)] = (weight * means).sum(-2) / weight.sum(-2)
    return made


def edges_of(name: str, stratify: Any, width: int) -> tuple[int, ...] | None:
    """Distances at which strata begin: each distance for ``"distance"``, the given ones, or None.

    Raises:
        BadInput: something else.
    """
    if stratify is None:
        return None
    if stratify == "distance":
        return tuple(range(width))
    if isinstance(stratify, list | tuple) and stratify and all(type(edge) is int and edge > 0 for edge in stratify):
        if list(stratify) == sorted(set(stratify)):
            return (0, *stratify)
    raise BadInput(
        f"{name}: stratify={stratify!r}; expected None, 'distance', or rising distances above 0 at which a new stratum "
        "begins, such as [2, 4, 8]."
    )


def compared_classes(name: str, classes: Sequence[str], compare: Sequence[str] | None) -> tuple[int, int]:
    """Numbers of the two classes that ``compare`` names, of the last two for None.

    Raises:
        BadInput: an unknown class, or not two different ones.
    """
    if compare is None:
        if len(classes) < 2:  # noqa: PLR2004 - a pair
            raise BadInput(f"{name}: there is one class ({classes[0]!r}); two are needed to compare.")
        return len(classes) - 2, len(classes) - 1
    for one in compare:
        if one not in classes:
            raise BadInput(unknown(one, classes, f"class of {name}"))
    if len(set(compare)) != 2:  # noqa: PLR2004 - a pair
        raise BadInput(f"{name}: compare={list(compare)!r}; expected two different classes.")
    first, second = (list(classes).index(one) for one in compare)
    return first, second
