"""The part of a session that hangs on one attention module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.address import Site
from interp.model.attention import AttentionCall
from interp.model.stacks import Stack

if TYPE_CHECKING:
    from interp.model.session import Session


class LayerTap:
    """What a session wants of one attention module, as :class:`interp.model.attention.AttentionTap`."""

    def __init__(self, session: Session, stack: Stack, layer: int) -> None:
        self.session, self.stack, self.layer = session, stack, layer
        self.name = stack.name
        self.eager = (stack.name, layer) in session.eager
        self.on_path = session.gradients

    def _keys(self, length: int, width: int, device: torch.device) -> Tensor:
        flow = self.session.flows[self.name]
        total = length if self.stack.cross or self.stack.family.packed else flow.past + max(flow.width, width)
        return max(0, total - length) + torch.arange(length, device=device)

    def vectors(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v after the session's reads and edits."""
        keys = self._keys(k.shape[2], q.shape[2], k.device)
        made = []
        for site, tensor in ((Site.Q, q), (Site.K, k), (Site.V, v)):
            key = (self.name, site, self.layer)
            if key not in self.session.wishes:
                made.append(tensor)
                continue
            after = self.session.visit(key, tensor.transpose(1, 2), keys=None if site is Site.Q else keys)
            made.append(after.transpose(1, 2))
        return made[0], made[1], made[2]

    def rows(self) -> Iterator[Tensor | None]:
        """Rows of each map that is to be read beside the fast kernel."""
        wanted: list[Tensor] = []
        whole = False
        for site in (Site.SCORES, Site.PATTERN):
            for reading in self.session.plan.readings_of((self.name, site, self.layer)):
                if reading.columns is None:
                    whole = True
                elif not any(torch.equal(reading.columns, other) for other in wanted):
                    wanted.append(reading.columns)
        if whole:
            yield None
        else:
            yield from wanted

    def look(self, call: AttentionCall) -> None:
        """Read the rows wanted of the maps beside the fast kernel."""
        for rows in self.rows():
            call.show(self, rows)

    def scores(self, scores: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """The scores after reads and edits."""
        return self._map(Site.SCORES, scores, visible, rows)

    def pattern(self, pattern: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """The pattern after reads and edits."""
        return self._map(Site.PATTERN, pattern, visible, rows)

    def _map(self, site: Site, x: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        keys = self._keys(x.shape[-1], x.shape[-2], x.device)
        return self.session.visit((self.name, site, self.layer), x, keys=keys, visible=visible, held=rows)
