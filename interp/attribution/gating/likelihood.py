"""The loss of a batch under many masks of gates at once, and its slope by every gate."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution.gating.settings import Checkpointing, Precision
from interp.attribution.gating.targets import Targets, generator_of
from interp.errors import BadInput, NotFinite
from interp.model.gated import Forms, GatedModel, free_memory, kept_bytes
from interp.model.handle import Model
from interp.names import unknown

_TRIED = 2  # prompts, and masks, of the trial
_FEWEST = 16  # rows of one forward below which computing blocks again is better than taking fewer rows
_SHARE = 0.5  # of the free memory
_ROUNDINGS, _WIDEST = 200, 0.05  # roundings of the dtype by which a shortcut may differ, and the largest share of all
# what a block that does not bear being split may raise (our own errors found in a run are RuntimeErrors)
SPLIT_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


class Likelihood:
    """Minus the mean log-probability of the targets under masks, with slopes; in force inside a ``with`` block.

    Every head's z is multiplied by its gate before the output projection, at every position; weights are frozen, and
    the gradient is taken for the gates alone. Exactly what ``interp.run(edits=[gate(At(Site.Z), gates)], graph=True)``
    and autograd give, to rounding.

    Args:
        model: the handle.
        targets: what is predicted.
        stack: whose heads are gated.
        checkpointing: compute each block again in the backward pass; ``"auto"`` where memory asks for it.
        precision: ``"model"`` as it is; ``"bfloat16"`` runs it under autocast, for speed.
        rows: the most rows (prompts times masks) of one forward, ``None`` what fits into memory.

    Attributes:
        notes: what was done another way than planned, in sentences.
    """

    def __init__(
        self,
        model: Model,
        targets: Targets,
        *,
        stack: str | None = None,
        checkpointing: Checkpointing = "auto",
        precision: Precision = "model",
        rows: int | None = None,
    ) -> None:
        if checkpointing not in ("auto", True, False):
            raise BadInput(f"checkpointing={checkpointing!r}: expected 'auto', True or False.")
        if precision not in ("model", "bfloat16"):
            raise BadInput(unknown(precision, ("model", "bfloat16"), "precision"))
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise BadInput(f"rows={rows!r}: expected a whole number of at least 1, or None.")
        self.model, self.targets, self.stack = model, targets, model.stack(stack)
        self.precision, self.rows = precision, rows
        self.notes: list[str] = []
        self._checkpointing = checkpointing
        self._exit = ExitStack()
        self._gated: GatedModel | None = None
        # rows of images that follow one another without a prompt axis: neither masks nor prompts can be told apart
        self._packed = any(_loose(value, len(targets)) for value in targets.batch.inputs.values())

    @property
    def exists(self) -> Bool[Tensor, "layer head"]:
        """``[layer, head]`` which cells of a mask are heads of the stack; rows are padded to the widest layer."""
        widths = torch.tensor([self.stack.n_heads(layer) for layer in range(self.stack.n_layers)])
        return torch.arange(int(widths.max())) < widths[:, None]

    def __enter__(self) -> Likelihood:
        if torch.is_inference_mode_enabled():
            raise BadInput("Gates cannot be fitted inside torch.inference_mode(), where nothing keeps a gradient.")
        forms, per_row = self._try()
        checkpointing = self._checkpointing
        if self.rows is None:
            self.rows = max(1, int(_SHARE * free_memory(self.model.device) / max(per_row, 1)))
            if checkpointing == "auto" and self.rows < _FEWEST:
                self.notes.append("Blocks were computed again in the backward pass, for want of memory.")
                checkpointing, self.rows = True, self.rows * self.stack.n_layers
        with ExitStack() as guard:
            self._gated = guard.enter_context(
                GatedModel(self.model, self.stack.name, checkpointing=checkpointing is True, forms=forms)
            )
            self._exit = guard.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._gated = None
        self._exit.close()

    def __call__(
        self, gates: Float[Tensor, "mask layer head"], prompts: Int[Tensor, " prompt"], targets: Targets | None = None
    ) -> tuple[Float[Tensor, "mask prompt"], Float[Tensor, "mask layer head"]]:
        """``(nll [mask, prompt], slopes [mask, layer, head])``: the slope is that of a mask's mean over the prompts.

        Args:
            gates: in [0, 1].
            prompts: which prompts.
            targets: of which targets, those of the class by default.

        Raises:
            NotFinite: a loss that is NaN or infinite, naming mask and prompts.
        """
        assert self._gated is not None, "used outside its with block"
        while True:
            try:
                nll, slopes = self._in_parts(self._gated, gates, prompts, targets or self.targets)
                break
            except torch.OutOfMemoryError:
                assert self.rows is not None
                if self.rows == 1:
                    raise
                self.rows //= 2
                self.notes.append(f"Out of memory: rows of one forward were halved to {self.rows}.")
        broken = ~torch.isfinite(nll) | ~torch.isfinite(slopes).all(-1).all(-1)[:, None]
        if bool(broken.any()):
            masks, which = broken.any(1).nonzero()[:, 0].tolist(), broken.any(0).nonzero()[:, 0]
            raise NotFinite(
                f"The loss of the gated model is NaN or infinite for masks {masks} at prompts "
                f"{prompts[which].tolist()}. The model runs in {self.model.dtype}; a wider dtype may avoid it."
            )
        return nll, slopes

    def _in_parts(self, gated: GatedModel, gates: Tensor, prompts: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Prompts of like length together, as many rows in one forward as are allowed."""
        assert self.rows is not None
        n_masks, n_prompts = gates.shape[0], len(prompts)
        few = min(n_prompts, max(1, self.rows // n_masks))
        some = n_masks if few * n_masks <= self.rows else self.rows
        if self._packed:
            few, some = n_prompts, 1
        places = torch.arange(n_prompts)
        if few < n_prompts:
            places = targets.columns[prompts].max(1).values.cpu().argsort(stable=True)
        order = prompts[places]
        nll = torch.zeros(n_masks, n_prompts)
        slopes = torch.zeros(gates.shape)
        for start in range(0, n_prompts, few):
            part = targets.select(order[start : start + few])
            for first in range(0, n_masks, some):
                masks = slice(first, first + some)
                found, slope = self._part(gated, gates[masks], part, n_prompts)
                nll[masks, places[start : start + few]] = found
                slopes[masks] += slope
        return nll, slopes

    def _part(self, gated: GatedModel, gates: Tensor, part: Targets, n_prompts: int) -> tuple[Tensor, Tensor]:
        factors = gates.detach().to(self.model.device).requires_grad_()
        nll = self._losses(gated, factors, part)
        with torch.enable_grad():
            mean = nll.sum() / n_prompts
        (slope,) = torch.autograd.grad(mean, [factors])
        return nll.detach().cpu(), slope.cpu()

    def _losses(self, gated: GatedModel, gates: Tensor, part: Targets) -> Tensor:
        inputs, columns = part.inputs()
        narrow = self.precision == "bfloat16"
        with torch.enable_grad():
            with torch.autocast(self.model.device.type, torch.bfloat16) if narrow else nullcontext():
                logits = gated.logits(inputs, gates, columns)
            ids = part.ids.to(logits.device).expand(len(gates), -1, -1)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses = F.cross_entropy(wide.flatten(0, 2), ids.flatten(), reduction="none").view(ids.shape)
            return (losses * part.weights.to(losses)).sum(-1)

    # ---- the trial --------------------------------------------------------------------------------------------------

    def _try(self) -> tuple[Forms | None, float]:
        """``(forms, bytes that a row keeps for its backward pass)``; forms where shortcuts give the whole forward's.

        On the longest prompt and another one, under two random masks.
        """
        order = self.targets.columns.max(1).values.argsort(descending=True, stable=True).cpu()[:_TRIED]
        if self._packed:
            order = torch.arange(len(self.targets))
        part = self.targets.select(order)
        gates = torch.rand(1 if self._packed else _TRIED, *self.exists.shape, generator=generator_of("trial"))
        rows = len(gates) * len(part)
        few = part.last()  # a column each, so that a cut to them is tried whatever the targets of these prompts are
        with GatedModel(self.model, self.stack.name) as plain:
            with kept_bytes(self.model.hf) as kept:
                self._part(plain, gates, part, len(part))
            whole = self._part(plain, gates, few, len(part))
        per_row = kept[0] / rows
        if self.stack.name != self.model.default_stack:
            return None, per_row
        try:
            with GatedModel(self.model, self.stack.name, forms=plain.forms) as short:
                found = self._part(short, gates, few, len(part))
        except SPLIT_FAILURES as error:
            self.notes.append(f"Whole forwards: a block cannot be split at its attention ({type(error).__name__}).")
            return None, per_row
        dtype = torch.bfloat16 if self.precision == "bfloat16" else self.model.dtype
        if not all(_alike(one, other, dtype) for one, other in zip(whole, found, strict=True)):
            self.notes.append("Whole forwards: a block split at its attention gives other results than the whole one.")
            return None, per_row
        return plain.forms, per_row


def _alike(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    allowed = min(_WIDEST, _ROUNDINGS * torch.finfo(dtype).eps) * max(float(one.abs().max()), 1e-3)
    return float((one - other).abs().max()) <= allowed


def _loose(value: Any, prompts: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and prompts not in value.shape[:2]
