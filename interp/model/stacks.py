"""Stacks: lists of transformer blocks, with the modules at which each site of each layer is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from interp.address import At, Head, Site
from interp.errors import BadAddress, LoadFailed, Unsupported
from interp.model.blocks import Blocks, find_blocks
from interp.model.families import Family, Place, head_counts, module_at
from interp.names import unknown


class Tap(NamedTuple):
    """Where a site's tensor passes: into (``"input"``) or out of (``"output"``) a module."""

    module: nn.Module
    side: Literal["input", "output"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One block's attention: its modules and its head counts."""

    index: int
    block: nn.Module
    attention: nn.Module
    out: nn.Module
    n_heads: int
    n_kv_heads: int
    d_head: int


@dataclass(frozen=True, eq=False)
class Stack:
    """One list of transformer blocks; ``layers[i]`` is ``None`` where block ``i`` has no attention.

    Attributes:
        name: ``text``, ``vision``, ``encoder``, ``decoder``, ``cross``, ``audio``.
        family: the row that says where things are in a block.
        config: of the pretrained model that owns the blocks.
        blocks: every block, with or without attention.
        layers: the attention of each block.
        causal: a query sees no later key.
    """

    name: str
    family: Family
    config: Any
    blocks: tuple[nn.Module, ...]
    layers: tuple[Layer | None, ...]
    causal: bool
    path: str
    model_type: str
    refused: Mapping[Site, str] = field(default_factory=dict)  # what a check by behaviour found not to hold

    @property
    def cross(self) -> bool:
        """Whether these are the cross-attentions of a decoder."""
        return self.name.startswith("cross")

    @property
    def n_layers(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    def n_heads(self, layer: int) -> int:
        """Query heads of a layer, 0 where it has no attention."""
        found = self.layers[layer]
        return found.n_heads if found else 0

    def n_kv_heads(self, layer: int) -> int:
        """Key/value heads of a layer, 0 where it has no attention."""
        found = self.layers[layer]
        return found.n_kv_heads if found else 0

    def d_head(self, layer: int) -> int:
        """Width of one head's z (the projection's width divided by the heads), 0 where there is no attention."""
        found = self.layers[layer]
        return found.d_head if found else 0

    def layer(self, index: int) -> Layer:
        """The attention of block ``index``.

        Raises:
            BadAddress: there is no such block, or it has no attention.
        """
        if not 0 <= index < self.n_layers:
            raise BadAddress(
                f"Layer {index} is not there: stack {self.name!r} has {self.n_layers} layers "
                f"(0 to {self.n_layers - 1})."
            )
        found = self.layers[index]
        if found is None:
            with_attention = [i for i, layer in enumerate(self.layers) if layer]
            raise BadAddress(
                f"Layer {index} of stack {self.name!r} has no attention; layers that do: {with_attention}."
            )
        return found

    def width(self, site: Site, layer: int) -> int:
        """How many heads ``site`` has at ``layer``: KV heads at K and V, query heads elsewhere."""
        return self.n_kv_heads(layer) if site in (Site.K, Site.V) else self.n_heads(layer)

    def channels(self, site: Site, layer: int) -> dict[str, tuple[int, ...]]:
        """Axis -> its one length, for the last axis of ``site``'s tensor where the projection tells it."""
        found = self.layers[layer]
        if found is None or self.family.packed:
            return {}
        if site is Site.Z:
            return {"d_head": (found.d_head,)}
        width = getattr(found.out, "out_features", getattr(found.out, "nf", None))
        return {"d_model": (width,)} if isinstance(width, int) else {}

    def layers_of(self, at: At) -> tuple[int, ...]:
        """The block indices that ``at`` addresses, checked.

        Raises:
            BadAddress: a layer or head that is not there.
        """
        needs_attention = at.site not in (Site.RESID_PRE, Site.RESID_POST, Site.MLP_OUT)
        if at.layers is None:
            layers = tuple(i for i in range(self.n_layers) if self.layers[i] or not needs_attention)
        else:
            for index in at.layers:
                if needs_attention:
                    self.layer(index)
                elif not 0 <= index < self.n_layers:
                    raise BadAddress(
                        f"Layer {index} is not there: stack {self.name!r} has {self.n_layers} layers "
                        f"(0 to {self.n_layers - 1})."
                    )
            layers = at.layers
        for index in layers:
            width = self.width(at.site, index)
            wrong = [head for head in at.heads or () if not 0 <= head < width]
            if wrong:
                kind = "KV head" if at.site in (Site.K, Site.V) else "Head"
                raise BadAddress(
                    f"{kind} {wrong[0]} is not there: layer {index} of stack {self.name!r} has {width} "
                    f"{'key/value' if kind == 'KV head' else 'query'} heads (0 to {width - 1})."
                )
        return layers

    def refusal(self, site: Site, edit: bool) -> str | None:
        """Why ``site`` cannot be read (or edited) on this stack; ``None`` where it can."""
        row = self.family
        if site in self.refused:
            return self.refused[site]
        if site is Site.RESID_MID and row.norm == "parallel":
            return "its blocks are parallel: attention and MLP are added at once, so no residual lies between them"
        if site is Site.RESID_CROSS and row.cross is None:
            return "its blocks have no cross-attention"
        if self.cross and site in (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST, Site.MLP_OUT):
            return "it is the cross-attention of a decoder; residual sites are read on stack 'decoder'"
        if not row.interface and site.inside_attention:
            if site in (Site.Q, Site.K, Site.V):
                return "its attention does not go through the attention interface, so q, k and v never show"
            if edit:
                return (
                    "its attention does not go through the attention interface, so an edit there would not take "
                    "effect; edit Site.Z instead"
                )
        return None

    def require(self, site: Site, *, edit: bool) -> None:
        """Refuse a site that this stack cannot offer.

        Raises:
            Unsupported: with the reason.
        """
        reason = self.refusal(site, edit)
        if reason:
            what = "edited" if edit else "read"
            raise Unsupported(f"{site!r} cannot be {what} on stack {self.name!r} ({self.model_type}): {reason}.")

    def tap(self, site: Site, index: int) -> Tap:
        """The module and side at which a site outside the attention function passes in block ``index``."""
        block, row = self.blocks[index], self.family
        if site is Site.RESID_PRE:
            return Tap(block, "input")
        if site is Site.RESID_POST:
            return Tap(block, "output")
        if site is Site.MLP_OUT:
            return Tap(_at(block, row.mlp_writer), "output")
        if site in (Site.Z, Site.RESULT, Site.ATTN_RAW):
            return Tap(self.layer(index).out, "input" if site is Site.Z else "output")
        if site is Site.ATTN_OUT:
            writer = row.cross.writer if self.cross and row.cross else row.attention_writer
            return Tap(_at(block, writer), "output")
        place = row.mid if site is Site.RESID_MID else row.cross.resid if row.cross else None
        assert isinstance(place, Place), site
        return Tap(_at(block, place.path), place.side)

    def multiplier(self, site: Site) -> float:
        """The factor between what the writer puts out and what is added to the residual."""
        if self.family.multiplier and site in (Site.ATTN_OUT, Site.MLP_OUT):
            return float(getattr(self.config, self.family.multiplier))
        return 1.0


def _at(block: nn.Module, path: str) -> nn.Module:
    found = module_at(block, path)
    assert found is not None, path
    return found


def find_stacks(hf: transformers.PreTrainedModel, attempt: int = 0) -> dict[str, Stack]:
    """Every stack of ``hf`` by name, the one that makes the logits first.

    Args:
        hf: the model.
        attempt: which of the rows that fit by structure is taken, for model types that the table does not have.

    Raises:
        LoadFailed: no list of transformer blocks is understood.
    """
    found = find_blocks(hf)
    if not found:
        lists = [name for name, module in hf.named_modules() if isinstance(module, nn.ModuleList)]
        raise LoadFailed(
            f"No transformer blocks were understood in {type(hf).__name__} (model_type "
            f"{getattr(hf.config, 'model_type', '?')!r}); its module lists are {lists or 'none'}. Its attention needs "
            "an output projection under a known name: add a row to interp/model/families.py, or pass the part of the "
            "model that holds the blocks."
        )
    stacks: dict[str, Stack] = {}
    for first in found:
        rows = (first.family, *first.others)
        blocks = replace(first, family=rows[min(attempt, len(rows) - 1)])
        stack = _stack(blocks)
        stacks[stack.name] = stack
        if blocks.family.cross:
            name = "cross" + stack.name.removeprefix("decoder").removeprefix("text")
            stacks[name] = _stack(blocks, cross=name)
    order = sorted(stacks, key=lambda name: (not name.startswith(("text", "decoder")), list(stacks).index(name)))
    return {name: stacks[name] for name in order}


def attempts(hf: transformers.PreTrainedModel) -> int:
    """How many rows can be tried: 1 for known model types, more where several fit an unknown one by structure."""
    return max((1 + len(blocks.others) for blocks in find_blocks(hf)), default=1)


def _stack(blocks: Blocks, cross: str | None = None) -> Stack:
    row = blocks.family
    layers: list[Layer | None] = []
    for index, block in enumerate(blocks.modules):
        attention_path = row.cross.attention if cross and row.cross else row.attention
        out_path = row.cross.out if cross and row.cross else row.out
        attention, out = module_at(block, attention_path), module_at(block, out_path)
        if attention is None or out is None:
            layers.append(None)
            continue
        counts = head_counts(attention, out, blocks.config)
        if counts is None:
            raise LoadFailed(
                f"The number of heads of {blocks.path}.{index}.{attention_path} is not understood: neither the module "
                "nor its config has num_heads, n_heads or num_attention_heads that divides the width of "
                f"{out_path!r}. Pass a model whose config says it."
            )
        layers.append(Layer(index, block, attention, out, *counts))
    name = cross or blocks.name
    return Stack(
        name=name,
        family=row,
        config=blocks.config,
        blocks=tuple(blocks.modules),
        layers=tuple(layers),
        causal=cross is None and _causal(layers, blocks),
        path=blocks.path,
        model_type=blocks.model_type,
    )


def _causal(layers: Iterable[Layer | None], blocks: Blocks) -> bool:
    if blocks.name.startswith(("vision", "encoder", "audio")):
        return False
    flags = [getattr(layer.attention, "is_causal", None) for layer in layers if layer]
    if any(isinstance(flag, bool) for flag in flags):
        return any(flag for flag in flags)
    return bool(getattr(blocks.config, "is_decoder", False)) or not blocks.family.interface


def project_out(layer: Layer, z: Tensor, heads: Iterable[int] | None = None) -> Tensor:
    """``[batch, pos, head, d_model]``: what each head's z becomes in residual space, the projection's bias left out.

    Args:
        layer: whose output projection is used, as a module: quantised, adapted and offloaded ones work.
        z: ``[batch, pos, head, d_head]`` with every head of the layer.
        heads: which heads, all by default.

    ``RESULT_h = W_O(z with every other head 0) - W_O(0)``; a plain Linear or Conv1D is sliced instead.
    """
    wanted = list(range(layer.n_heads)) if heads is None else list(heads)
    weight = getattr(layer.out, "weight", None)
    kind = type(layer.out)
    if kind is nn.Linear and weight is not None and weight.device.type != "meta":
        per_head = weight.view(weight.shape[0], layer.n_heads, layer.d_head)[:, wanted]  # [d_model, head, d_head]
        return torch.einsum("bphd,mhd->bphm", z[:, :, wanted], per_head)
    if kind.__name__ == "Conv1D" and weight is not None and weight.device.type != "meta":
        per_head = weight.view(layer.n_heads, layer.d_head, weight.shape[1])[wanted]
        return torch.einsum("bphd,hdm->bphm", z[:, :, wanted], per_head)
    project = layer.out.forward  # not the call: hooks in force on the module must not see these
    nothing = project(torch.zeros_like(z[:, :1]).flatten(2))
    parts = []
    for head in wanted:
        alone = torch.zeros_like(z)
        alone[:, :, head] = z[:, :, head]
        parts.append(project(alone.flatten(2)) - nothing)
    return torch.stack(parts, dim=2)


def heads_of(stacks: Mapping[str, Stack], default: str, stack: str | None) -> list[Head]:
    """Every head of a stack in order; ``Head.stack`` is ``None`` on the default stack."""
    found = named_stack(stacks, default, stack)
    name = None if found.name == default else found.name
    return [Head(i, h, name) for i in range(found.n_layers) for h in range(found.n_heads(i))]


def named_stack(stacks: Mapping[str, Stack], default: str, name: str | None) -> Stack:
    """The stack called ``name``, the default one for ``None``.

    Raises:
        BadAddress: no such stack.
    """
    key = default if name is None else name
    if key not in stacks:
        raise BadAddress(unknown(key, stacks, "stack"))
    return stacks[key]
