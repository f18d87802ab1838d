"""What each head puts out at chosen positions, from a pass of its own or with the others' pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import At, Site
from interp.edits.base import Edit
from interp.edits.groups import Group, columns_of
from interp.errors import BadInput, Unsupported
from interp.model.inputs import fewest_logits
from interp.model.run import Run, run
from interp.model.shortening import Shortened, source_mask
from interp.scores.ask import Ask, Measured
from interp.scores.reducer import Reducer

Outputs = Mapping[int, Float[Tensor, "batch k _ _"]]  # layer -> z


class OutputsAt(Reducer):
    """z of every head at some columns of each prompt.

    Args:
        ask: what is scored.
        columns: ``[batch, k]`` which ones, of the batch that is streamed.
    """

    sites = frozenset({Site.Z})
    maps = False

    def __init__(self, ask: Ask, columns: Int[Tensor, "batch k"]) -> None:
        super().__init__(ask)
        self.columns = columns
        self.found: dict[int, Tensor] = {}

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """Keep the columns in question."""
        z = seen[Site.Z]
        prompts = torch.arange(len(z), device=z.device)[:, None]
        self.found[layer] = z[prompts, self.columns.to(z.device)].float()


class Changed(OutputsAt):
    """A number per head made of z in the prompts and z in changed prompts, at the same tokens; a mean over tokens.

    Args:
        ask: what is scored.
        columns: ``[batch, k]`` where z is compared.
        counted: ``[batch, k]`` False at entries that fill up a shorter list.
        others: makes z of the changed prompts; one entry per draw.
        compare: ``(z, changed z) -> [batch, k, head]``.
        metadata: what the table says.
    """

    def __init__(
        self,
        ask: Ask,
        columns: Int[Tensor, "batch k"],
        counted: Bool[Tensor, "batch k"],
        others: Callable[[], Iterable[Outputs]],
        compare: Callable[[Tensor, Tensor], Tensor],
        metadata: Mapping[str, object],
    ) -> None:
        super().__init__(ask, columns)
        self.counted, self.others, self.compare, self.metadata = counted, others, compare, metadata

    def measured(self) -> Measured:
        """The mean over tokens and draws; NaN where a token has no value."""
        sums: dict[int, Tensor] = {}
        draws = 0
        for other in self.others():
            draws += 1
            for layer, z in self.found.items():
                value = mean_over_tokens(self.compare(z, other[layer]), self.counted)
                sums[layer] = sums[layer] + value if layer in sums else value
        return Measured({layer: value / draws for layer, value in sums.items()}, metadata=dict(self.metadata))


def mean_over_tokens(
    values: Float[Tensor, "batch k head"], counted: Bool[Tensor, "batch k"]
) -> Float[Tensor, "batch head"]:
    """``[batch, head]`` the mean over the entries that count, in float64."""
    weight = counted.to(values.device).unsqueeze(-1)
    total = torch.where(weight, values, torch.zeros_like(values)).sum(1, dtype=torch.float64)
    return total / weight.sum(1)


def tokens_at(ask: Ask, at: Group) -> tuple[Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]:
    """``([batch, k] columns, [batch, k] which of them count)`` of the tokens that ``at`` means.

    Args:
        ask: what is scored; on the stack of the tokens that make the logits.
        at: ``"answer"`` the position where the answer is read, or a group as in ``interp.knockout``.
    """
    if isinstance(at, str) and at == "answer":
        columns = ask.batch.read_at[:, None]
        return columns, torch.ones_like(columns, dtype=torch.bool)
    member = ask.columns(at, "at")
    number = int(member.sum(-1).max())
    order = torch.sort(member.to(torch.uint8), dim=-1, descending=True, stable=True)
    return order.indices[:, :number], order.values[:, :number].bool()


def token_stack(ask: Ask) -> None:
    """Refuse stacks whose positions are not those of the tokens that make the logits.

    Raises:
        Unsupported: images, or the encoder of an encoder-decoder, whose positions move with what is taken out.
    """
    own, default = ask.stack, ask.model.stack()
    if ask.batch.ids is None:
        raise Unsupported(
            f"{ask.name}: it compares heads at one token with and without others, and these prompts have no token ids; "
            "it is a score of texts, and of vision-language models that read text."
        )
    if own.blocks[0] is not default.blocks[0]:
        raise Unsupported(
            f"{ask.name}: it compares heads at one token with and without others, and the positions of stack "
            f"{own.name!r} are not the tokens that make the logits; take stack {default.name!r}."
        )


def named_tokens(ask: Ask, span: Group, what: str) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at the tokens that ``span`` means: the encoder's tokens in an encoder-decoder.

    Raises:
        BadInput: no span is named, or it means no token in some prompt.
        BadAddress: an unknown span.
    """
    mask = source_mask(ask.batch)
    if span is None:
        raise BadInput(
            f"{ask.name}: {what} is missing; name the tokens in question: a span of encode(..., spans={{name: ...}}), "
            "a slice, or a BoolTensor [batch, pos]."
        )
    member = columns_of(span, ask.batch, mask.shape[1], mask.device, mask=mask) & mask
    empty = (~member.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise BadInput(f"{ask.name}: {what}={span!r} means no token in prompts {empty[:5]}; name at least one.")
    return member


def moved_columns(
    ask: Ask, parts: Sequence[Shortened], columns: Int[Tensor, "batch k"], counted: Bool[Tensor, "batch k"]
) -> list[Int[Tensor, "prompt k"]]:
    """For each part the columns where the tokens at ``columns`` are now.

    Raises:
        BadInput: one of them was taken out.
    """
    made = []
    for part in parts:
        now = part.moved.gather(1, columns[part.rows])
        lost = ((now < 0) & counted[part.rows]).any(-1).nonzero().flatten().tolist()
        if lost:
            raise BadInput(
                f"{ask.name}: a position at which heads are compared lies in the tokens taken out, in prompts "
                f"{part.rows[lost[:5]].tolist()}; choose at= outside them."
            )
        made.append(now.clamp(min=0))
    return made


def outputs_without(ask: Ask, parts: Sequence[Shortened], columns: Sequence[Int[Tensor, "prompt k"]]) -> Outputs:
    """Layer -> z of the shortened prompts at ``columns``, in the order of the whole batch."""
    whole: dict[int, Tensor] = {}
    for part, now in zip(parts, columns, strict=True):
        seen = OutputsAt(ask, now)
        ask.stream([seen], part.batch)
        for layer, z in seen.found.items():
            if layer not in whole:
                whole[layer] = z.new_zeros(len(ask.batch), *z.shape[1:])
            whole[layer][part.rows.to(z.device)] = z
    return whole


def outputs_edited(ask: Ask, columns: Int[Tensor, "batch k"], edits: Sequence[Edit]) -> tuple[Outputs, Outputs]:
    """Layer -> z at ``columns``, without and with ``edits``, both through the same kernels."""
    reads = [At(Site.Z, layer, pos=columns, stack=ask.stack.name) for layer in ask.layers]
    fewest = fewest_logits(ask.model)
    edited = run(ask.model, ask.batch, reads, edits, logits=fewest)
    plain = run(ask.model, ask.batch, reads, logits=fewest, kernels=edited.kernels)
    if ask.progress is not None:
        ask.progress(2)

    def taken(seen: Run) -> Outputs:
        return {layer: seen[at].float() for layer, at in zip(ask.layers, reads, strict=True)}

    return taken(plain), taken(edited)
