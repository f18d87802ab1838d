"""A session: the hooks and taps of declared reads and edits, in force inside one ``with`` block.

Everything is registered on entry on an ``ExitStack`` and removed exactly as registered, also when the body or an
install raises. Hooks see tensors in the axes of :class:`interp.Site`, apply the edits in their order, then record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from interp.address import At, Site
from interp.edits.base import Context, Edit
from interp.edits.groups import columns_of
from interp.errors import BadInput, EditDidNotFire, RunFailed
from interp.model.attention import attached
from interp.model.layer_tap import LayerTap
from interp.model.plan import ORDER, Key, Plan, Wish
from interp.model.reading import Reading, head_index, select, stitch
from interp.model.scopes import hidden_among, hooked_output, removing, switched, watched
from interp.model.stacks import Stack, Tap, named_stack, project_out

_RESIDUAL = (Site.RESID_MID, Site.RESID_CROSS)
_ALIASED = frozenset(site for site in Site if not site.per_head)  # later in-place adds must not reach what was read


@dataclass
class Flow:
    """Where the rows of one stack are in this forward."""

    past: int = 0  # columns before the first row of this call
    width: int = 0  # rows of this call
    batch: int = 0
    seen: bool = False


@dataclass(frozen=True)
class Copies:
    """A forward that runs several copies of the batch (or of some of its prompts), one after the other.

    Attributes:
        count: how many.
        owners: the copy that each edit belongs to.
        rows: the prompts that run, all for ``None``.
    """

    count: int
    owners: Sequence[int]
    rows: Tensor | None = None


class Session:
    """Reads and edits of one model, in force between ``__enter__`` and ``__exit__``.

    Args:
        model: the handle.
        batch: the encoded prompts, or ``None`` for foreign code.
        edits: prepared edits (their ``function`` is set).
        reads: addresses to record.
        gradients: keep what is read on the path to the output, and start a graph at the embeddings.
        eager: ``(stack, layer)`` that must run the architecture's eager attention.
        prompt: columns of the prompt; later rows are decode rows. ``None``: every row is a prompt row.
        copies: where the forward runs several copies of the batch, one after the other.
        passing: called with (key, tensor) for everything that is read, which is then not kept.
    """

    def __init__(
        self,
        model: Any,
        batch: Any,
        edits: Sequence[Edit],
        reads: Sequence[At] = (),
        *,
        gradients: bool = False,
        eager: Sequence[tuple[str, int]] = (),
        prompt: int | None = None,
        copies: Copies | None = None,
        passing: Callable[[Key, Tensor], None] | None = None,
    ) -> None:
        self.plan = Plan(model, batch, edits, reads, gradients=gradients, eager=eager)
        self.model, self.batch, self.gradients, self.prompt = model, batch, gradients, prompt
        self.edits, self.eager = self.plan.edits, self.plan.eager
        self.wishes, self.readings = self.plan.wishes, self.plan.readings
        self.fired: set[tuple[int, str, Site, int]] = set()
        self.flows: dict[str, Flow] = {}
        self.seen: dict[At, Tensor] = {}
        self.step = -1
        self.copies = copies
        self.passing = passing
        self._exit = ExitStack()
        self._once: set[Key] = set()

    # ---- entering and leaving ---------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        with ExitStack() as guard:
            used = {name for name, _, _ in self.wishes} | {name for name, _ in self.eager} | {self.model.default_stack}
            if self.gradients:
                used |= set(self.model.stacks)
            for name in used:
                self._install_flow(guard, self.model.stacks[name])
            self._install_taps(guard)
            self._install_attention(guard)
            self._exit = guard.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def _install_flow(self, guard: ExitStack, stack: Stack) -> None:
        owner = self.model.owner(stack)
        flow = self.flows.setdefault(stack.name, Flow())

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            flow.past, flow.seen = _past_length(kwargs.get("past_key_values")), False
            if stack.name == self.model.default_stack:
                self.step += 1
            self._once = {key for key in self._once if key[0] != stack.name}

        def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, put = hidden_among(args, kwargs)
            if flow.seen:
                return None
            flow.seen = True
            packed = stack.family.packed
            flow.batch, flow.width = (1, hidden.shape[0]) if packed else (hidden.shape[0], hidden.shape[1])
            if self.gradients and torch.is_grad_enabled() and not hidden.requires_grad:
                return put(hidden.detach().requires_grad_())
            return None

        guard.enter_context(removing(owner.register_forward_pre_hook(begin, with_kwargs=True)))
        block = stack.blocks[0]
        guard.enter_context(removing(block.register_forward_pre_hook(first, with_kwargs=True)))

    def _install_taps(self, guard: ExitStack) -> None:
        places: dict[tuple[int, str], tuple[Tap, list[Key]]] = {}
        for key in self.wishes:
            name, site, layer = key
            if site.inside_attention:
                continue
            tap = self.model.stacks[name].tap(site, layer)
            places.setdefault((id(tap.module), tap.side), (tap, []))[1].append(key)
        for tap, keys in places.values():
            keys.sort(key=lambda key: ORDER[key[1]])
            if tap.side == "input":
                hook = tap.module.register_forward_pre_hook(self._input_hook(keys), with_kwargs=True)
                guard.enter_context(removing(hook))
            else:
                guard.enter_context(hooked_output(tap.module, self._output_hook(keys)))

    def _install_attention(self, guard: ExitStack) -> None:
        inside = {(name, layer) for name, site, layer in self.wishes if site.inside_attention} | self.eager
        named: set[str] = set()
        for name, layer in sorted(inside):
            stack = self.model.stacks[name]
            attention = stack.layer(layer).attention
            tap = LayerTap(self, stack, layer)
            if stack.family.interface:
                if name not in named:
                    named.add(name)
                    guard.enter_context(switched(stack))
                guard.enter_context(attached(attention, tap))
            else:
                guard.enter_context(watched(attention, tap, next(attention.parameters()).dtype))

    def _input_hook(self, keys: list[Key]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, put = hidden_among(args, kwargs)
            changed = hidden
            for key in keys:
                in_place = key[1] in _RESIDUAL
                source = changed.clone() if in_place and self.wishes[key].edits else changed
                made = self._visit_raw(key, source)
                if made is source:
                    continue
                if in_place:  # the block holds this very tensor as its residual
                    changed.copy_(made)
                    self._record(key, self._canonical(key, changed))
                    for reading in self.plan.readings_of(key) if self.gradients else ():
                        reading.nodes[key[2]] = [changed]  # what was recorded may be a view beside the path
                else:
                    changed = made
            return None if changed is hidden else put(changed)

        return hook

    def _output_hook(self, keys: list[Key]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple | list) else output
            changed = hidden
            for key in keys:
                if key[1] is Site.RESULT:
                    changed = self._visit_result(key, changed, hidden_among(args, kwargs)[0])
                else:
                    changed = self._visit_raw(key, changed)
            if changed is hidden:
                return None
            if isinstance(output, tuple | list):
                return type(output)([changed, *output[1:]]) if isinstance(output, list) else (changed, *output[1:])
            return changed

        return hook

    # ---- visiting a site --------------------------------------------------------------------------------------------

    def _canonical(self, key: Key, hidden: Tensor) -> Tensor:
        name, site, layer = key
        stack, flow = self.model.stacks[name], self.flows[name]
        if hidden.ndim == 2:  # noqa: PLR2004 - rows of all prompts, one after the other
            hidden = hidden.unsqueeze(0) if stack.family.packed else hidden.view(flow.batch, -1, hidden.shape[-1])
        if site is Site.Z:
            found = stack.layer(layer)
            return hidden.unflatten(-1, (found.n_heads, found.d_head))
        return hidden

    def _visit_raw(self, key: Key, hidden: Tensor) -> Tensor:
        """``hidden`` as the module passes it, after the reads and edits at ``key``."""
        stack = self.model.stacks[key[0]]
        x = self._canonical(key, hidden)
        factor = stack.multiplier(key[1])
        shown = x * factor if factor != 1.0 else x
        if self.gradients and key[1] is Site.RESID_PRE and shown is hidden:
            shown = hidden.view_as(hidden)  # others may use the block's input too: its gradient is the block's alone
        self._refuse_second_call(key)
        after = self.visit(key, shown)
        if after is shown and not (self.gradients and shown is not hidden):
            return hidden
        if factor != 1.0:
            changed = torch.where(after == shown, x, after / factor)
            # the value of an untouched entry is exact; its gradient goes through what was recorded
            after = changed.detach() + (after - after.detach()) / factor if self.gradients else changed
        if key[1] is Site.Z:
            after = after.flatten(-2)
        return after.reshape(hidden.shape).contiguous()  # a mean is expanded, and some projections take a view

    def _refuse_second_call(self, key: Key) -> None:
        if key in self._once:
            raise RunFailed(
                f"{key[1]!r} at layer {key[2]} of stack {key[0]!r} was reached twice in one forward (a shared or "
                "recurrent block); one tensor cannot stand for both."
            )

    def _visit_result(self, key: Key, hidden: Tensor, projected: Tensor) -> Tensor:
        name, _, layer = key
        stack = self.model.stacks[name]
        z = self._canonical((name, Site.Z, layer), projected)
        result = project_out(stack.layer(layer), z)
        after = self.visit(key, result)
        if self.gradients:  # each head's result enters the sum with weight one
            for reading in self.plan.readings_of(key):
                reading.nodes[layer] = [hidden]
        if after is result:
            return hidden
        return hidden + (after - result).sum(2).reshape(hidden.shape)

    def visit(
        self,
        key: Key,
        x: Tensor,
        *,
        keys: Tensor | None = None,
        visible: Tensor | None = None,
        held: Tensor | None = None,
    ) -> Tensor:
        """``x`` (in the site's axes) after the edits at ``key``; what is to be read is recorded.

        Args:
            key: stack, site, layer.
            x: the tensor.
            keys: ``[key]`` absolute columns of the keys, for maps and for K and V.
            visible: what the mask lets be seen, for maps.
            held: ``[batch, k]`` the only rows that ``x`` holds, ``None`` for all.
        """
        wish = self.wishes.get(key)
        if wish is None:
            return x
        if self.copies is None:
            for number, edit, at in wish.edits:
                x = self._apply(number, edit, at, key, x, keys, visible, self.seen)
        elif wish.edits:
            x = self._apply_to_copies(wish, key, x, keys, visible)
        if wish.reads or wish.watches:
            self._record(key, x, held)
        return x

    def _apply_to_copies(self, wish: Wish, key: Key, x: Tensor, keys: Tensor | None, visible: Tensor | None) -> Tensor:
        """``x`` after each edit has seen, and changed, the rows of its own copy of the batch."""
        assert self.copies is not None
        size = x.shape[0] // self.copies.count
        made = x.clone()
        for number, edit, at in wish.edits:
            rows = slice(self.copies.owners[number] * size, (self.copies.owners[number] + 1) * size)
            seen = visible if visible is None or visible.shape[0] != x.shape[0] else self._whole(visible[rows])
            earlier = {read: self._whole(tensor[rows]) for read, tensor in self.seen.items()}
            edited = self._apply(number, edit, at, key, self._whole(made[rows]), keys, seen, earlier)
            made[rows] = edited if self.copies.rows is None else edited[self._prompt_rows(edited.shape[0])]
        return made

    def _prompt_rows(self, length: int) -> Tensor:
        """The rows, among ``length`` of the whole batch, of the prompts that run."""
        assert self.copies is not None and self.copies.rows is not None and self.batch is not None
        each = length // len(self.batch)
        return (self.copies.rows[:, None] * each + torch.arange(each)).flatten()

    def _whole(self, part: Tensor) -> Tensor:
        """``part`` as the rows of the whole batch, of which those that do not run are 0: what an edit is made for."""
        assert self.copies is not None
        if self.copies.rows is None:
            return part
        each = part.shape[0] // len(self.copies.rows)
        whole = part.new_zeros(each * len(self.batch), *part.shape[1:])
        whole[self._prompt_rows(len(whole))] = part
        return whole

    def _apply(
        self,
        number: int,
        edit: Edit,
        at: At,
        key: Key,
        x: Tensor,
        keys: Tensor | None,
        visible: Tensor | None,
        earlier: Mapping[At, Tensor],
    ) -> Tensor:
        name, site, layer = key
        axes = site.axes
        rows = self._rows(name, x.shape[axes.index("query" if "query" in axes else "pos")], x.device, keys, site)
        prompts = torch.arange(x.shape[0], device=x.device)
        if self.batch is not None:
            prompts = prompts // max(1, x.shape[0] // len(self.batch))
        decode = rows >= self.prompt if self.prompt is not None else torch.zeros_like(rows, dtype=torch.bool)
        self._refuse_generated(edit, decode)
        heads, axis = at.heads, axes.index("head") if site.per_head else 0
        index = None if heads is None else torch.tensor(heads, device=x.device)
        part = x if index is None else x.index_select(axis, index)
        if visible is not None and index is not None and visible.shape[1] > 1:
            visible = visible.index_select(1, index)
        ctx = Context(
            at=at.with_(stack=name),
            layer=layer,
            layers=self.plan.edit_layers[(number, at)],
            batch=self.batch,
            step=max(self.step, 0),
            rows=rows,
            keys=keys if "key" in axes else None,
            row_mask=self._row_mask(name, rows),
            visible=visible,
            decode=decode,
            prompts=prompts,
            seed_parts=(crc32(name.encode()), ORDER[site], self._earlier(key, number)),
            reads=earlier,
        )
        self.fired.add((number, name, site, layer))
        try:
            assert edit.function is not None
            made = edit.function(part, ctx)
        except Exception as error:
            error.add_note(f"while applying {edit} at layer {layer} of stack {name!r}")
            raise
        chosen = self._chosen_rows(edit, at, name, rows, decode, x.device)
        if chosen is not None:
            made = torch.where(_row_shape(chosen, site, x.shape[0]), made, part)
        return made if index is None else x.index_copy(axis, index, made)

    def _earlier(self, key: Key, number: int) -> int:
        """How many edits of the same name come before this one at the same place."""
        same = self.edits[number].name
        others = [(other, edit) for other, edit, _ in self.wishes[key].edits if other < number and edit.name == same]
        if self.copies is None:
            return len(others)
        owners = self.copies.owners
        return sum(owners[other] == owners[number] for other, _ in others)

    def _refuse_generated(self, edit: Edit, decode: Tensor) -> None:
        if edit.prompt_only and edit.phase != "prefill" and bool(decode.any()):
            raise BadInput(f"{edit} holds values for the prompt's rows alone; give it phase='prefill' in generation.")

    def _chosen_rows(
        self, edit: Edit, at: At, name: str, rows: Tensor, decode: Tensor, device: torch.device
    ) -> Tensor | None:
        """``[batch or 1, rows]`` True at the rows an edit applies to, ``None`` for every row."""
        chosen = None
        if at.pos is not None:
            mask = None if self.batch is None else self.batch.row_mask(name)
            member = columns_of(at.pos, self.batch, int(rows.max()) + 1, device, mask=mask)
            chosen = member[:, rows]
        if edit.phase != "both":
            phase = (decode if edit.phase == "decode" else ~decode)[None]
            chosen = phase if chosen is None else chosen & phase
        return chosen

    def _rows(self, name: str, count: int, device: torch.device, keys: Tensor | None, site: Site) -> Tensor:
        if site in (Site.K, Site.V) and keys is not None:
            return keys
        flow = self.flows[name]
        return flow.past + max(0, flow.width - count) + torch.arange(count, device=device)

    def _row_mask(self, name: str, rows: Tensor) -> Tensor | None:
        mask = None if self.batch is None else self.batch.row_mask(name)
        if mask is None or bool(mask.all()) or not len(rows):
            return None
        mask = mask.to(rows.device)
        beyond = int(rows.max()) + 1 - mask.shape[1]
        if beyond > 0:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], beyond)], dim=1)
        return mask[:, rows]

    # ---- recording --------------------------------------------------------------------------------------------------

    def _record(self, key: Key, x: Tensor, held: Tensor | None = None) -> None:
        name, site, layer = key
        wish = self.wishes[key]
        for at in wish.watches:
            self.seen[at] = x if at.heads is None else x.index_select(site.axes.index("head"), head_index(at.heads, x))
        packed = self.model.stacks[name].family.packed
        for reading in self.plan.readings_of(key):
            if held is not None and (reading.columns is None or not torch.equal(held, reading.columns.to(held.device))):
                continue
            value = self._selected(reading, site, x, held)
            again = packed and site.inside_attention and layer in reading.values and key in self._once
            if self.gradients:
                reading.nodes[layer] = [*reading.nodes[layer], x] if again else [x]
            if again:
                value = stitch(reading.values[layer], value, site, 0.0 if site is Site.PATTERN else -torch.inf)
            if self.passing is not None:
                self.passing(key, value)
                value = value.new_empty(0)  # it was reached; what it held may go
            reading.values[layer] = value
        self._once.add(key)

    def _selected(self, reading: Reading, site: Site, x: Tensor, held: Tensor | None) -> Tensor:
        value = x
        if site is Site.PATTERN or site is Site.SCORES:
            value = self._blank_padding(reading, site, value, held)
        value = select(value, site, reading.at.heads, reading.columns if held is None else None)
        return value.clone() if value is x and site in _ALIASED else value

    def _blank_padding(self, reading: Reading, site: Site, x: Tensor, held: Tensor | None) -> Tensor:
        mask = None if self.batch is None else self.batch.row_mask(reading.stack)
        if mask is None or bool(mask.all()) or held is not None or mask.shape[-1] != x.shape[-2]:
            return x
        return x.masked_fill(~mask.to(x.device)[:, None, :, None], 0.0 if site is Site.PATTERN else -torch.inf)

    def check_fired(self) -> None:
        """Refuse to pass over an edit whose site was never reached.

        Raises:
            EditDidNotFire: naming the edit, its stack and layers.
        """
        for number, edit in enumerate(self.edits):
            for at in edit.at:
                stack = named_stack(self.model.stacks, self.model.default_stack, at.stack)
                layers = self.plan.edit_layers[(number, at)]
                missed = [i for i in layers if (number, stack.name, at.site, i) not in self.fired]
                if missed:
                    raise EditDidNotFire(
                        f"{edit} did not fire at layers {missed} of stack {stack.name!r}: the forward pass never "
                        f"reached {at.site!r} there. Was the stack run at all (its inputs given), and is the module "
                        f"{stack.path} the one in use?"
                    )

    def check_read(self) -> None:
        """Refuse to return a run in which an address was never reached.

        Raises:
            RunFailed: naming the address and layers.
        """
        for reading in self.readings:
            missed = [layer for layer in reading.layers if layer not in reading.values]
            if missed:
                raise RunFailed(
                    f"{reading.at} was never reached at layers {missed} of stack {reading.stack!r} in this forward. "
                    "Were the stack's inputs given (images, encoder ids)?"
                )


def _row_shape(chosen: Tensor, site: Site, batch: int) -> Tensor:
    if chosen.shape[0] not in (1, batch):
        chosen = chosen.repeat_interleave(batch // chosen.shape[0], dim=0)
    return chosen[:, None, :, None] if "query" in site.axes else chosen.view(*chosen.shape, *[1] * (len(site.axes) - 2))


def _past_length(cache: Any) -> int:
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if length is not None else 0
