"""Whether what a ViT head writes names the image's class, and whether its value vectors do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.address import Site
from interp.errors import BadInput, Unsupported
from interp.model.class_head import ClassHead, Kind, class_head
from interp.model.linear_parts import affine_map
from interp.model.run import run
from interp.model.stacks import project_out
from interp.names import lookup
from interp.scores.ask import Ask, Measured
from interp.scores.grids.grid import Given, PatchGrid, patch_grid
from interp.scores.reducer import Reducer

_TIES = {"mean": "a tie counts half", "best": "a tie counts for the class", "worst": "a tie counts against it"}
_TOKENS = {"cls": "the CLS token", "patches": "the mean over patches"}
_TRUTHS = {"answers": "the batch's right answers", "predicted": "what the model says"}


def identifiability(
    logits: Float[Tensor, "*batch cls"], classes: Int[Tensor, "*batch"], *, ties: str = "mean"
) -> Float[Tensor, "*batch"]:
    """``r = 1 - rank / C`` of each class, where the rank counts the classes with a larger logit (0 is the top).

    Args:
        logits: over C classes.
        classes: the class in question.
        ties: classes with the same logit count half (``"mean"``: constant logits give about 1/2), not at all
            (``"best"``) or wholly (``"worst"``).

    Random logits give ``1/2 + 1/(2C)`` on average. Vilas et al., 2023.

    Example:
        >>> identifiability(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([2])).tolist()
        [0.75]
    """
    lookup(ties, _TIES, "way to break ties")
    own = logits.gather(-1, classes.unsqueeze(-1))
    larger = (logits > own).sum(-1).double()
    same = (logits == own).sum(-1).double() - 1
    return 1 - (larger + {"mean": 0.5, "best": 0.0, "worst": 1.0}[ties] * same) / logits.shape[-1]


class Identifiability(Reducer):
    """``1 - rank / C`` of the true class in what each head writes at CLS, or its mean over patches.

    Args:
        ask: what is scored.
        head: the model's class head.
        kind: which tokens.
        places: their positions.
        classes: ``[batch]``.
        ties: how ties are counted.
    """

    sites = frozenset({Site.Z})
    maps = False

    def __init__(self, ask: Ask, head: ClassHead, kind: Kind, places: Tensor, classes: Tensor, ties: str) -> None:
        super().__init__(ask)
        self.head, self.places, self.classes, self.ties = head, places, classes, ties
        self.kind: Kind = kind
        self.found: dict[int, Tensor] = {}

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The mean over tokens of this layer's heads, one head at a time."""
        z = seen[Site.Z][:, self.places.to(seen[Site.Z].device)]
        own = self.ask.stack.layer(layer)
        wanted = self.classes.to(z.device)[:, None].expand(-1, z.shape[1])
        each = []
        for index in range(own.n_heads):
            logits = self.head.logits(project_out(own, z, (index,))[:, :, 0], self.kind)
            each.append(identifiability(logits, wanted, ties=self.ties).mean(1))
        self.found[layer] = torch.stack(each, dim=1)

    def measured(self) -> Measured:
        """By layer."""
        return Measured(self.found, metadata={"tokens": _TOKENS[self.kind], "ties": _TIES[self.ties]})


def class_identifiability(
    ask: Ask,
    *,
    tokens: str | None = None,
    of: str = "answers",
    ties: str = "mean",
    grid: Given | None = None,
) -> Identifiability:
    """How high the image's class ranks among all classes in what a ViT head writes: ``1 - rank / C``, chance 1/2.

    Each head's RESULT goes through the model's final norm and classifier as if it were the residual stream, without
    the classifier's bias.

    Args:
        ask: what is scored: a vision stack with a class head.
        tokens: ``"cls"`` or ``"patches"`` (a mean over them); None for CLS, or patches in models that average them.
        of: the class: ``"answers"`` the right answers of the batch (class ids), ``"predicted"`` what the model says.
        ties: ``"mean"``, ``"best"`` or ``"worst"``; see :func:`identifiability`.
        grid: the patches, where the model's own are not understood.

    Raises:
        Unsupported: no image classifier.
        BadInput: no answers, or ``"cls"`` where no token stands for the class.

    Vilas et al., 2023 (Analyzing Vision Transformers in Class Embedding Space).
    """
    lookup(ties, _TIES, "way to break ties")
    head, places = _found(ask, grid)
    kind = _kind(ask, tokens, head)
    return Identifiability(ask, head, kind, places[kind], _classes(ask, of, head), ties)


