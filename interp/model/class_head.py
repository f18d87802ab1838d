"""The way from the last residual stream of an image classifier to its classes, for one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.address import At, Site
from interp.errors import Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.linear_parts import affine_map
from interp.model.norms import find_norms
from interp.model.run import run
from interp.model.scopes import hooked_output
from interp.model.stacks import Stack

Kind = Literal["cls", "patches"]
_NEAR, _NEAR_COARSE = 1e-4, 5e-2  # relative to the largest entry: float32, half precision


@dataclass(frozen=True, eq=False)
class ClassHead:
    """Final norm and classifier of an image classifier, found by behaviour.

    Attributes:
        norm: the last norm, None where there is none.
        classifier: the matrix that makes the classes.
        pooling: what it is given: ``"cls"`` (the first token), ``"mean"`` (of patches or of all tokens: there is no
            token of its own for the class), or ``"cls and mean"`` side by side.
        n_classes: how many classes.
        width: of the residual stream.
    """

    norm: nn.Module | None
    classifier: nn.Module
    pooling: str
    n_classes: int
    width: int

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of token that its logits are made of."""
        return ("patches",) if self.pooling == "mean" else ("cls", "patches")

    def logits(
        self, x: Float[Tensor, "*batch d_model"], kind: Kind = "cls", *, bias: bool = False
    ) -> Float[Tensor, "*batch cls"]:
        """``W LN(x)``: the classes that a token's vector stands for, in float32.

        Args:
            x: residual streams, or what a head writes.
            kind: which half of the classifier, where one belongs to the CLS token and one to the mean of the patches.
            bias: add the classifier's.
        """
        normed = x if self.norm is None else self.norm.forward(x)
        if self.pooling == "cls and mean":
            other = torch.zeros_like(normed)
            normed = torch.cat([normed, other] if kind == "cls" else [other, normed], dim=-1)
        made = self.classifier.forward(normed)
        return (made if bias else made - self.classifier.forward(torch.zeros_like(normed[..., :1, :]))).float()

    def directions(self, kind: Kind = "cls") -> Float[Tensor, "cls d_model"]:
        """``[class, d_model]`` what each class's logit is a product with, in float64.

        Raises:
            Unsupported: the classifier is no matrix.
        """
        halves = 2 if self.pooling == "cls and mean" else 1
        like = next(self.classifier.parameters())
        affine = affine_map(self.classifier, halves * self.width, like)
        if affine is None:
            raise Unsupported(f"The classifier {type(self.classifier).__name__} is no matrix; it has no directions.")
        first = self.width if kind == "patches" and halves > 1 else 0
        return affine.weight[first : first + self.width].mT


def class_head(model: Model, batch: Batch, *, cls: Int[Tensor, " k"], patches: Int[Tensor, " cell"]) -> ClassHead:
    """The class head of an image classifier, checked on ``batch``: from the last residual stream to its own logits.

    Args:
        model: the handle.
        batch: images, for one forward.
        cls: positions of the CLS token, empty without one.
        patches: positions of the patches.

    Raises:
        Unsupported: no image classifier, or one whose way from tokens to classes is not one of those known.
    """
    stack = model.stack()
    refusal = (
        f"class identifiability needs an image classifier whose classes are a matrix times a token (or the mean of its "
        f"tokens), and {type(model.hf).__name__} "
    )
    if not stack.name.startswith("vision"):
        raise Unsupported(refusal + "is none: its logits are not made by a vision stack.")
    final = At(Site.RESID_POST, stack.n_layers - 1)
    with ExitStack() as guard:
        calls = _watched(model, stack, guard)
        seen = run(model, batch, read=[final])
    if seen.logits is None or seen.logits.ndim != 2:  # noqa: PLR2004 - [batch, class]
        raise Unsupported(refusal + "gives no logits of classes; load it with its classifier.")
    logits = seen.logits.detach()
    found = [(module, given) for module, given, made in calls if made.shape == logits.shape and made.equal(logits)]
    if not found:
        raise Unsupported(refusal + "has no matrix that gives its logits.")
    classifier, pooled = found[0]
    near = _NEAR if model.dtype in (torch.float32, torch.float64) else _NEAR_COARSE
    for norm in (*reversed(_outer_norms(model, stack)), None):
        for pooling, made in _poolings(seen[final], norm, cls, patches):
            if made.shape == pooled.shape and bool((made - pooled).abs().max() <= near * pooled.abs().max()):
                return ClassHead(norm, classifier, pooling, logits.shape[-1], seen[final].shape[-1])
    raise Unsupported(refusal + "puts something else between its last block and its classifier.")


def _watched(model: Model, stack: Stack, guard: ExitStack) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Every call of a matrix outside the blocks, as (module, input, output), filled while the model runs."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, args[0].detach(), output.detach()))

    inside = {id(module) for block in stack.blocks for module in block.modules()}
    for module in model.hf.modules():
        if id(module) not in inside and not list(module.children()):
            guard.enter_context(hooked_output(module, see))
    return calls


def _outer_norms(model: Model, stack: Stack) -> list[nn.Module]:
    inside = {id(module) for block in stack.blocks for module in block.modules()}
    return [module for module in find_norms(model).values() if id(module) not in inside]


def _poolings(x: Tensor, norm: nn.Module | None, cls: Tensor, patches: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Ways to make the classifier's input from the last residual stream, by name."""
    apply: Callable[[Tensor], Tensor] = (lambda y: y) if norm is None else norm.forward
    try:
        normed = apply(x)
    except RuntimeError:  # a norm of another width
        return
    over_patches = normed[:, patches.to(x.device)].mean(1)
    if len(cls):
        own = normed[:, int(cls[0])]
        yield "cls", own
        yield "cls and mean", torch.cat([own, over_patches], dim=-1)
    yield "mean", over_patches
    yield "mean", normed.mean(1)
    yield "mean", apply(x[:, patches.to(x.device)].mean(1))
    yield "mean", apply(x.mean(1))
