"""Which entries of which projections become a layer's q, k and v: the projections are dyed, and the dye is followed.

One short forward is run in which every projection inside an attention gives random numbers in place of its output, and
every norm inside an attention passes its input on. Each entry of q, k and v at a prompt's first position (where a
rotation by the position is the identity) is then one of those random numbers, times a constant: so every fused or
interleaved layout, shared key/value head and latent projection is found, and nothing is known of a family's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.dye_pool import Pool, Strand, Traced
from interp.model.dyes import LayerDyes, dyed
from interp.model.handle import Model
from interp.model.inputs import takes
from interp.model.linear_parts import Gain, Scaling, nearness
from interp.model.operands import Operands, recording_operands
from interp.model.probe import probe_batch, probe_inputs
from interp.model.scopes import evaluating
from interp.model.session import Session
from interp.model.stacks import Layer, Stack
from interp.model.suspension import foreign_hooks, suspended

_SITES = (Site.Q, Site.K, Site.V, Site.PATTERN, Site.Z)
_ROWS = 16  # prompts of the probe: with fewer, two random columns might look alike
_PARALLEL = 1e-3  # 1 - cosine of z and the mixture of v
_GROUP_STEPS = 2  # positions at which a rotation must be a power of the first


@dataclass(frozen=True, eq=False)
class LayerWiring:
    """What was found at one layer.

    Attributes:
        strands: the projections that q, k and v come from.
        q, k, v: where each entry ``[head, d_head]`` comes from; K and V have KV heads.
        turn: ``[d_qk, d_qk]`` what a query is multiplied by from the right per position (the rotary embedding; an
            identity without one); None where it is not a power of one matrix, or was not seen.
        mixes: None where z is the mixture of v under the pattern (times a number per head); else what stands between.
        reader: the norm that attention reads the residual through; None where it reads the residual itself.
        writer: what stands between the output projection and the residual; None for nothing.
        like: an empty tensor of the dtype and device of the output projection's output.
        read_trouble, write_trouble: why what stands there is not understood; empty where it is.
    """

    strands: tuple[Strand, ...]
    q: Traced
    k: Traced
    v: Traced
    turn: Float[Tensor, "d_qk d_qk"] | None
    mixes: str | None
    reader: Scaling | None
    writer: Scaling | None
    like: Tensor
    read_trouble: str = ""
    write_trouble: str = ""

    @property
    def read(self) -> Gain | None:
        """What ``reader`` multiplies by, as its parameters are now."""
        return None if self.reader is None else self.reader.gain()

    @property
    def write(self) -> Gain | None:
        """What ``writer`` multiplies by, as its parameters are now."""
        return None if self.writer is None else self.writer.gain()


@dataclass(frozen=True, eq=False)
class StackWiring:
    """The wiring of every layer of a stack that has attention, and what it was found on.

    Attributes:
        layers: by block index.
        modules: those of the blocks.
        state: where their parameters lie, and how often each was written to.
        hooks: somebody else's hooks that were in force.
    """

    layers: Mapping[int, LayerWiring]
    modules: Sequence[nn.Module] = field(default_factory=tuple)
    state: Sequence[tuple[int, int]] = field(default_factory=tuple)
    hooks: frozenset[int] = frozenset()

    def holds(self, model: Model, stack: Stack) -> bool:
        """Whether the stack still consists of the modules that were traced, with the parameters that they had."""
        now = _modules(stack)
        same = len(now) == len(self.modules) and all(a is b for a, b in zip(now, self.modules, strict=True))
        return same and _state(stack) == self.state and foreign_hooks(model.hf) == self.hooks


def wiring_of(model: Model, stack: Stack) -> StackWiring:
    """The wiring of ``stack``, traced by one forward of a few tokens, and again once modules or parameters change.

    Edits that are in force (``interp.edited``) are suspended for that forward; the model is left as found.

    Raises:
        Unsupported: an entry of q, k or v is no entry of a projection, with the layer and the reason.
    """
    known = model.wirings.get(stack.name)
    if known is not None and known.holds(model, stack):
        return known
    with suspended(model.hf):
        made = _traced(model, stack)
    model.wirings[stack.name] = made
    return made


def _modules(stack: Stack) -> list[nn.Module]:
    return [module for block in stack.blocks for module in block.modules()]


def _state(stack: Stack) -> list[tuple[int, int]]:
    """Address and version of every parameter of the blocks: both tell of training, loading and folding."""
    return [
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        for block in stack.blocks
        for parameter in block.parameters()
    ]


def _traced(model: Model, stack: Stack) -> StackWiring:
    layers = [layer for layer in stack.layers if layer is not None]
    if not layers:
        raise Unsupported(f"Stack {stack.name!r} ({stack.model_type}) has no attention whose weights could be read.")
    rows = max(_ROWS, *(-(-2 * layer.d_head // layer.n_heads) for layer in layers))
    trouble = Unsupported(f"The weights of stack {stack.name!r} ({stack.model_type}) cannot be told apart: no inputs.")
    for inputs in _candidates(model, rows):
        try:
            return _traced_on(model, stack, layers, inputs, rows)
        except Unsupported as error:
            trouble = error
    raise trouble


def _candidates(model: Model, rows: int) -> Iterator[dict[str, Any]]:
    """Probe inputs, then the same with positions counted from 0, for models that count them otherwise."""
    for inputs in probe_inputs(model, rows):
        yield inputs
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor) and takes(model, "position_ids"):
            yield {**inputs, "position_ids": torch.arange(ids.shape[1], device=ids.device).expand(rows, -1)}


def _traced_on(
    model: Model, stack: Stack, layers: Sequence[Layer], inputs: Mapping[str, Any], rows: int
) -> StackWiring:
    """What one dyed forward of ``inputs`` shows.

    Raises:
        Unsupported: the forward fails, does not reach the stack, or an entry of q, k or v is no dye.
    """
    batch = probe_batch(model, inputs)
    seen = {
        layer.index: LayerDyes(layer, stack.blocks[layer.index], stack.tap(Site.ATTN_OUT, layer.index).module, rows)
        for layer in layers
    }
    calls: dict[int, list[Operands]] = {layer.index: [] for layer in layers}
    offered = [site for site in _SITES if stack.refusal(site, False) is None]
    session = Session(
        model, batch, [], [At(site, layer.index, stack=stack.name) for site in offered for layer in layers]
    )
    with torch.no_grad(), evaluating(model.hf), ExitStack() as guard:
        guard.enter_context(session)
        for index, dyes in seen.items():
            guard.enter_context(dyed(dyes))
            if not stack.family.interface:
                guard.enter_context(recording_operands(stack.layer(index).attention, calls[index]))
        try:
            model.hf(**batch.inputs)
        except Exception as error:  # a family's own complaint about inputs made up here
            raise Unsupported(
                f"The weights of stack {stack.name!r} ({stack.model_type}) cannot be told apart: the probe forward "
                f"failed ({type(error).__name__}: {error})."
            ) from error
    found = {(reading.at.site, layer): value for reading in session.readings for layer, value in reading.values.items()}
    if any((Site.Z, layer.index) not in found for layer in layers):
        raise Unsupported(
            f"The weights of stack {stack.name!r} ({stack.model_type}) cannot be told apart: the probe's inputs do not "
            "reach it."
        )
    made = {
        layer.index: _layer_wiring(stack, layer, seen[layer.index], found, calls[layer.index], rows) for layer in layers
    }
    return StackWiring(made, tuple(_modules(stack)), _state(stack), foreign_hooks(model.hf))


def _layer_wiring(
    stack: Stack,
    layer: Layer,
    dyes: LayerDyes,
    found: Mapping[tuple[Site, int], Tensor],
    calls: Sequence[Operands],
    rows: int,
) -> LayerWiring:
    where = f"layer {layer.index} of stack {stack.name!r} ({stack.model_type})"
    vectors = _vectors(stack, layer, found, calls, rows)
    if vectors is None:
        raise Unsupported(f"The q, k and v of {where} never show, so that its projections cannot be told apart.")
    q, k, v = (each.reshape(rows, -1, *each.shape[2:]) for each in vectors)
    strands = _strands(dyes, rows, where)
    pool = Pool(strands, dyes, rows)
    traced = {}
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        made = pool.trace(tensor[:, 0])
        if made is None:
            raise Unsupported(
                f"The {name} of {where} is no selection of its projections' outputs (something mixes or bends them), "
                "so that no matrix per head can be given. Scores of patterns and outputs still work."
            )
        traced[name] = made
    turn = _turn(pool, traced, q, k) if q.shape[1] == k.shape[1] and not (stack.family.packed or stack.cross) else None
    reader, read_trouble = _reading(stack, dyes)
    writer, write_trouble = _writing(stack, dyes)
    mixes = _mixing(found, layer, v)
    return LayerWiring(
        strands=tuple(strands),
        q=traced["q"],
        k=traced["k"],
        v=traced["v"],
        turn=turn,
        mixes=mixes,
        reader=reader,
        writer=writer,
        like=torch.empty(0) if dyes.raw is None else dyes.raw.flatten()[:0].clone(),
        read_trouble=read_trouble,
        write_trouble=write_trouble,
    )


def _vectors(
    stack: Stack,
    layer: Layer,
    found: Mapping[tuple[Site, int], Tensor],
    calls: Sequence[Operands],
    rows: int,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """q, k, v ``[batch, pos, head, d_head]`` of the dyed forward, K and V with KV heads."""
    if stack.family.interface:
        read = tuple(found.get((site, layer.index)) for site in (Site.Q, Site.K, Site.V))
        return None if any(each is None for each in read) else read  # type: ignore[return-value]
    made = calls[0].vectors(rows) if len(calls) == 1 else None
    if made is None:
        return None
    q, k, v = made
    return q, _kv_heads(k, layer), _kv_heads(v, layer)


def _kv_heads(x: Tensor, layer: Layer) -> Tensor:
    """``x`` with one entry per KV head, where it had been expanded to query heads."""
    return x[:, :, :: layer.n_heads // layer.n_kv_heads] if x.shape[2] == layer.n_heads else x


def _strands(dyes: LayerDyes, rows: int, where: str) -> list[Strand]:
    """The projections of a layer, each with where its input comes from."""
    if not dyes.outputs:
        raise Unsupported(f"No projection was found inside the attention of {where}.")
    strands: list[Strand] = []
    sources: list[int | Traced | None] = []
    modules = list(dyes.outputs)
    bare = [Strand(module, dyes.inputs[module].shape[-1], dyes.inputs[module][:0], 0) for module in modules]
    pool = Pool(bare, dyes, rows)
    for module in modules:
        x = dyes.inputs[module]
        root = next((i for i, own in enumerate(dyes.roots) if own.shape == x.shape and torch.equal(own, x)), None)
        sources.append(root if root is not None else pool.trace(x.reshape(rows, -1, x.shape[-1])[:, 0]))
    for strand, source in zip(bare, sources, strict=True):
        # an input that is neither is of a projection beside the point (a gate of z): its entries are refused if used
        strands.append(Strand(strand.module, strand.width, strand.like, -1 if source is None else source))
    return strands


def _turn(pool: Pool, traced: Mapping[str, Traced], q: Tensor, k: Tensor) -> Tensor | None:
    """The matrix by which a query and a key are turned from one position to the next."""
    if q.shape[1] <= _GROUP_STEPS or q.shape[-1] != k.shape[-1]:
        return None
    width, near = q.shape[-1], max(nearness(q.dtype), 1e-4)

    def pairs(name: str, tensor: Tensor, position: int) -> tuple[Tensor, Tensor]:
        return (
            pool.at(traced[name], position).reshape(-1, width),
            tensor[:, position].double().reshape(-1, width),
        )

    before, after = pairs("q", q, 1)
    if len(before) < width:
        return None
    turn = torch.linalg.lstsq(before, after).solution
    left, _, right = torch.linalg.svd(turn)
    turn = left @ right  # the nearest rotation
    for step in range(1, _GROUP_STEPS + 1):
        power = torch.linalg.matrix_power(turn, step)
        for name, tensor in (("q", q), ("k", k)):
            before, after = pairs(name, tensor, step)
            if float((before @ power - after).abs().max()) > near * float(after.abs().max()):
                return None
    return turn


def _reading(stack: Stack, dyes: LayerDyes) -> tuple[Scaling | None, str]:
    """The norm through which attention reads the residual, and why it is not understood."""
    x = dyes.roots[0]
    if dyes.residual is not None and dyes.residual.shape == x.shape and torch.equal(dyes.residual, x):
        return None, ""
    if stack.family.norm == "post":
        return None, ""
    for module, before, after in dyes.beside:
        through = stack.cross or dyes.residual is None or before.shape != dyes.residual.shape
        if (through or torch.equal(before, dyes.residual)) and after.shape == x.shape and torch.equal(after, x):  # pyright: ignore[reportArgumentType]
            norm = Scaling.of(module, before)
            if norm is not None:
                return norm, ""
    return None, "what stands between the residual and its attention is no norm of the residual"


def _writing(stack: Stack, dyes: LayerDyes) -> tuple[Scaling | None, str]:
    """What stands between the output projection and the residual, and why it is not understood."""
    raw, written = dyes.raw, dyes.written
    if raw is None or written is None or raw.numel() != written.numel():
        return None, "what its attention adds to the residual was not seen"
    if torch.equal(raw.reshape(written.shape), written):
        return None, ""
    norm = Scaling.of(dyes.writer, raw.reshape(written.shape))
    return norm, "" if norm is not None else "what stands between its output projection and the residual is no norm"


def _mixing(found: Mapping[tuple[Site, int], Tensor], layer: Layer, v: Tensor) -> str | None:
    """None where z is the mixture of v under the pattern; else what is wrong."""
    pattern, z = found.get((Site.PATTERN, layer.index)), found[(Site.Z, layer.index)]
    if pattern is None:
        return "its patterns cannot be read, so that it is not known whether z is a mixture of v"
    expanded = v.repeat_interleave(layer.n_heads // v.shape[2], dim=2)
    if pattern.shape[-1] == expanded.shape[0] * expanded.shape[1]:  # packed: one map over all images
        expanded = expanded.reshape(1, -1, *expanded.shape[2:])
    z = z.reshape(expanded.shape[0], -1, *z.shape[2:])
    if expanded.shape[0] != pattern.shape[0] or expanded.shape[-1] != z.shape[-1]:
        return "its z has another shape than the mixture of its v"
    mixture = torch.einsum("bhqk,bkhd->bqhd", pattern.double(), expanded.double())
    cosine = torch.nn.functional.cosine_similarity(mixture, z.double(), dim=-1)
    if float(cosine.min()) > 1 - max(_PARALLEL, nearness(v.dtype)):
        return None
    return "its z is not the mixture of v (a gate stands between them), so that what it copies depends on the token"