def class_value_agreement(
    ask: Ask, *, tokens: str | None = None, of: str = "answers", grid: Given | None = None
) -> Measured:
    """``max over the d_head value vectors v of a head of cos(W_c, v)``: whether one of them points to the class.

    The value vectors of a head are the rows of its own part of the output projection, so that heads are not mixed.

    Args:
        ask: what is scored.
        tokens: which half of the classifier, where CLS and patches have one each.
        of, grid: as in :func:`class_identifiability`.

    Raises:
        Unsupported: no image classifier, or a projection that is no matrix.

    Vilas et al., 2023.
    """
    head, _ = _found(ask, grid)
    wanted = head.directions(_kind(ask, tokens, head))[_classes(ask, of, head)]
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)  # [batch, d_model]
    made = {}
    for layer in ask.layers:
        own = ask.stack.layer(layer)
        affine = affine_map(own.out, own.n_heads * own.d_head, next(own.out.parameters()))
        if affine is None:
            raise Unsupported(f"{ask.name}: the output projection of layer {layer} is no matrix, so it has no columns.")
        vectors = affine.weight.view(own.n_heads, own.d_head, -1)
        vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        made[layer] = torch.einsum("hdm,bm->bhd", vectors, wanted).amax(-1)
    return Measured(made)


def _found(ask: Ask, grid: Given | None) -> tuple[ClassHead, dict[str, Tensor]]:
    if ask.stack.name != ask.model.default_stack or not ask.stack.name.startswith("vision"):
        raise Unsupported(
            f"{ask.name}: stack {ask.stack.name!r} of {ask.model.name!r} has no class head; it is a score of image "
            "classifiers, such as a ViT with its classifier."
        )
    patches: PatchGrid = patch_grid(ask.model, ask.batch, ask.stack.name, grid=grid, name=ask.name)
    special = dict(zip(patches.skipped, patches.special, strict=False))
    cls = [place for place in patches.skipped if special.get(place, "class") == "class"]
    places = {"cls": torch.tensor(cls[:1], dtype=torch.long), "patches": patches.order}
    return class_head(ask.model, ask.batch, **places), places


def _kind(ask: Ask, tokens: str | None, head: ClassHead) -> Kind:
    if tokens is not None:
        lookup(tokens, _TOKENS, "kind of token")
    chosen: Any = head.kinds[0] if tokens is None else tokens
    if chosen not in head.kinds:
        raise BadInput(
            f"{ask.name}: tokens={tokens!r}, but this model averages its tokens: none stands for the class. Use "
            "tokens='patches'."
        )
    return chosen


def _classes(ask: Ask, of: str, head: ClassHead) -> Tensor:
    lookup(of, _TRUTHS, "class (of=)")
    if of == "predicted":
        logits = run(ask.model, ask.batch).logits
        assert logits is not None
        return logits.argmax(-1)
    answers = ask.batch.answers
    if answers is None:
        raise BadInput(
            f"{ask.name}: no class is known; give encode(..., answers=class ids), or of='predicted' for what the model "
            "says."
        )
    wrong = (answers[:, 0] < 0) | (answers[:, 0] >= head.n_classes)
    if bool(wrong.any()):
        raise BadInput(
            f"{ask.name}: answers {answers[:, 0][wrong].tolist()[:5]} are no class of this model, which has classes 0 "
            f"to {head.n_classes - 1}."
        )
    return answers[:, 0]
