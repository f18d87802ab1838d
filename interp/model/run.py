"""The one door from a model to tensors: one forward with declared reads and edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from interp.address import At, Site
from interp.edits.base import Edit
from interp.errors import BadInput, RunFailed
from interp.model.batch import Batch
from interp.model.finite import check_finite
from interp.model.handle import Model
from interp.model.inputs import fewest_logits, output_embeddings
from interp.model.plan import Plan
from interp.model.reading import Reading
from interp.model.scopes import evaluating
from interp.model.session import Session
from interp.model.unembedding import first_tensor, logits_of, unembedding
from interp.model.views import Readings, at_door

Metric = Callable[[Tensor, Batch], Tensor]
Logits = Literal["all", "last", "answers"] | Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """What one forward gave.

    ``run[At(...)]`` is the tensor an address saw, after the edits: an int layer has no layer axis, otherwise a leading
    ``layer`` axis in the order asked. A narrower address than was read is a slice; a wider one is a ``KeyError``.

    Attributes:
        batch: the prompts.
        logits: ``[batch, pos, vocab]``, ``[batch, k, vocab]`` for chosen positions, ``[batch, class]`` for classifiers,
            ``None`` for a model without a head.
        positions: ``[batch, k]`` columns of the logits, ``None`` for all.
        kernels: ``(stack, layer) -> name`` of the attention that ran.
        grad: by address, the gradient of the metric's sum, ``None`` unless ``grad=`` was given.
        metric: ``[batch]`` the metric's values, where ``grad=`` was given.
        output: the Hugging Face output object.
        edits: the edits in force, as prepared.
    """

    batch: Batch
    logits: Tensor | None
    positions: Tensor | None
    kernels: Mapping[tuple[str, int], str]
    output: Any
    edits: tuple[Edit, ...] = ()
    grad: Readings | None = None
    metric: Tensor | None = None
    _readings: Readings = field(default_factory=lambda: Readings((), {}))

    def __getitem__(self, at: At | Site | str) -> Tensor:
        return self._readings[at]

    def __contains__(self, at: At | Site | str) -> bool:
        return at in self._readings

    def reads(self) -> Iterator[tuple[At, Tensor]]:
        """Everything that was read, one layer at a time: ``(At with an int layer, tensor)``."""
        return self._readings.by_layer()

    def __repr__(self) -> str:
        shape = None if self.logits is None else list(self.logits.shape)
        edits = f", edits {list(self.edits)}" if self.edits else ""
        return f"Run(logits {shape}, read {[reading.at for reading in self._readings.readings]}{edits})"


def run(
    model: Model,
    batch: Batch,
    read: Iterable[At | Site | str] = (),
    edits: Iterable[Edit] = (),
    *,
    logits: Logits = "all",
    grad: Metric | None = None,
    kernels: Mapping[tuple[str, int], str] | Literal["eager"] | None = None,
    graph: bool = False,
) -> Run:
    """What one forward of ``batch`` gives, with ``read`` recorded and ``edits`` in force.

    Args:
        model: the handle.
        batch: the prompts, from :func:`interp.encode`.
        read: addresses to record; they show what the model used after the edits.
        edits: applied in their order at each site; nothing else depends on order.
        logits: which positions are unembedded: ``"all"``, ``"last"`` (each prompt's last token), ``"answers"`` (where
            the answer is predicted) or columns ``[batch, k]``; the others are never multiplied by the unembedding.
        grad: a metric ``(logits, batch) -> [batch]``; its sum is differentiated at every address in ``read``. The model
            keeps its ``.grad``, ``requires_grad``, ``training`` and RNG state.
        kernels: ``"eager"``, or another run's ``kernels``: attention that must run the architecture's eager function,
            so that an unedited run can be compared with an edited one bit for bit.
        graph: keep the autograd graph (for edits whose values require gradients).

    Without reads, edits and ``grad`` this is ``hf(**batch.inputs)``, bit for bit. z, residual and MLP edits stay in the
    model's own kernel; edits of scores, pattern, q, k and v move the addressed layers, and only them, to the
    architecture's eager attention. The model is exactly as found afterwards, also after an error.

    Raises:
        BadInput: an address, edit or position that cannot be, before any forward.
        EditDidNotFire: an edit's site was never reached.
        NotFinite: NaN or infinity at a real token, named with the first layer and site.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]))
        >>> interp.run(model, batch, read=[At(Site.PATTERN, layer=0)])[At(Site.PATTERN, layer=0)].shape
        torch.Size([1, 2, 4, 4])
    """
    if not isinstance(batch, Batch):
        raise BadInput(f"run: the batch is a {type(batch).__name__}; expected what interp.encode(model, ...) returns.")
    addresses = [at_door(item, model) for item in ([read] if isinstance(read, At | Site | str) else read)]
    declared = [edits] if isinstance(edits, Edit) else list(edits)
    check_edits(declared)
    positions = logits_columns(model, batch, logits)
    _check_metric(grad, batch, positions)
    eager = _forced(model, kernels)
    if declared or addresses:
        eager |= Plan(model, batch, declared, addresses, gradients=grad is not None).eager
    prepared, eager = prepared_edits(model, batch, declared, eager)
    with_graph = grad is not None or graph
    if with_graph and torch.is_inference_mode_enabled():
        raise BadInput("run: nothing keeps a gradient inside torch.inference_mode(); call it outside.")
    session = Session(model, batch, prepared, addresses, gradients=grad is not None, eager=sorted(eager))
    plain = not (addresses or prepared or eager or with_graph)
    final: list[Tensor] = []
    with evaluating(model.hf), torch.set_grad_enabled(with_graph):
        with unembedding(model, positions, final):
            if plain:
                output = model.hf(**batch.inputs)
            else:
                with session:
                    output = model.hf(**batch.inputs)
        made = logits_of(output)
        check_finite(
            model, batch, prepared, final, made if made is not None else first_tensor(output, "last_hidden_state")
        )
        session.check_fired()
        session.check_read()
        values, gradients = _differentiate(grad, made, batch, positions, session.readings)
    return Run(
        batch=batch,
        logits=made.detach() if made is not None and not graph else made,
        positions=positions,
        kernels=kernels_of(model, session.eager),
        output=output,
        edits=tuple(prepared),
        grad=gradients,
        metric=values,
        _readings=Readings(tuple(session.readings), model.stacks, detach=not graph, batch=batch),
    )


def check_edits(edits: Sequence[Any]) -> None:
    """Refuse what is not an edit.

    Raises:
        BadInput: with what came.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadInput(
                f"edits: {edit!r} is a {type(edit).__name__}; expected edits such as interp.zero(At(Site.Z, layer=3))."
            )


