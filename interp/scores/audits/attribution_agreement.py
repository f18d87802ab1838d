"""Attention against attribution: does a head look at the tokens that matter for the answer?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.metrics import logit_difference
from interp.model.run import Metric
from interp.names import lookup
from interp.scores.ask import Ask, Measured
from interp.scores.audits.agreement import AGREEMENTS, agreement_of_rows, largest
from interp.scores.audits.answer_rows import AnswerRows
from interp.scores.audits.references import REFERENCES, token_attribution
from interp.scores.audits.value_aware import ValueAware

LEVELS: Mapping[str, str] = {
    "head": "each head's row",
    "layer": "a layer's heads together, shown by each of them",
    "all": "all heads of all layers together, shown by each of them",
}
POOLS: Mapping[str, str] = {"mean": "the mean over heads", "max": "the largest over heads"}
Rows = Float[Tensor, "batch _ key"]


def _mean(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows), dim=1).mean(1, keepdim=True)


def _largest(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows), dim=1).amax(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Compared:
    """Rows of attention beside an attribution of their keys.

    Attributes:
        attention: layer -> ``[batch, head, key]``.
        attribution: layer -> ``[batch, head or 1, key]``.
        valid: layer -> ``[batch, head, key]`` True at keys that the row sees and that have an attribution.
    """

    attention: Mapping[int, Rows]
    attribution: Mapping[int, Rows]
    valid: Mapping[int, Bool[Tensor, "batch _ key"]]

    def at(self, level: str, pool: str = "mean") -> Compared:
        """The same at the level of layers, or of all heads: means (or maxima) over heads, one row for all.

        Attributions of single heads are added up over the heads that the mean is over.
        """
        lookup(level, LEVELS, "level")
        if level == "head":
            return self
        lookup(pool, POOLS, "pooling")
        over_heads = _mean if pool == "mean" else _largest
        attention = {layer: over_heads([rows]) for layer, rows in self.attention.items()}
        attribution = {layer: rows.sum(1, keepdim=True) for layer, rows in self.attribution.items()}
        valid = {layer: rows.any(1, keepdim=True) for layer, rows in self.valid.items()}
        if level == "all":
            whole = over_heads(list(self.attention.values()))
            shared = next(iter(self.attribution.values())).shape[1] == 1
            summed = next(iter(attribution.values())) if shared else sum(attribution.values())
            anywhere = torch.stack(list(valid.values())).any(0)
            attention, attribution, valid = (dict.fromkeys(attention, value) for value in (whole, summed, anywhere))
        return Compared(attention, attribution, valid)  # type: ignore[arg-type]

    def map(self, measure: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[int, Float[Tensor, "batch _"]]:
        """Layer -> ``measure(attention, attribution, valid)`` of every row."""
        return {
            layer: measure(rows, self.attribution[layer], self.valid[layer]) for layer, rows in self.attention.items()
        }


def compared(
    ask: Ask,
    reference: str | Tensor,
    *,
    metric: Metric | None = None,
    row: Group = None,
    samples: int = 256,
) -> Compared:
    """The answer's row of every head beside an attribution, from one forward and what the attribution costs.

    Args:
        ask: what is scored; left-out columns are compared in neither.
        reference: a name of ``REFERENCES``, or numbers ``[batch, key]``.
        metric: of the attribution.
        row: another row than the answer's.
        samples: of LIME.

    Raises:
        BadInput: numbers of another shape.
        UnknownName: another name.
    """
    rows = AnswerRows(ask, row)
    own: ValueAware | None = None
    given: Tensor | None = None
    if isinstance(reference, Tensor):
        wanted = None if ask.key_mask is None else list(ask.key_mask.shape)
        if reference.ndim != 2 or (wanted is not None and list(reference.shape) != wanted):  # noqa: PLR2004 - batch, key
            raise BadInput(
                f"{ask.name}: reference of shape {list(reference.shape)}; expected [batch, key]"
                f"{'' if wanted is None else f' {wanted}'}, one number per token that the row may look at."
            )
        given = reference.double()
    elif lookup(reference, REFERENCES, "reference") and reference == "value_aware":
        own = ValueAware(ask, metric or logit_difference)
    else:
        given = token_attribution(ask, reference, metric=metric, samples=samples)
    ask.stream([rows] if own is None else [rows, own])
    attention, attribution, valid = {}, {}, {}
    for layer in ask.layers:
        made = own.found[layer] if own is not None else given
        assert made is not None
        made = made if made.ndim == 3 else made[:, None]  # noqa: PLR2004 - batch, head, key
        pattern, sees = rows.of(layer, made.shape[-1])
        attention[layer], attribution[layer] = pattern.double(), made.to(pattern.device)
        valid[layer] = sees & attribution[layer].isfinite()
    return Compared(attention, attribution, valid)


def attention_attribution_agreement(
    ask: Ask,
    *,
    reference: str | Tensor = "gradient",
    how: str = "kendall",
    level: str = "head",
    pool: str = "mean",
    top: int = 5,
    metric: Metric | None = None,
    row: Group = None,
    samples: int = 256,
) -> Measured:
    """Agreement of each head's row at the answer with an attribution of the tokens it sees, in [-1, 1].

    Args:
        ask: what is scored. ``exclude_sinks="first"`` leaves the first token out of both, without which one large
            column moves Pearson's r.
        reference: ``"gradient"``, ``"gradient_x_input"``, ``"leave_one_out"``, ``"leave_one_out_masked"``, ``"lime"``,
            ``"value_aware"``, or numbers ``[batch, key]``. One attribution is no ground truth: use several.
        how: ``"pearson"``, ``"spearman"``, ``"kendall"`` or ``"topk"`` (share of the ``top`` largest in common).
        level: ``"head"``, ``"layer"`` (over its heads) or ``"all"`` (over all heads).
        pool: ``"mean"`` or ``"max"`` over heads, at the levels above heads.
        top: for ``"topk"``.
        metric: what is attributed; the log-probability of the right answer (of what the model says, without answers) by
            default, the logit difference for ``"value_aware"``.
        row: another query row than the answer's.
        samples: of LIME.

    Raises:
        UnknownName: another reference, agreement or level.
        BadInput: numbers of another shape.

    Jain and Wallace, 2019; cross-attention against saliency for levels.
    """
    lookup(how, AGREEMENTS, "agreement (how=)")
    lookup(level, LEVELS, "level")
    lookup(pool, POOLS, "pooling")
    found = compared(ask, reference, metric=metric, row=row, samples=samples).at(level, pool)
    values = found.map(lambda a, b, valid: agreement_of_rows(a, b, valid, how=how, top=top))
    return Measured(
        {layer: value.expand(-1, ask.stack.n_heads(layer)) for layer, value in values.items()},
        metadata={"level": LEVELS[level], "reference": reference if isinstance(reference, str) else "numbers given"},
    )


def sign_disagreement_of_rows(
    attention: Float[Tensor, "*#batch key"],
    attribution: Float[Tensor, "*#batch key"],
    valid: Bool[Tensor, "*#batch key"],
    *,
    top: int = 5,
) -> Float[Tensor, ...]:
    """The share of the ``top`` most attended tokens whose attribution is negative; NaN without a token.

    Attention cannot say that a token speaks against the answer, an attribution can.

    Example:
        >>> a, w = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([-1.0, 2.0, 3.0])
        >>> sign_disagreement_of_rows(a, w, torch.ones(3, dtype=torch.bool), top=2).item()
        0.5
    """
    first, second, kept = torch.broadcast_tensors(attention.double(), attribution.double(), valid)
    made = first.new_full(first.shape[:-1], torch.nan).cpu()
    flat = [each.reshape(-1, each.shape[-1]).cpu().numpy() for each in (first, second, kept)]
    for number, (a, w, here) in enumerate(zip(*flat, strict=True)):
        if here.any():
            chosen = w[here][largest(a[here], top)]
            made.view(-1)[number] = float((chosen < 0).mean())
    return made


def sign_disagreement(
    ask: Ask,
    *,
    reference: str | Tensor = "value_aware",
    top: int = 5,
    level: str = "head",
    metric: Metric | None = None,
    row: Group = None,
) -> Measured:
    """The share of a head's ``top`` most attended tokens that speak against the answer, in [0, 1].

    Args:
        ask: what is scored.
        reference: a signed attribution: ``"value_aware"`` (``A_ij <v_j, dm/dz_i>`` by the head's direct path),
            ``"gradient_x_input"``, ``"lime"``, or numbers ``[batch, key]``.
        top: how many tokens.
        level, metric, row: as in :func:`attention_attribution_agreement`.

    Raises:
        BadInput: an attribution without signs.

    Attention Meets Post-hoc Interpretability, 2024.
    """
    if isinstance(reference, str) and reference in ("gradient", "leave_one_out", "leave_one_out_masked"):
        raise BadInput(
            f"{ask.name}: reference={reference!r} has no sign; use 'value_aware', 'gradient_x_input' or 'lime'."
        )
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise BadInput(f"{ask.name}: top={top!r}; expected how many of the most attended tokens count, at least 1.")
    found = compared(ask, reference, metric=metric, row=row).at(level)
    values = found.map(lambda a, b, valid: sign_disagreement_of_rows(a, b, valid, top=top))
    return Measured({layer: value.expand(-1, ask.stack.n_heads(layer)) for layer, value in values.items()})
