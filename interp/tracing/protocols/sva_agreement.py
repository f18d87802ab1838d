"""``sva_agreement``: the protocol by which attention flow was judged: blank-out and input gradients, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.names import lookup
from interp.tracing import METHODS
from interp.tracing.occlusion.replaced import Replacement, replacement_id
from interp.tracing.protocols.trace_agreement import Excluded, TraceAgreement, trace_agreement
from interp.tracing.trace import trace

REFERENCES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "blank-out": ("blank-out", MappingProxyType({"change": "sva"})),
        "gradient": ("gradient", MappingProxyType({"norm": "l2"})),
        "input-gradient": ("gradient-input", MappingProxyType({"absolute": True})),
    }
)


def sva_agreement(
    model: Model,
    batch: Batch,
    methods: Sequence[str] = ("raw", "rollout", "flow"),
    references: Sequence[str] = ("blank-out", "input-gradient"),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    replacement: Replacement = None,
    targets: Group = None,
    exclude: Excluded = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> TraceAgreement:
    """Spearman's rho of traces with blank-out and input gradients, sentence by sentence, at every layer.

    The relevance is the row of the token at which the answer is read (CLS, or the masked verb); blank-out is
    ``|(p_right - p_wrong)(x) - (p_right - p_wrong)(x without)|``, the input gradient ``|sum_d x dm/dx|``. Ties stand at
    their mean rank; where one side does not vary a sentence counts 0.

    Args:
        model: the handle; encode its prompts where the answer is read (``read_at=0`` for CLS, ``"mask"``).
        batch: prompts with a right and a wrong answer.
        methods: ways of tracing.
        references: ``"blank-out"``, ``"gradient"``, ``"input-gradient"``.
        options: method -> its own options.
        replacement: what is put in the place of a token: the mask token by default, else the unknown token. The paper
            speaks of the unknown token, its released script puts the mask token.
        targets: other rows than those where the answer is read.
        exclude: sources that are compared in neither; the paper leaves none out.
        seed: of methods that draw.
        batch_size: prompts in one forward of blank-out.
        progress: called with the number of forwards just finished.

    ``"gradient"`` is its length ``||dm/dx||``: the sum over channels of the released script, ``|sum_d dm/dx|``, is
    nothing but rounding wherever a LayerNorm follows, which takes the mean over channels away. Gradients are of the
    right answer's logit, with respect to what enters the first block; the paper does not say more than "the input".
    Every layer's mean is over its own rhos, where the released script pools the layers below.

    Raises:
        UnknownName: an unknown method or reference.
        BadInput: prompts without a right and a wrong answer, or no token to put in.

    Abnar and Zuidema, 2020, Tables 1 and 2 (there: agreement of subject and verb, 2000 sentences).

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3], [0, 4, 3, 6, 4]]), answers=[(4, 5), (3, 5)])
        >>> found = sva_agreement(model, batch, ["raw", "rollout"], replacement=8)
        >>> found.table()["reference"].unique().tolist()
        ['blank-out', 'input-gradient']
    """
    for method in methods:
        lookup(method, METHODS, "way of tracing")
    if isinstance(methods, str) or isinstance(references, str) or not methods or not references:
        raise BadInput("sva_agreement: give a list of methods and a list of references, each with at least one.")
    for name in references:
        lookup(name, REFERENCES, "reference")
    if "blank-out" in references:
        replacement = replacement_id(model, replacement, "sva_agreement")
    against = {}
    for name in references:  # these are asked first: they refuse prompts without answers
        method, own = REFERENCES[name]
        extra = {"replacement": replacement, "batch_size": batch_size} if method == "blank-out" else {}
        against[name] = trace(model, batch, method, progress=progress, **own, **extra)
    made = {}
    for method in methods:
        own = dict((options or {}).get(method, {}))
        layered = METHODS[method].layered and "layer" not in own
        made[method] = trace(
            model, batch, method, targets=targets, each_layer=layered, seed=seed, progress=progress, **own
        )
    return trace_agreement(made, against, how="spearman", absolute=True, exclude=exclude, undefined="zero")