def _check_metric(metric: Any, batch: Batch, positions: Tensor | None) -> None:
    if metric is None:
        return
    if not callable(metric):
        raise BadInput(
            f"grad={metric!r}: expected a metric (logits, batch) -> [batch], such as interp.logit_difference."
        )
    at_answers = positions is None or torch.equal(positions, batch.read_at[:, None])
    if getattr(metric, "positions", None) == "answers" and not at_answers:
        raise BadInput(
            f"grad={getattr(metric, '__name__', metric)} reads the answer's position, which is not the one that "
            "logits= unembeds; use logits='answers' or logits='all'."
        )


def _forced(model: Model, kernels: Mapping[tuple[str, int], str] | str | None) -> set[tuple[str, int]]:
    if kernels is None:
        return set()
    if kernels == "eager":
        return {
            (name, layer.index)
            for name, stack in model.stacks.items()
            if stack.family.interface
            for layer in stack.layers
            if layer
        }
    if isinstance(kernels, Mapping):
        return {key for key, name in kernels.items() if name == "eager" and model.stacks[key[0]].family.interface}
    raise BadInput(f"kernels={kernels!r}: expected 'eager' or another run's .kernels.")


def kernels_of(model: Model, eager: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """``(stack, layer) -> name`` of the attention that runs when ``eager`` layers are moved."""
    moved = set(eager)
    names: dict[tuple[str, int], str] = {}
    for name, stack in model.stacks.items():
        for layer in stack.layers:
            if layer:
                config = getattr(layer.attention, "config", None) or stack.config
                own = str(config._attn_implementation).removeprefix("headscope_")
                names[(name, layer.index)] = "eager" if (name, layer.index) in moved else own
    return names


@dataclass(frozen=True)
class _Preparation:
    """What an edit may ask of an unedited run, through the same kernels as the edited one."""

    model: Model
    batch: Batch | None
    eager: frozenset[tuple[str, int]]

    def read(self, batch: Batch, at: At) -> Tensor:
        """What ``at`` saw in an unedited run of ``batch``."""
        kernels = {key: "eager" for key in self.eager}
        return run(self.model, batch, read=[at], logits=fewest_logits(self.model), kernels=kernels)[at]


class SharedPreparation:
    """What the edits of many variants may ask of unedited runs: each such run is made once.

    Args:
        model: the handle.
        batch: the prompts that are edited.
    """

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self._runs: dict[tuple[Any, ...], tuple[Batch, Run]] = {}

    def through(self, eager: Iterable[tuple[str, int]]) -> _Shared:
        """What one variant may ask, whose run moves ``eager`` layers."""
        return _Shared(self, self.batch, frozenset(eager))

    def read(self, batch: Batch, at: At, eager: frozenset[tuple[str, int]]) -> Tensor:
        """What ``at`` saw in an unedited run of ``batch`` through the kernels ``eager``."""
        stack = self.model.stack(at.stack)
        key = (id(batch), stack.name, at.site, at.pos if isinstance(at.pos, int | str | None) else id(at.pos), eager)
        if key not in self._runs:
            layers = stack.layers_of(at.with_(layer=None, heads=None))
            reads = [at.with_(layer=layer, heads=None) for layer in layers]
            made = run(
                self.model, batch, read=reads, logits=fewest_logits(self.model), kernels={key: "eager" for key in eager}
            )
            self._runs[key] = (batch, made)  # the batch is held so that its id stays its own
        made = self._runs[key][1]
        if isinstance(at.layer, int):
            return made[at]
        return torch.stack([made[at.with_(layer=layer)] for layer in stack.layers_of(at)])


@dataclass(frozen=True)
class _Shared:
    """The part of a :class:`SharedPreparation` that one variant sees."""

    shared: SharedPreparation
    batch: Batch
    eager: frozenset[tuple[str, int]]

    def read(self, batch: Batch, at: At) -> Tensor:
        """What ``at`` saw in an unedited run of ``batch``."""
        return self.shared.read(batch, at, self.eager)


def prepared_edits(
    model: Model,
    batch: Batch | None,
    edits: Sequence[Edit],
    eager: set[tuple[str, int]] | None = None,
    shared: SharedPreparation | None = None,
) -> tuple[list[Edit], set[tuple[str, int]]]:
    """``(edits with their functions, layers that must run eager)``.

    Args:
        model: the handle.
        batch: the prompts, ``None`` for foreign code.
        edits: as declared; those with ``prepare`` read unedited runs through the kernels of the edited one.
        eager: layers that must run eager, where a plan of these edits has been made already.
        shared: where the unedited runs of other variants are kept.
    """
    layers = Plan(model, batch, edits).eager if eager is None else eager
    preparation = _Preparation(model, batch, frozenset(layers)) if shared is None else shared.through(layers)
    made = [edit if edit.prepare is None else edit.prepare(preparation) for edit in edits]
    return [edit.with_phase(old.phase) for edit, old in zip(made, edits, strict=True)], layers


def logits_columns(model: Model, batch: Batch, logits: Any) -> Tensor | None:
    """``[batch, k]`` the columns that ``logits=`` names, ``None`` for all.

    Raises:
        BadInput: it names none, or the model has no unembedding.
    """
    if isinstance(logits, str) and logits == "all":
        return None
    if output_embeddings(model) is None:
        raise BadInput(
            f"logits={logits!r}: {type(model.hf).__name__} has no unembedding per position; use logits='all'."
        )
    if isinstance(logits, Tensor):
        return batch.columns(logits)
    if logits == "last":
        return batch.columns(-1)
    if logits == "answers":
        return batch.read_at[:, None]
    raise BadInput(f"logits={logits!r}: expected 'all', 'last', 'answers' or columns [batch, k].")


def _differentiate(
    metric: Metric | None, logits: Tensor | None, batch: Batch, positions: Tensor | None, readings: list[Reading]
) -> tuple[Tensor | None, Readings | None]:
    if metric is None:
        return None, None
    if logits is None:
        raise RunFailed("grad= needs logits, and this model gives none; load it with its head.")
    values = metric(logits, batch)
    if values.shape != (len(batch),):
        raise BadInput(
            f"grad: the metric gave shape {list(values.shape)}, expected one number per prompt [{len(batch)}]."
        )
    places = [(reading, layer) for reading in readings for layer in reading.layers]
    nodes = [node for reading, layer in places for node in reading.nodes[layer]]
    found = torch.autograd.grad(values.sum(), nodes, allow_unused=True) if nodes else ()
    gradients: dict[int, dict[int, Tensor]] = {}
    slopes = iter(torch.zeros_like(node) if slope is None else slope for node, slope in zip(nodes, found, strict=True))
    for reading, layer in places:
        parts = [next(slopes) for _ in reading.nodes[layer]]
        gradients.setdefault(id(reading), {})[layer] = reading.gradient(layer, parts)
    made = [
        Reading(reading.at, reading.stack, reading.layers, reading.columns, gradients[id(reading)])
        for reading in readings
    ]
    return values.detach(), Readings(tuple(made), {}, batch=batch)
