"""``stream``: one forward whose attention maps are shown a few query rows at a time.

The model's own fast attention makes the output. Beside it, each layer's maps are computed by blocks of rows, shown to
every watcher and forgotten, so that memory grows with the length of the prompts and not with its square. Linear
watchers share one matrix product per block. Where only some rows are wanted, only those are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.address import At, Site
from interp.errors import BadInput, RunFailed
from interp.model.attention import AttentionCall, attached
from interp.model.batch import Batch
from interp.model.finite import check_finite
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.plain_maps import plain_maps
from interp.model.plan import Key
from interp.model.recording import caching
from interp.model.row_blocks import Block, Watcher, block_of
from interp.model.run import logits_columns, run
from interp.model.scopes import evaluating, switched, watched
from interp.model.session import Session
from interp.model.stacks import Stack
from interp.model.unembedding import first_tensor, logits_of, unembedding

ENTRIES = 1 << 22  # of one block of maps: prompts x heads x rows x keys
FEWEST_ROWS = 32  # of a block, however long the prompts: products of fewer rows are slow
_EARLY = frozenset({Site.RESID_PRE, Site.Q, Site.K, Site.V})
_INSIDE = frozenset({Site.Q, Site.K, Site.V})


@torch.no_grad()
def stream(
    model: Model,
    batch: Batch,
    watchers: Sequence[Watcher],
    *,
    stack: str | None = None,
    dropped: Bool[Tensor, "batch key"] | None = None,
    entries: int | None = None,
) -> None:
    """Nothing: ``watchers`` have seen every layer of one forward of ``batch``.

    Args:
        model: the handle.
        batch: the prompts.
        watchers: see :class:`interp.model.row_blocks.Watcher`.
        stack: whose maps, the default stack for None.
        dropped: ``[batch, key]`` True at columns that blocks come without.
        entries: of one block (prompts x heads x rows x keys); at least ``FEWEST_ROWS`` rows are taken in any case.

    Raises:
        Unsupported: maps or activations that the stack does not offer.
        BadInput: a block of no entries.
        NotFinite: NaN or infinity at a real token.
    """
    found = model.stack(stack)
    if entries is not None and entries < 1:
        raise BadInput(f"block={entries}: a block of maps has at least one entry; leave it out for {ENTRIES}.")
    sites = {site for watcher in watchers for site in watcher.sites}
    maps = any(watcher.maps for watcher in watchers)
    for site in sites | ({Site.PATTERN} if maps else set()):
        found.require(site, edit=False)
    if not watchers:
        return
    showing = _Showing(model, batch, found, watchers, dropped, entries)
    if found.family.packed:
        _from_whole_maps(showing, sites, maps)
    else:
        _while_running(showing, sites, maps)


def _while_running(showing: _Showing, sites: set[Site], maps: bool) -> None:
    """Run the model once; every layer is shown as it passes."""
    model, batch, stack = showing.model, showing.batch, showing.stack
    layers = [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]
    progress = _Layers(showing, sites, maps)
    reads = [At(site, layer=layer, stack=stack.name) for layer in layers for site in sites]
    session = Session(model, batch, [], reads, passing=progress.passed)
    positions = logits_columns(model, batch, fewest_logits(model))
    final: list[Tensor] = []
    with ExitStack() as guard:
        guard.enter_context(evaluating(model.hf))
        guard.enter_context(unembedding(model, positions, final))
        guard.enter_context(session)
        if maps:
            if stack.family.interface:
                guard.enter_context(switched(stack))
            for layer in layers:
                tap = StreamTap(progress, layer)
                attention = stack.layer(layer).attention
                if stack.family.interface:
                    guard.enter_context(attached(attention, tap))
                else:
                    guard.enter_context(watched(attention, tap, next(attention.parameters()).dtype))
        output = model.hf(**{**batch.inputs, **caching(model, False)})
    made = logits_of(output)
    check_finite(model, batch, [], final, made if made is not None else first_tensor(output, "last_hidden_state"))
    session.check_read()
    missed = [layer for layer in layers if layer not in progress.done]
    if missed:
        raise RunFailed(
            f"The attention of layers {missed} of stack {stack.name!r} was never reached in this forward. Were the "
            "stack's inputs given (images, encoder ids)?"
        )


def _from_whole_maps(showing: _Showing, sites: set[Site], maps: bool) -> None:
    """Towers that pack the rows of all images call their attention once per image: their maps are read whole."""
    stack = showing.stack
    wanted = sites | ({Site.PATTERN, Site.SCORES} if maps else set())
    layers = [layer for layer in range(stack.n_layers) if stack.n_heads(layer)]
    reads = [At(site, layer=layer, stack=stack.name) for layer in layers for site in wanted]
    seen = run(showing.model, showing.batch, read=reads, logits=fewest_logits(showing.model))
    for layer in layers:
        held = {site: seen[At(site, layer=layer, stack=stack.name)] for site in wanted}
        progress = _Layers(showing, sites, maps)
        for site in sites:
            progress.held.setdefault(layer, {})[site] = held[site]
        progress.start(layer)
        if maps:
            scores, pattern = held[Site.SCORES], held[Site.PATTERN]
            progress.whole(layer, scores, pattern, scores > -torch.inf)
        progress.finish(layer)


class _Layers:
    """Where each layer is: what was seen of it, whether watchers were told that it begins, and that it is done."""

    def __init__(self, showing: _Showing, sites: set[Site], maps: bool) -> None:
        self.showing, self.sites, self.maps = showing, sites, maps
        self.held: dict[int, dict[Site, Tensor]] = {}
        self.started: set[int] = set()
        self.shown: set[int] = set()
        self.done: set[int] = set()

    def passed(self, key: Key, tensor: Tensor) -> None:
        """An activation passed."""
        _, site, layer = key
        self.held.setdefault(layer, {})[site] = tensor.detach()
        self._finish_if_seen(layer)

    def start(self, layer: int) -> None:
        """Tell the watchers that the layer begins (once)."""
        if layer not in self.started:
            self.started.add(layer)
            early = {site: tensor for site, tensor in self.held.get(layer, {}).items() if site in _EARLY}
            for watcher in self.showing.watchers:
                watcher.start(layer, early)

    def rows_shown(self, layer: int) -> None:
        """All blocks of the layer have been shown."""
        if layer in self.shown:
            raise RunFailed(
                f"The attention of layer {layer} of stack {self.showing.stack.name!r} ran twice in one forward (a "
                "shared or recurrent block); one map cannot stand for both."
            )
        self.shown.add(layer)
        self._finish_if_seen(layer)

    def whole(self, layer: int, scores: Tensor, pattern: Tensor, visible: Tensor) -> None:
        """Show a layer whose whole maps are there."""
        self.start(layer)
        early = self.held.get(layer, {})
        for wanted in self.showing.groups():
            for columns in self.showing.cut(wanted, pattern.shape):
                rows = columns.to(pattern.device)
                index = rows.unsqueeze(1).unsqueeze(-1)
                some = [
                    x.expand(len(rows), *x.shape[1:]).gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))
                    for x in (scores, pattern, visible)
                ]
                self.showing.show(wanted, layer, rows, some[0], some[1], some[2], early)

    def _finish_if_seen(self, layer: int) -> None:
        if self.sites <= set(self.held.get(layer, {})) and (layer in self.shown or not self.maps):
            self.start(layer)
            self.finish(layer)

    def finish(self, layer: int) -> None:
        """Tell the watchers that the layer is done, and forget it."""
        held = self.held.pop(layer, {})
        for watcher in self.showing.watchers:
            watcher.finish(layer, held)
        self.done.add(layer)


class StreamTap:
    """What a stream wants of one attention module, as :class:`interp.model.attention.AttentionTap`: every block."""

    eager = False
    on_path = False

    def __init__(self, layers: _Layers, layer: int) -> None:
        self.layers, self.layer = layers, layer
        self._scores: Tensor | None = None
        self._group: tuple[Watcher, ...] | None = None

    def vectors(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As they are."""
        return q, k, v

    def rows(self) -> Iterator[Tensor | None]:
        """The whole map, where the module computes it itself."""
        yield None

    def look(self, call: AttentionCall) -> None:
        """Show every block of the maps beside the fast kernel."""
        self.layers.start(self.layer)
        showing = self.layers.showing
        plain = plain_maps(call)
        own = call.in_float32() if plain is None else call
        early = self.layers.held.get(self.layer, {})
        shape = (*call.query.shape[:3], call.key.shape[2])
        for group in showing.groups():
            for rows in showing.cut(group, shape):
                if plain is None:
                    self._group = group
                    own.show(self, rows.to(call.query.device))
                else:
                    scores, pattern, visible = plain.of(rows.to(call.query.device))
                    showing.show(group, self.layer, rows, scores, pattern, visible, early)
        self._group = None
        self.layers.rows_shown(self.layer)

    def scores(self, scores: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """Hold the scores until their pattern comes."""
        self._scores = scores
        return scores

    def pattern(self, pattern: Tensor, visible: Tensor, rows: Tensor | None) -> Tensor:
        """Show the block, or a whole map by blocks."""
        assert self._scores is not None
        scores, self._scores = self._scores, None
        if rows is None:
            self.layers.whole(self.layer, scores, pattern, visible)
            self.layers.rows_shown(self.layer)
        else:
            assert self._group is not None
            held = self.layers.held.get(self.layer, {})
            self.layers.showing.show(self._group, self.layer, rows, scores, pattern, visible, held)
        return pattern


class _Showing:
    """What is shown to whom, and how rows are cut into blocks."""

    def __init__(
        self,
        model: Model,
        batch: Batch,
        stack: Stack,
        watchers: Sequence[Watcher],
        dropped: Tensor | None,
        entries: int | None,
    ) -> None:
        self.model, self.batch, self.stack, self.watchers = model, batch, stack, watchers
        self.kept = None if dropped is None else ~dropped
        self.mask = batch.row_mask(stack.name)
        self.entries, self.fewest = (ENTRIES, FEWEST_ROWS) if entries is None else (entries, 1)
        self._groups: list[tuple[Watcher, ...]] = []
        self._held: dict[tuple[int, ...], tuple[Tensor, Tensor | None, list[int | None]]] = {}
        self._room = self.entries // 4  # entries of features to be kept
        for watcher in watchers:
            if watcher.maps:
                self._join(watcher)

    def _join(self, watcher: Watcher) -> None:
        for place, group in enumerate(self._groups):
            first, rows = group[0].rows, watcher.rows
            if first is rows or (first is not None and rows is not None and torch.equal(first, rows)):
                self._groups[place] = (*group, watcher)
                return
        self._groups.append((watcher,))

    def groups(self) -> Iterator[tuple[Watcher, ...]]:
        """Watchers that want the same rows."""
        yield from self._groups

    def cut(self, group: tuple[Watcher, ...], shape: Sequence[int]) -> Iterator[Tensor]:
        """``[batch, k]`` rows of each block of maps of ``shape [batch, head, query, key]``."""
        count, heads, length, n_keys = shape
        wanted = group[0].rows
        if wanted is None:
            wanted = torch.arange(length).expand(count, -1)
        elif wanted.shape[0] != count:
            raise BadInput(f"rows for {wanted.shape[0]} prompts were asked for, and {count} run.")
        elif wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < length:
            raise BadInput(f"rows {int(wanted.min())} to {int(wanted.max())} were asked for, of {length}.")
        step = max(self.fewest, self.entries // (count * heads * n_keys))
        yield from wanted.split(step, dim=1) if wanted.shape[1] else ()

    def show(
        self,
        group: tuple[Watcher, ...],
        layer: int,
        rows: Tensor,
        scores: Tensor,
        pattern: Tensor,
        visible: Tensor,
        early: dict[Site, Tensor],
    ) -> None:
        """One block to every watcher of the group."""
        block = block_of(
            self.stack,
            layer,
            rows,
            (scores, pattern, visible),
            mask=self.mask,
            kept=self.kept,
            logits=any(watcher.logits for watcher in group),
            seen={site: tensor for site, tensor in early.items() if site in _EARLY},
        )
        products = self._products(group, block)
        for watcher, product in zip(group, products, strict=True):
            watcher.block(block, product)

    def _products(self, group: tuple[Watcher, ...], block: Block) -> list[Tensor | None]:
        """``block.pattern @ features`` of each watcher, from one matrix product."""
        joined, widths = self._features(group, block)
        if joined is None:
            return [None] * len(group)
        n, heads, n_rows, n_keys = block.whole.shape
        flat = block.whole.reshape(n, heads * n_rows, n_keys) if len(joined) > 1 else block.whole.reshape(1, -1, n_keys)
        made = torch.matmul(flat, joined).view(n, heads, n_rows, -1)
        if block.kept is not None:
            made = made / block.kept_mass.clamp(min=torch.finfo(made.dtype).tiny).unsqueeze(-1)
        parts = iter(made.split([width for width in widths if width is not None], dim=-1))
        return [None if width is None else next(parts) for width in widths]

    def _features(self, group: tuple[Watcher, ...], block: Block) -> tuple[Tensor | None, list[int | None]]:
        """The columns that the watchers ask for, side by side, and how many are whose: kept from layer to layer."""
        place = (id(group), int(block.rows[0, 0]), block.rows.shape[1], block.n_keys)
        held = self._held.get(place)
        if held is not None and torch.equal(held[0], block.rows):
            return held[1:]
        asked = [watcher.features(block.layer, block.n_keys, block.rows) for watcher in group]
        columns = [features for features in asked if features is not None]
        widths = [None if features is None else features.shape[-1] for features in asked]
        joined = None
        if columns:
            count = max(len(features) for features in columns)
            joined = torch.cat([x.to(block.whole).expand(count, -1, -1) for x in columns], dim=-1)
            if block.kept is not None:
                joined = joined * block.kept[:, : block.n_keys, None]
        if not any(watcher.layered for watcher in group):
            self._room -= 0 if joined is None else joined.numel()
            if self._room >= 0:
                self._held[place] = (block.rows, joined, widths)
        return joined, widths
