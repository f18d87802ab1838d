"""``token_groups``: named groups of a prompt's tokens that partition it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.edits.groups import Group, columns_of
from interp.errors import BadAddress, BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.image_tokens import image_token_ids
from interp.names import unknown
from interp.scores.ask import Ask
from interp.scores.groups.chat_roles import role_spans

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """Groups of tokens that partition every prompt.

    Attributes:
        members: name -> ``[batch, pos]`` True at the group's tokens; a group may have none in some prompt.
        mask: ``[batch, pos]`` real tokens: each belongs to one group.
    """

    members: Mapping[str, Bool[Tensor, "batch pos"]]
    mask: Bool[Tensor, "batch pos"]

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, in order."""
        return tuple(self.members)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.members:
            raise BadInput(unknown(name, self.members, "token group"))
        return self.members[name]

    def within(self, batch: Batch) -> Batch:
        """``batch`` with the groups as spans, to be named in ``keys=`` and ``queries=``."""
        return replace(batch, spans={**batch.spans, **self.members})

    def table(self) -> pd.DataFrame:
        """One row per prompt, one column per group: how many tokens it has."""
        import pandas as pd

        return pd.DataFrame({name: member.sum(-1).tolist() for name, member in self.members.items()})

    def __repr__(self) -> str:
        return f"TokenGroups({', '.join(self.members)}; {self.mask.shape[0]} prompts)"


def token_groups(
    model: Model,
    batch: Batch,
    groups: Iterable[str] | Mapping[str, Group] | None = None,
    *,
    messages: Sequence[Any] | None = None,
    generated: int | Sequence[int] | None = None,
    first_wins: bool = False,
    rest: str = "rest",
) -> TokenGroups:
    """Groups that partition every prompt: BOS, image tokens, chat roles, named spans, generated tokens, and the rest.

    Args:
        model: its config says which token stands for a piece of an image.
        batch: the prompts.
        groups: names of spans, or a mapping name -> group of positions (see :func:`interp.edits.groups.columns_of`);
            every span of the batch for None.
        messages: the chats that the prompts were made from: the tokens of each role's texts become groups ``system``,
            ``user``, ``assistant`` ..., what the template adds becomes ``template``;
            BOS and image tokens stay in theirs.
        generated: how many tokens at each prompt's end were generated: group ``generated``.
        first_wins: a token of two groups goes to the one named first (``bos``, ``image``, ``audio``, then those
            given, roles, ``generated``); otherwise that is refused.
        rest: name of the group of all other tokens.

    Group ``bos`` is each prompt's first token where it is the tokenizer's BOS; ``image`` holds the tokens that the
    processor put in for pictures or frames, ``audio`` those for sounds. These groups are there wherever the model has
    such a token, with no member in prompts without one.

    Raises:
        BadInput: two groups share a token, a group reaches into padding, the chats are not those of the batch, or the
            prompts have no tokens.
        BadAddress: an unknown span, or a position outside a prompt.

    Example:
        >>> import interp, torch
        >>> model = interp.load("handmade")
        >>> batch = interp.encode(model, torch.tensor([[0, 3, 4, 3]]), spans={"item 1": range(1, 3)})
        >>> interp.token_groups(model, batch).table().to_dict("records")
        [{'bos': 1, 'item 1': 2, 'rest': 1}]
    """
    mask, home = group_mask(batch)
    made: dict[str, Tensor] = _special(model, batch, mask) if home else {}
    taken = torch.stack(list(made.values())).any(0) if made else torch.zeros_like(mask)
    given = batch.spans if groups is None else groups
    named = given if isinstance(given, Mapping) else {name: name for name in given}
    for name, group in named.items():
        if name in made or name == rest:
            raise BadInput(f"token_groups: the name {name!r} is that of a group made here; rename the span.")
        made[name] = _inside("token_groups", repr(name), group, batch, mask)
    if messages is not None:
        if batch.ids is None:
            raise BadInput("token_groups: messages= needs token ids, and these prompts have none.")
        roles = role_spans(model, batch.ids, batch.mask, messages)
        made |= _fresh({role: member & ~taken for role, member in roles.items()}, made)
    if generated is not None:
        made |= _fresh({"generated": _at_the_end(generated, mask)}, made)
    if not first_wins:
        _refuse_overlap(batch, made)
    left, parted = mask.clone(), {}
    for name, member in made.items():
        parted[name] = member & left
        left = left & ~member
    return TokenGroups({**parted, rest: left}, mask)


def group_mask(batch: Batch) -> tuple[Bool[Tensor, "batch pos"], bool]:
    """Real tokens that spans are over (the encoder's, where there is one), and whether these are ``batch.ids``'."""
    if batch.encoder_mask is not None:
        return batch.encoder_mask, False
    if batch.default_stack.startswith(("vision", "audio")):
        raise BadInput(
            f"token_groups: the positions of stack {batch.default_stack!r} are not tokens; give groups of patches as "
            "BoolTensors [1, key] to the score itself."
        )
    return batch.mask, batch.ids is not None


def _special(model: Model, batch: Batch, mask: Tensor) -> dict[str, Tensor]:
    assert batch.ids is not None
    made = {}
    if batch.bos is not None:
        made["bos"] = (batch.ids == batch.bos) & mask & (mask.cumsum(-1) == 1)
    sound = getattr(model.hf.config, "audio_token_id", None)
    for name, tokens in (("image", image_token_ids(model)), ("audio", (sound,) if isinstance(sound, int) else ())):
        if tokens:
            made[name] = torch.isin(batch.ids, torch.tensor(tokens, device=mask.device)) & mask
    return made


