"""The model with a gate on every head, prepared once for many updates: what a fit of gates runs instead of ``run``.

One forward holds every prompt once per mask, mask by mask. Weights are frozen while it is in force, so that no graph of
theirs is kept, and nothing is differentiated below layer 0's z, which no gate reaches. Two shortcuts leave out what
cannot change the targets: everything up to layer 0's z is computed once for all masks, and after the attention of
the last block only the columns asked for go on (columns of one row must be distinct: gradients of a column asked
for twice would count twice). A shortcut splits a block at its attention's output projection, which a
block may not bear (state beside the hidden rows, a second sequence mix): whether results stay the same is for the
caller to check on the very model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interp.errors import EditDidNotFire, RunFailed, Unsupported
from interp.model.handle import Model
from interp.model.inputs import output_embeddings
from interp.model.recording import caching
from interp.model.scopes import Reached, evaluating, hidden_among, removing, replaced_forward
from interp.model.stacks import Layer

_ASSUMED = 4 * 2**30  # bytes, where the system does not say what is free


Forms = Mapping[int, int | None]


class GatedModel:
    """The model with gates in force between ``__enter__`` and ``__exit__``; it is exactly as found afterwards.

    Args:
        model: the handle.
        stack: whose heads are gated; the default stack for ``None``.
        checkpointing: keep only the blocks' inputs for the backward pass and compute each block again there.
        forms: what the attention modules return (layer -> how many items beside their output), as another
            ``GatedModel`` has learned in a forward: then what cannot change the chosen columns is left out, where the
            module says how. ``None``: whole forwards.

    Attributes:
        forms: what this one has learned.

    Raises:
        Unsupported: the model has no unembedding, or the stack packs its rows.
    """

    def __init__(
        self, model: Model, stack: str | None = None, *, checkpointing: bool = False, forms: Forms | None = None
    ) -> None:
        self.model, self.stack = model, model.stack(stack)
        self.checkpointing, self._given = checkpointing, forms
        self.forms: dict[int, int | None] = {}
        if output_embeddings(model) is None:
            raise Unsupported(f"{type(model.hf).__name__} has no unembedding, so no next-token loss can be taken.")
        if self.stack.family.packed:
            raise Unsupported(f"Stack {self.stack.name!r} packs the rows of all images, so a mask cannot have its own.")
        self._layers = [layer for layer in self.stack.layers if layer]
        self._exit = ExitStack()
        self._gates: Tensor | None = None
        self._columns: Tensor | None = None
        self._prompts = 0
        self._stop_at: int | None = None
        self._fired: dict[int, int] = {}

    def __enter__(self) -> GatedModel:
        with ExitStack() as guard:
            guard.enter_context(frozen(self.model.hf))
            guard.enter_context(evaluating(self.model.hf))
            for layer in self._layers:
                hook = layer.out.register_forward_pre_hook(self._gate(layer), with_kwargs=True)
                guard.enter_context(removing(hook))
            head = output_embeddings(self.model)
            guard.enter_context(removing(head.register_forward_pre_hook(self._cut)))
            for layer in (self._layers[0], self._layers[-1]) if self._given is None else ():
                guard.enter_context(removing(layer.attention.register_forward_hook(self._learn_form(layer))))
            for index, block in enumerate(self.stack.blocks):
                own = self._block_forward(index, block)
                if own is not None:
                    guard.enter_context(replaced_forward(block, own))
            self._exit = guard.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def logits(
        self, inputs: Mapping[str, Any], gates: Float[Tensor, "mask layer head"], columns: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "mask batch k vocab"]:
        """``[mask, batch, k, vocab]`` the logits of every prompt at ``columns`` under each mask.

        Args:
            inputs: keywords of the model's forward.
            gates: ``[mask, layer, head]``, layer = block index; cells without a head are not looked at.
            columns: ``[batch, k]`` which columns are unembedded, distinct within a prompt.

        Raises:
            EditDidNotFire: a layer's gates were never reached.
        """
        masks, prompts = gates.shape[0], columns.shape[0]
        self._gates, self._prompts, self._columns = gates, prompts, columns.repeat(masks, 1)
        self._fired, self._stop_at = {}, None
        made = self.model.hf(**{**repeated(inputs, masks, prompts), **caching(self.model, False)})
        self._check_fired()
        return made.logits.unflatten(0, (masks, prompts))

    # ---- the gates --------------------------------------------------------------------------------------------------

    def _gate(self, layer: Layer) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            assert self._gates is not None
            hidden, put = hidden_among(args, kwargs)
            if self._stop_at == layer.index:
                raise Reached(hidden)
            self._fired[layer.index] = self._fired.get(layer.index, 0) + 1
            masks = self._gates.shape[0]
            z = hidden.reshape(masks, -1, layer.n_heads, layer.d_head)
            factor = self._gates[:, layer.index, : layer.n_heads].to(hidden.device, hidden.dtype)
            return put((z * factor[:, None, :, None]).reshape(hidden.shape))

        return hook

    def _check_fired(self) -> None:
        missed = [layer.index for layer in self._layers if layer.index not in self._fired]
        if missed:
            raise EditDidNotFire(
                f"The gates of layers {missed} of stack {self.stack.name!r} were never reached in the forward pass. "
                "Was the stack run at all (its inputs given)?"
            )
        again = [index for index, count in self._fired.items() if count > 1]
        if again:
            raise RunFailed(
                f"The gates of layers {again} of stack {self.stack.name!r} were reached twice in one forward (a "
                "shared or recurrent block); one gate cannot stand for both."
            )

    def _cut(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        assert self._columns is not None
        return (at_columns(args[0], self._columns), *args[1:])

    # ---- blocks -----------------------------------------------------------------------------------------------------

    def _block_forward(self, index: int, block: nn.Module) -> Callable[..., Any] | None:
        """What block ``index`` runs instead of its own forward, ``None`` for its own."""
        forward, layer = block.forward, self.stack.layers[index]
        steps = forward
        if layer is not None and self._given is not None and index in self._given:
            if index == 0:
                steps = self._from_z_once(layer, forward)
            elif index == len(self.stack.blocks) - 1:
                steps = self._on_columns(layer, forward)
        if not self.checkpointing:
            return None if steps is forward else steps

        def kept(*args: Any, **kwargs: Any) -> Any:
            if index == 0 or not torch.is_grad_enabled():
                return steps(*args, **kwargs)
            return checkpoint(self._recomputed(index, steps), *args, use_reentrant=False, **kwargs)

        return kept

    def _recomputed(self, index: int, steps: Callable[..., Any]) -> Callable[..., Any]:
        """``steps``, whose gates count as reached once however often they are computed."""

        def again(*args: Any, **kwargs: Any) -> Any:
            self._fired.pop(index, None)
            return steps(*args, **kwargs)

        return again

    def _from_z_once(self, layer: Layer, forward: Callable[..., Any]) -> Callable[..., Any]:
        def first(*args: Any, **kwargs: Any) -> Any:
            assert self._gates is not None
            hidden = hidden_among(args, kwargs)[0]
            rows, masks = hidden.shape[0], self._gates.shape[0]
            ambiguous = rows in hidden.shape[1:]  # a table by position could pass for one by row
            if rows != masks * self._prompts or ambiguous:
                return forward(*args, **kwargs)
            once = [_first_rows(item, rows, self._prompts) for item in (args, kwargs)]
            z = self._z_of(layer, forward, *once)
            return self._after(layer, forward, z.repeat(masks, *[1] * (z.ndim - 1)), args, kwargs)

        return first

    def _on_columns(self, layer: Layer, forward: Callable[..., Any]) -> Callable[..., Any]:
        def last(*args: Any, **kwargs: Any) -> Any:
            assert self._columns is not None
            hidden, put = hidden_among(args, kwargs)
            few = self._columns.shape[1] < hidden.shape[1]
            if hidden.shape[0] != self._columns.shape[0] or not few:
                return forward(*args, **kwargs)
            z = at_columns(self._z_of(layer, forward, args, kwargs), self._columns)
            made = self._after(layer, forward, z, *put(at_columns(hidden, self._columns)))
            if isinstance(made, Tensor):
                return self._spread(made, hidden)
            return (self._spread(made[0], hidden), *made[1:])

        return last

    def _spread(self, few: Tensor, hidden: Tensor) -> Tensor:
        """``few`` at the columns asked for and 0 elsewhere: what follows wants every position."""
        assert self._columns is not None
        rows = torch.arange(few.shape[0], device=few.device)[:, None]
        return torch.zeros_like(hidden).index_put((rows, self._columns.to(few.device)), few)

    def _z_of(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        self._stop_at = layer.index
        try:
            forward(*args, **kwargs)
        except Reached as reached:
            return reached.z
        finally:
            self._stop_at = None
        raise RunFailed(f"Layer {layer.index} of stack {self.stack.name!r} never reached its output projection.")

    def _after(self, layer: Layer, forward: Callable[..., Any], z: Tensor, args: Any, kwargs: Any) -> Any:
        """What the block makes of ``z`` in place of its own attention."""
        assert self._given is not None
        others = self._given[layer.index]

        def project(*_: Any, **__: Any) -> Any:
            written = layer.out(z)
            return written if others is None else (written, *[None] * others)

        with replaced_forward(layer.attention, project):
            return forward(*args, **kwargs)

    def _learn_form(self, layer: Layer) -> Callable[..., Any]:
        """Note what the attention module returns beside its output."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.forms[layer.index] = None
            elif isinstance(output, tuple) and all(item is None for item in output[1:]):
                self.forms[layer.index] = len(output) - 1

        return hook


