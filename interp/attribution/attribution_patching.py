"""Attribution patching: what patching each head would do, to first order, for all heads from one gradient."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from interp.address import At, Site
from interp.attribution.estimates import (
    Cells,
    head_table,
    joined,
    layer_addresses,
    part_of,
    prompt_chunks,
    refuse_freeze,
    smooth_metric,
    summed_or_kept,
)
from interp.attribution.normalising import differences, shares
from interp.attribution.request import Request
from interp.edits.activations import same_length
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import fewest_logits
from interp.model.run import Run, run
from interp.results import HeadScores

SITES = (Site.Z, Site.Q, Site.K, Site.V, Site.PATTERN)


def attribution_patching(model: Model, batch: Batch, request: Request) -> HeadScores:
    """The patch effect of every head to first order, ``[prompt, layer, head]``: two forwards and one backward for all.

    ``<a_source - a_batch, dm/da>`` with the gradient at the batch's own run, summed over channels and positions: what
    ``attribute(method="patch", site=...)`` measures, where the metric is linear in a between the two runs. Far from
    linear (softmax of q and k, norms, a saturated answer) it may be off in size and in sign.

    Args:
        model: the handle.
        batch: the prompts that would be patched.
        request: ``metric``; ``source``, a ``Batch`` of equal lengths (or a ``Run`` of one that has read the site);
            ``site`` z, q, k, v or pattern (key/value heads get the numbers at k and v); ``by`` (``"position"`` keeps
            positions, query rows of patterns); ``direction`` (``"denoise"``: the source is the clean side, a head that
            helps raises the metric; ``"noise"``: the source is the corrupted side); ``normalise`` (shares of
            ``m(source) - m(batch)``); ``heads``, ``pos``, ``batch_size`` (prompts in one forward).

    Raises:
        BadInput: no source, prompts of unequal lengths, another site, or a metric without a gradient.

    Source: Nanda, 2023 (attribution patching); Syed, Rager and Conmy, 2023 (arXiv 2310.10348).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> clean, corrupted = (interp.encode(model, torch.tensor([ids]), answers=[(4, 5)])
        ...                     for ids in ([0, 3, 4, 3], [0, 3, 5, 3]))
        >>> attribution_patching(model, corrupted, Request(source=clean)).top(1).label.tolist()
        ['L1.H0']
    """
    refuse_freeze(request)
    if request.site not in SITES:
        raise BadInput(f"attribution_patching: site={request.site!r}; expected {', '.join(map(repr, SITES))}.")
    places = layer_addresses(model.stack(request.stack), request.site)
    paired = _paired(batch, request.source)
    _check_read(request.source, places)
    parts: list[Cells] = []
    for rows in prompt_chunks(batch, request.batch_size):
        part = part_of(batch, rows)
        own = run(model, part, places.values(), logits=request.logits(model), grad=smooth_metric(request))
        other, picked = _source_run(model, request.source, paired, rows, own, places)
        assert own.grad is not None
        parts.append(
            {
                layer: along_gradient(other[at][picked] - own[at], own.grad[at], request.site)
                for layer, at in places.items()
            }
        )
        if request.progress is not None:
            request.progress(1)
    array = summed_or_kept(model, batch, request, joined(parts))
    sense, more, weights = 1 if request.direction == "denoise" else -1, {}, None
    if request.normalise:
        shared = shares(array.reshape(len(batch), -1).T, differences(model, batch, request))
        array, weights = shared.values.T.reshape(array.shape), shared.weights
        more, sense = shared.about, sense * shared.sign
    return head_table(
        model,
        batch,
        request,
        array,
        name="attribution_patching",
        quantity="effect",
        sense=sense,
        weights=weights,
        direction=request.direction,
        **more,
    )


def along_gradient(
    change: Float[Tensor, "batch ..."], slope: Float[Tensor, "batch ..."], site: Site
) -> Float[Tensor, "batch head pos"]:
    """``[batch, head, pos]`` ``<change, slope>`` over channels, or over the keys of each query row of a pattern."""
    products = (change.double() * slope.double()).sum(-1)
    return products if site is Site.PATTERN else products.transpose(1, 2)


def _paired(batch: Batch, source: Batch | Run | None) -> Batch:
    """The prompts of ``source``, as many and as long as those of ``batch``.

    Raises:
        BadInput: there are none, or they do not fit.
    """
    if source is None:
        raise BadInput("attribution_patching: source= is missing; give the other side of the pair, a Batch.")
    paired = source.batch if isinstance(source, Run) else source
    if not isinstance(paired, Batch):
        raise BadInput(f"attribution_patching: source is a {type(source).__name__}; expected a Batch, or a Run of one.")
    if len(paired) != len(batch):
        raise BadInput(
            f"attribution_patching: {len(paired)} source prompts for {len(batch)} prompts; give one source for each."
        )
    same_length(batch, paired, "attribution_patching")
    return paired


def _check_read(source: Batch | Run, places: Mapping[int, At]) -> None:
    """Refuse a run that has not read what is patched, before any forward.

    Raises:
        BadInput: with the first address that it lacks.
    """
    if not isinstance(source, Run):
        return
    for at in places.values():
        if at not in source:
            raise BadInput(
                f"attribution_patching: the source run has not read {at}; read it there, or give the run's Batch."
            )


def _source_run(
    model: Model, source: Batch | Run, paired: Batch, rows: slice, own: Run, places: Mapping[int, At]
) -> tuple[Run, slice]:
    """A run that read the source, and where the prompts ``rows`` are in it."""
    if isinstance(source, Run):
        return source, rows
    part, fewest = part_of(paired, rows), fewest_logits(model)
    return run(model, part, places.values(), logits=fewest, kernels=own.kernels), slice(None)
