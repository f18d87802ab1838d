"""``relevance_run``: a forward whose backward carries relevance (layer-wise relevance propagation) for gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.address import At, Site
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.relevance_rules import Entrywise, RelevanceRules, over
from interp.model.run import Metric, Run, run
from interp.model.scopes import hooked_output, removing
from interp.model.sweep import logits_for


@dataclass(frozen=True, eq=False)
class RelevanceRun:
    """A run whose ``grad`` holds what stands for gradients: times the value at an address, its relevance.

    Attributes:
        run: the run; its values are those of the plain model (to rounding).
        given: the sum of the relevance that the logits were given, over the batch.
        size: the sum of its absolute values.
        arrived: the sum of what arrived at the inputs of the first blocks.
    """

    run: Run
    given: float
    size: float
    arrived: float

    def slope(self, at: At) -> Tensor:
        """``R(x) / x`` at an address that was read."""
        assert self.run.grad is not None
        return self.run.grad[at]

    @property
    def lost(self) -> float:
        """What did not arrive, as a share of what was given."""
        return abs(self.given - self.arrived) / self.size if self.size else 0.0


def relevance_run(model: Model, batch: Batch, metric: Metric, reads: Iterable[At]) -> RelevanceRun:
    """One forward and one backward of ``batch`` that carries relevance from the logits to ``reads``.

    The logits are given ``dm/dlogits``: 1 at the logit that is explained. From there

    - matrix products with weights: the alpha-beta rule with alpha = 1 (Bach et al., 2015; the rule that Chefer, Gur and
      Wolf, 2021a, name), biases left out;
    - activations and norms: each entry's relevance stays on the entry, a norm's mean and scale held still;
    - residual sums: in proportion to the size of what each adds;
    - products of two activations: half each;
    - attention: the maps are held still, and what a head's z carries goes to the values in proportion to what each adds
      to it. Half of it is said to be the map's; it goes on through the values as well, since a softmax, which a
      constant on all scores leaves alone, has no rule that keeps sums;
    - everything else: in proportion to what each entry contributes by its derivative.

    The rules after the first are ours.

    Args:
        model: the handle, left as found.
        batch: the prompts.
        metric: whose slopes at the logits are passed back.
        reads: addresses.
    """
    stacks = [stack for stack in model.stacks.values() if not stack.cross and not stack.family.packed]
    inputs = {stack.name: At(Site.RESID_PRE, 0, stack=stack.name) for stack in stacks}
    wanted = list(dict.fromkeys([*reads, *inputs.values()]))
    logits, given = _Given(metric), set[str]()
    with ExitStack() as guard:
        for stack in stacks:
            guard.enter_context(_noticing(stack.blocks[0], stack.name, given))
        guard.enter_context(relevance_rules(model, logits))
        made = run(model, batch, wanted, grad=logits, logits=logits_for(metric, model))
    assert made.grad is not None
    # the text of a vision-language model already holds what its images brought
    roots = [model.default_stack] if model.default_stack in given else list(inputs)
    arrived = sum(
        float((made[inputs[name]].double() * made.grad[inputs[name]].double()).sum())
        for name in roots
        if name in inputs
    )
    return RelevanceRun(made, logits.total, logits.size, arrived)


@contextmanager
def relevance_rules(model: Model, metric: _Given | None = None) -> Iterator[RelevanceRules]:
    """Inside, backward passes carry relevance. The model is as found afterwards.

    Args:
        model: the handle.
        metric: is told of the rules, so that its own slopes are gradients.
    """
    rules = RelevanceRules()
    with ExitStack() as guard:
        guard.enter_context(_parameters_held(model.hf))
        for module in model.hf.modules():
            if not list(module.children()):
                _ruled(guard, rules, module)
        if metric is not None:
            metric.rules = rules
        guard.enter_context(rules)
        yield rules


def _ruled(guard: ExitStack, rules: RelevanceRules, module: nn.Module) -> None:
    """Hooks by which a norm or an activation passes each entry's relevance to the entry it came from."""
    norm = "norm" in type(module).__name__.lower()
    if not norm and (list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))):
        return
    known: dict[int, bool] = {}
    running: list[Tensor | None] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        x = tensors[0] if len(tensors) == 1 and tensors[0].is_floating_point() else None
        if x is not None and not norm:
            width = x.shape[-1] if x.ndim else 0
            if width not in known:
                known[width] = _entry_by_entry(rules, module, x)
            x = x if known[width] else None
        if x is not None:
            rules.paused += 1
        running.append(x)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = running.pop()
        if x is None:
            return None
        rules.paused -= 1
        if not x.requires_grad or not isinstance(output, Tensor) or output.shape != x.shape:
            return None
        return Entrywise.apply(x, output.detach())

    guard.enter_context(removing(module.register_forward_pre_hook(enter, with_kwargs=True)))
    guard.enter_context(hooked_output(module, leave))


def _entry_by_entry(rules: RelevanceRules, module: nn.Module, x: Tensor) -> bool:
    """Whether each entry of what a module gives depends on the same entry of what it is given alone."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 3, max(1, x.shape[-1]), generator=draw).to(x.device, x.dtype)
    order = torch.randperm(rows.numel(), generator=draw).to(x.device)
    rules.paused += 1
    try:
        with torch.no_grad():
            made = module.forward(rows)
            mixed = module.forward(rows.flatten()[order].view(rows.shape))
        if not isinstance(made, Tensor) or made.shape != rows.shape:
            return False
        return bool(torch.allclose(made.flatten()[order], mixed.flatten(), rtol=1e-3, atol=1e-5))
    except Exception:  # a module that wants something else
        return False
    finally:
        rules.paused -= 1


@contextmanager
def _parameters_held(hf: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for a gradient: what does depends on the inputs."""
    asking = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _noticing(block: nn.Module, name: str, given: set[str]) -> Iterator[None]:
    """Notes whether the first block's input depends on another stack's, before a graph is started there."""

    def notice(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(isinstance(value, Tensor) and value.requires_grad for value in (*args[:1], kwargs.get("hidden_states"))):
            given.add(name)

    with removing(block.register_forward_pre_hook(notice, with_kwargs=True)):
        yield


class _Given:
    """The metric's slopes at the logits, given to the logits as relevance.

    Attributes:
        total: their sum over the batch.
        size: the sum of their absolute values.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        if hasattr(metric, "positions"):
            self.positions = metric.positions  # pyright: ignore[reportFunctionMemberAccess]
        self.__name__ = str(getattr(metric, "__name__", type(metric).__name__))
        self.total = self.size = 0.0
        self.rules: RelevanceRules | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Float[Tensor, " batch"]:
        """``sum (dm/dlogit / logit) logit``, whose gradient times the logits is the slope."""
        leaf = logits.detach().requires_grad_()
        if self.rules is not None:
            self.rules.paused += 1
        try:
            with torch.enable_grad():
                values = self.metric(leaf, batch)
                (slope,) = torch.autograd.grad(values.sum(), [leaf])
            carried = over(slope, leaf.detach())
            self.total, self.size = float(slope.double().sum()), float(slope.double().abs().sum())
            return (carried * logits).flatten(1).sum(1)
        finally:
            if self.rules is not None:
                self.rules.paused -= 1