def _inside(who: str, name: str, group: Group, batch: Batch, mask: Tensor) -> Tensor:
    """The columns of a group, of which none may be padding."""
    member = columns_of(group, batch, mask.shape[1], mask.device, mask=mask)
    if group is None or (isinstance(group, slice)):
        member = member & mask
    outside = (member & ~mask).nonzero().tolist()
    if outside:
        prompt, column = outside[0]
        raise BadAddress(
            f"{who}: {name} leaves prompt {prompt}: column {column} is padding (its {int(mask[prompt].sum())} "
            f"tokens are columns {int(mask[prompt].long().argmax())} to {int(mask[prompt].nonzero().max())}); a span "
            "must lie inside its prompt."
        )
    return member


def _at_the_end(generated: int | Sequence[int], mask: Tensor) -> Tensor:
    lengths = mask.sum(-1)
    counts = torch.as_tensor(generated, device=mask.device).expand(len(mask))
    if bool((counts < 0).any()) or bool((counts > lengths).any()):
        raise BadInput(
            f"token_groups: generated={generated!r}, and the prompts have {lengths.tolist()} tokens; expected how many "
            "of them were generated."
        )
    return mask & (mask.cumsum(-1) > (lengths - counts)[:, None])


def _fresh(found: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    twice = sorted(set(found) & set(made))
    if twice:
        raise BadInput(f"token_groups: {twice[0]!r} is a span already; rename the span, or leave it out of groups=.")
    return found


def _refuse_overlap(batch: Batch, made: Mapping[str, Tensor]) -> None:
    names = list(made)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = (made[first] & made[second]).nonzero().tolist()
            if both:
                prompt, column = both[0]
                raise BadInput(
                    f"token_groups: {first!r} and {second!r} share {len(both)} token(s), the first at column {column} "
                    f"of prompt {prompt}{_token(batch, prompt, column)}; groups must not overlap. Leave one out "
                    "(groups=[...]), move its border, or pass first_wins=True."
                )


def _token(batch: Batch, prompt: int, column: int) -> str:
    if not batch.tokens or batch.encoder_mask is not None or not bool(batch.mask[prompt, column]):
        return ""
    return f" ({batch.tokens[prompt][int(batch.mask[prompt, :column].sum())]!r})"


def members_of(
    ask: Ask, groups: Any, what: str, *, keys: bool
) -> tuple[tuple[str, ...] | None, Bool[Tensor, "group batch pos"]]:
    """Names and ``[group, batch, pos]`` members of what a score's option means; no names for a single group.

    Args:
        ask: what is scored.
        groups: a :class:`TokenGroups`, a mapping name -> group, a list of span names, or one group.
        what: the option, for messages.
        keys: whether the positions are keys (of cross-attention: the encoder's) or query rows.

    Raises:
        BadInput: made for other prompts, or without a token in some prompt.
        BadAddress: an unknown span, or a position outside a prompt or in its padding.
    """
    mask = ask.key_mask if keys else ask.mask
    if isinstance(groups, TokenGroups):
        if mask is None or groups.mask.shape != mask.shape or not bool((groups.mask == mask).all()):
            raise BadInput(
                f"{ask.name}: {what}= holds groups of {list(groups.mask.shape)} tokens that are not those scored "
                f"({None if mask is None else list(mask.shape)}). Put them into the batch: batch = groups.within(batch)"
                f", {what}=groups.names."
            )
        return groups.names, torch.stack(list(groups.members.values()))
    if isinstance(groups, Mapping):
        named = dict(groups)
    elif isinstance(groups, list | tuple):
        wrong = [group for group in groups if not isinstance(group, str)]
        if wrong or not groups:
            raise BadInput(f"{ask.name}: {what}={groups!r}; expected names of spans, or a mapping name -> group.")
        named = {name: name for name in groups}
    else:
        return None, _columns(ask, groups, what, mask)[None]
    if not named:
        raise BadInput(f"{ask.name}: {what}= names no group; give at least one.")
    return tuple(map(str, named)), torch.stack([_columns(ask, group, what, mask) for group in named.values()])


def refuse_shared(ask: Ask, names: Sequence[str], members: Bool[Tensor, "group batch pos"]) -> None:
    """Refuse groups that share a token, whose masses would count it twice.

    Args:
        ask: what is scored.
        names: of the groups.
        members: which columns are each group's.

    Raises:
        BadInput: with the first token shared.
    """
    shared = (members.sum(0) > 1).nonzero().tolist()
    if shared:
        prompt, column = shared[0]
        both = [name for name, member in zip(names, members, strict=True) if bool(member[prompt, column])]
        raise BadInput(
            f"{ask.name}: {both[0]!r} and {both[1]!r} share {len(shared)} token(s), the first at column {column} of "
            f"prompt {prompt}; they must not overlap. Move a border, or ask for them in scores of their own."
        )


def _columns(ask: Ask, group: Group, what: str, mask: Tensor | None) -> Tensor:
    if mask is None:
        if isinstance(group, Tensor) and group.dtype == torch.bool and group.ndim == 2:  # noqa: PLR2004 - [batch, key]
            return group
        raise BadInput(
            f"{ask.name}: {what}={group!r} cannot be placed on stack {ask.stack.name!r}, whose positions are not "
            "tokens; give a BoolTensor [1, key], or score a stack of tokens."
        )
    member = _inside(ask.name, f"{what}={group!r}" if isinstance(group, str) else f"{what}=", group, ask.batch, mask)
    empty = (~member.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise BadInput(f"{ask.name}: {what}={group!r} means no token in prompts {empty[:5]}; name at least one.")
    return member