def repeated(inputs: Mapping[str, Any], masks: int, prompts: int) -> dict[str, Any]:
    """The keywords of a forward of every prompt once per mask, mask by mask.

    Raises:
        Unsupported: an input without a prompt axis, and more than one mask.
    """
    made: dict[str, Any] = {}
    for name, value in inputs.items():
        axis = 1 if name == "position_ids" and isinstance(value, Tensor) and value.ndim == 3 else 0  # noqa: PLR2004
        if masks == 1 or not isinstance(value, Tensor) or value.ndim <= axis or name == "cache_position":
            made[name] = value
            continue
        if value.shape[axis] != prompts:
            raise Unsupported(
                f"The input {name!r} {list(value.shape)} has no prompt axis, so prompts cannot be repeated for several "
                "masks in one forward."
            )
        made[name] = value.repeat(*[1] * axis, masks, *[1] * (value.ndim - axis - 1))
    return made


def at_columns(hidden: Float[Tensor, "row pos width"], columns: Int[Tensor, "row k"]) -> Float[Tensor, "row k width"]:
    """``hidden`` at ``columns`` of each row."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    return hidden[rows, columns.to(hidden.device)]


@contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside; afterwards those do that did before."""
    asking = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _first_rows(item: Any, rows: int, wanted: int) -> Any:
    """``item`` with every tensor of ``rows`` rows cut to its first ``wanted``, inside tuples and mappings too."""
    if isinstance(item, Tensor):
        return item[:wanted] if item.ndim > 1 and item.shape[0] == rows else item
    if isinstance(item, tuple | list):
        return type(item)(_first_rows(part, rows, wanted) for part in item)
    if isinstance(item, dict):
        return {name: _first_rows(part, rows, wanted) for name, part in item.items()}
    return item


@contextmanager
def kept_bytes(hf: nn.Module) -> Iterator[list[int]]:
    """A list whose one number counts the bytes that autograd keeps inside, the model's own tensors left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*hf.parameters(), *hf.buffers()]}
    seen: set[int] = set()
    counted = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own | seen:
            seen.add(storage.data_ptr())
            counted[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on ``device``, as far as the system says (else 4 GiB)."""
    accelerator = getattr(torch, device.type, None)
    ask = getattr(accelerator, "mem_get_info", None)
    if device.type != "cpu" and ask is not None:
        return int(ask(device)[0])
    limits = [_ASSUMED]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = [line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
        limits = [int(number) * 1024 for number in found] or limits
    most, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if most.exists() and used.exists() and (text := most.read_text().strip()).isdigit():
        limits.append(max(0, int(text) - int(used.read_text())))
    return min(limits)
