"""The dyes of one layer's projections, in which the entries of other tensors are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.model.dyes import LayerDyes
from interp.model.linear_parts import Scaling

_SAME = 1e-4  # 1 - |cosine| of two columns that are one; random ones of 16 rows are never as near


@dataclass(frozen=True, eq=False)
class Traced:
    """Where the entries of a tensor come from: entry = ``factor * (gain) * strand's output[column]``.

    Attributes:
        strand: which projection.
        column: which entry of its output.
        factor: the constant it arrives times (the scale of a query, say).
        norm: which of ``norms`` it passes, -1 for none.
        inside: which entry of that norm's input it is.
        norms: the layer's inner norms, which divide by their input's scale besides.
        rows: prompts of a norm's input.
        centred: whether one of those takes off a mean.
    """

    strand: Int[Tensor, "*entries"]
    column: Int[Tensor, "*entries"]
    factor: Float[Tensor, "*entries"]
    norm: Int[Tensor, "*entries"]
    inside: Int[Tensor, "*entries"]
    norms: Sequence[Scaling]
    rows: int
    centred: bool

    @property
    def gain(self) -> Float[Tensor, "*entries"]:
        """Of the norm inside the attention that each entry passes, as its parameters are now; 1 without one."""
        made = torch.ones_like(self.factor)
        for number, norm in enumerate(self.norms):
            mine = self.norm == number
            if bool(mine.any()):
                made[mine] = norm.gain().factor.reshape(self.rows, -1)[0].double().cpu()[self.inside[mine]]
        return made


@dataclass(frozen=True, eq=False)
class Strand:
    """One projection inside an attention.

    Attributes:
        module: the projection.
        width: of its input.
        like: its dtype and device.
        source: where its input comes from: which of the attention's own inputs (0 the residual side, 1 what
            cross-attention reads), or the entries of other projections.
    """

    module: nn.Module
    width: int
    like: Tensor
    source: int | Traced


class Pool:
    """The dyes of a layer at the first position, in which the entries of other tensors are looked for."""

    def __init__(self, strands: Sequence[Strand], dyes: LayerDyes, rows: int) -> None:
        self.rows = rows
        self.dyes = [dyes.outputs[strand.module].reshape(rows, -1, dyes.outputs[strand.module].shape[-1]) for strand in
                     strands]  # fmt: skip
        self.norms = list(dyes.norms.values())
        self.scalings = [Scaling(module, marked.x.new_zeros(()).expand(marked.x.shape)) for module, marked in
                         dyes.norms.items()]  # fmt: skip
        first = [dye[:, 0].double() for dye in self.dyes]
        self.columns = torch.cat(first, dim=1)
        self.strand = torch.cat([torch.full((dye.shape[1],), i) for i, dye in enumerate(first)])
        self.column = torch.cat([torch.arange(dye.shape[1]) for dye in first])

    def trace(self, target: Tensor) -> Traced | None:
        """Where the entries of ``target [row, ...]`` come from; None where one of them is no dye."""
        flat = target.reshape(self.rows, -1).double()
        place, factor = _match(flat, self.columns)
        norm, entry = torch.full_like(place, -1), torch.zeros_like(place)
        for number, marked in enumerate(self.norms):
            left = (place < 0).nonzero().flatten()
            if not len(left):
                break
            unmarked = flat[:, left] * marked.signs.double()[:, None]
            found, times = _match(unmarked, self.columns)
            inside, _ = _match(unmarked, marked.x.reshape(self.rows, -1).double())
            met = (found >= 0) & (inside >= 0)
            place[left[met]], factor[left[met]], norm[left[met]] = found[met], times[met], number
            entry[left[met]] = inside[met]
        if bool((place < 0).any()):
            return None
        shape, cpu = target.shape[1:], place.cpu()
        return Traced(
            strand=self.strand[cpu].view(shape),
            column=self.column[cpu].view(shape),
            factor=factor.cpu().view(shape),
            norm=norm.cpu().view(shape),
            inside=entry.cpu().view(shape),
            norms=tuple(self.scalings),
            rows=self.rows,
            centred=any(self.norms[number].gain.centred for number in norm.unique().tolist() if number >= 0),
        )

    def at(self, traced: Traced, position: int) -> Tensor:
        """``[row, head, d_head]`` what the entries would be at another position if nothing depended on it."""
        starts = torch.tensor([0, *(dye.shape[2] for dye in self.dyes)]).cumsum(0)
        place = (starts[traced.strand] + traced.column).flatten().to(self.columns.device)
        whole = torch.cat([dye[:, position] for dye in self.dyes], dim=1).double()
        signs = torch.stack([torch.ones_like(whole[:, 0]), *(marked.signs.double() for marked in self.norms)], dim=1)
        made = whole[:, place] * traced.factor.flatten().to(place.device) * signs[:, 1 + traced.norm.flatten()]
        return made.view(self.rows, *traced.strand.shape)


def _match(target: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """For each column of ``target``: the column it is a multiple of (-1 for none), and the factor."""
    unit = (columns / columns.norm(dim=0).clamp(min=1e-30)).float()
    wanted = (target / target.norm(dim=0).clamp(min=1e-30)).float().T.contiguous()
    places = []
    for part in wanted.split(1024):
        best, place = (part @ unit).abs_().max(dim=1)
        places.append(torch.where(best > 1 - _SAME, place, torch.full_like(place, -1)))
    place = torch.cat(places)
    chosen = columns[:, place]
    factor = (chosen * target).sum(0) / chosen.square().sum(0).clamp(min=1e-30)
    whole = factor.round()  # a factor of 1 arrives without rounding; others are as exact as the dtype
    return place, torch.where((factor - whole).abs() < 1e-6, whole, factor)  # noqa: PLR2004
