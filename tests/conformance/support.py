"""What the conformance tests share: the loaded tiny models, their sites, plain forwards, and what "as found" means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_models import BEYOND, TINY, TinyModel, head_outputs
from torch import Tensor

import interp
from interp import At, Batch, Model, Run, Site
from interp.edits.base import Edit
from interp.model.stacks import Stack

families = pytest.mark.parametrize("name", list(TINY))
TEXT = [name for name in TINY if name not in ("t5", "bart", "whisper", "vit", "dinov2", "clip", "siglip", "llava",
                                              "qwen2_vl", "paligemma", "smolvlm", "idefics3")]  # fmt: skip
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
DECODERS = [name for name in TEXT if name not in ENCODERS]
BYPASS = ("gpt_neo", "gptj", "bloom", "falcon", "falcon-grouped", "falcon-sequential")
GENERATING = [*DECODERS, "t5", "bart", "whisper", "llava", "qwen2_vl", "paligemma", "smolvlm", "idefics3"]
# One per kind of attention and of block; the others run the long sweeps in the slow tier.
REPRESENTATIVE = ("gpt2", "llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "gptj", "bloom", "t5",
                  "bart")  # fmt: skip
FIRST_KEY = torch.zeros(1, 1, dtype=torch.long)  # as a group that stacks without a mask understand, too
VECTORS = tuple(site for site in Site if site not in (Site.SCORES, Site.PATTERN))


@dataclass(frozen=True, eq=False)
class Case:
    """A tiny model and its handle."""

    tiny: TinyModel
    model: Model

    @property
    def hf(self) -> Any:
        return self.tiny.hf

    def batch(self, size: int = 3, length: int = 6, seed: int = 0) -> Batch:
        """``size`` prompts without padding, with everything else that the family takes."""
        return interp.encode(self.model, inputs=self.tiny.inputs(size, length, seed))


def load_case(name: str) -> Case:
    """The tiny model of a family, built and loaded."""
    tiny = {**TINY, **BEYOND}[name]()
    return Case(tiny, interp.load(tiny.hf))


def double_case(case: Case) -> Case:
    """A float64 copy, for finite differences."""
    copied = deepcopy(case.hf).double()
    if copied._can_set_experts_implementation():
        copied.set_experts_implementation("eager")  # the grouped one knows no float64
    tiny = TinyModel(case.tiny.name, copied, case.tiny.kind, case.tiny.make, case.tiny.stacks)
    return Case(tiny, interp.load(copied, check=False))


def double_batch(case: Case, size: int = 2, length: int = 5) -> Batch:
    """Prompts whose images and sounds are float64 as well."""
    inputs = case.tiny.inputs(size, length, 0)
    ready = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    return interp.encode(case.model, inputs=ready)


def plain(case: Case, batch: Batch) -> Tensor:
    """The logits of the Hugging Face object itself."""
    with torch.no_grad():
        return head_outputs(case.hf(**batch.inputs))


def output(run: Run) -> Tensor:
    """The logits of a run, as ``plain`` gives them."""
    return head_outputs(run.output)


def sites(case: Case, *, edit: bool = False) -> Iterator[tuple[str, Stack, Site]]:
    """Every (stack's name, stack, site) that the model offers for reading or editing."""
    for name, stack in case.model.stacks.items():
        for site in Site:
            if stack.refusal(site, edit) is None and not (edit and stack.family.packed and site.inside_attention):
                yield name, stack, site


def refused(case: Case, *, edit: bool = False) -> list[tuple[str, Site]]:
    """Every (stack's name, site) that the model does not offer."""
    offered = {(name, site) for name, _, site in sites(case, edit=edit)}
    return [(name, site) for name in case.model.stacks for site in Site if (name, site) not in offered]


def everything(case: Case) -> list[At]:
    """Every readable site of every layer."""
    return [
        At(site, layer=layer, stack=name)
        for name, stack, site in sites(case)
        for layer in stack.layers_of(At(site, stack=name))
    ]


def differentiable(case: Case) -> list[At]:
    """Every readable site, without the maps of an attention that never makes them on the way to its output."""
    fused = case.tiny.name.startswith("falcon")
    return [at for at in everything(case) if not (fused and at.site in (Site.SCORES, Site.PATTERN))]


def random_like(x: Tensor, site: Site, seed: int = 0) -> Tensor:
    """Random numbers that may stand at ``site``: rows of a pattern sum to 1, blocked scores stay blocked."""
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x.dtype)
    if site is Site.SCORES:
        return torch.where(torch.isneginf(x), x, drawn)
    if site is Site.PATTERN:
        return torch.softmax(drawn.masked_fill(x == 0, -torch.inf), dim=-1)
    return drawn


def real_settings(at: At, x: Tensor, *, packed: bool = False) -> dict[str, Edit]:
    """Every edit of the catalogue that has a meaning at ``at``, with a setting that must move something.

    Args:
        at: the address, every layer of one stack.
        x: ``[layer, ...]`` what it holds without an edit.
        packed: rows of all images follow one another, so that there is no other prompt to take from.
    """
    site, stack = at.site, at.stack
    factor = torch.rand(x.shape[-1], generator=torch.Generator().manual_seed(2))  # one factor for all: a norm undoes it
    edits: dict[str, Edit] = {
        "zero": interp.zero(at),
        "gate": interp.gate(at, factor, axes=site.axes[-1]),
        "scale": interp.scale(at, 2 + factor, axes=site.axes[-1]),
        "patch": interp.patch(at, random_like(x, site, 1)),
        "custom": interp.custom(at, lambda y, ctx: y * factor),
    }
    if site in VECTORS:
        width = x.shape[-1]
        vector = torch.randn(x.shape[2], width, generator=torch.Generator().manual_seed(2))
        if not packed:
            edits |= {"mean": interp.mean(at), "resample": interp.resample(at)}
        edits |= {
            "noise": interp.noise(at, std=0.5),
            # at k a vector that is the same at every position would cancel in the softmax
            "add": interp.add(at, vector, axes=f"pos {site.axes[-1]}"),
        }
    if site is Site.SCORES:
        edits |= {
            "sharpen": interp.sharpen(at, 2.0),
            "boost": interp.boost(at, FIRST_KEY, 3.0),
            "knockout": interp.knockout(None, FIRST_KEY, stack=stack),
        }
    if site is Site.PATTERN:
        edits |= {
            "uniform": interp.uniform(at),
            "set_pattern": interp.set_pattern(at, random_like(x, site, 3)),
            "freeze_pattern": interp.freeze_pattern(at),  # moves nothing alone; see the tests of its own
            "redistribute": interp.redistribute(at, FIRST_KEY, 0.9),
        }
        if stack != "cross":
            edits["to_identity"] = interp.to_identity(at, 0.5)
    return edits


def neutral_settings(at: At, x: Tensor) -> dict[str, Edit]:
    """Every edit that has a neutral setting at ``at``, in that setting."""
    site = at.site
    edits: dict[str, Edit] = {
        "gate": interp.gate(at, 1.0),
        "scale": interp.scale(at, 1.0),
        "patch": interp.patch(at, x),
        "custom": interp.custom(at, lambda y, ctx: y),
    }
    if site in VECTORS:
        edits |= {
            "add a zero": interp.add(at, 0.0),
            "add by=0": interp.add(at, torch.randn(x.shape[-1]), axes=site.axes[-1], by=0.0),
            "noise": interp.noise(at, std=0.0),
        }
    if site is Site.SCORES:
        edits |= {"sharpen": interp.sharpen(at, 1.0), "boost": interp.boost(at, FIRST_KEY, 0.0)}
    if site is Site.PATTERN:
        edits |= {
            "set_pattern": interp.set_pattern(at, x),
            "freeze_pattern": interp.freeze_pattern(at),
            "redistribute": interp.redistribute(at, FIRST_KEY, 0.0),
        }
        if at.stack != "cross":
            edits["to_identity"] = interp.to_identity(at, 0.0)
    return edits


@contextmanager
def attention(case: Case, implementation: str) -> Iterator[bool]:
    """``case`` with another attention implementation; gives whether the family has it."""
    configs = {id(module.config): module.config for module in case.hf.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        if case.tiny.name in BYPASS:  # they log a warning instead of raising; falcon alone looks at the setting later
            offered = implementation == "eager" or case.tiny.name.startswith("falcon")
            if offered:
                case.hf.config._attn_implementation_internal = implementation
        else:
            offered = _offered(case, implementation)
        yield offered
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def _offered(case: Case, implementation: str) -> bool:
    try:
        case.hf.set_attn_implementation(implementation)
    except ValueError:
        return False
    return True


@contextmanager
def counted_forwards(case: Case) -> Iterator[list[int]]:
    """Gives a list that grows by one at every forward of the model."""
    calls: list[int] = []
    handle = case.hf.register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def fingerprint(hf: Any) -> dict[str, Any]:
    """Everything about a model that a run could leave behind; equal before and after.

    Hooks that transformers keeps on blocks once somebody asked for hidden states or attentions are left out.
    """
    found: dict[str, Any] = {}
    for name, module in hf.named_modules():
        hooks = []
        for field in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            kept = getattr(module, field)
            hooks.append(
                [key for key, hook in kept.items() if not getattr(hook, "__module__", "").startswith("transformers.")]
            )
        attributes = sorted(key for key in vars(module) if not key.startswith("_output_capturing"))
        found[name] = (hooks, module.training, attributes, type(module), id(getattr(module, "forward", None).__func__))
    found["parameters"] = {
        name: (id(p), p.data_ptr(), p._version, p.requires_grad, p.grad is None) for name, p in hf.named_parameters()
    }
    found["buffers"] = {name: (id(b), b._version) for name, b in hf.named_buffers()}
    configs = {id(m.config): m.config for m in hf.modules() if hasattr(m, "config")}
    found["attention"] = {key: config._attn_implementation_internal for key, config in configs.items()}
    found["settings"] = {key: repr(sorted(map(str, config.to_dict().items()))) for key, config in configs.items()}
    found["modes"] = len(torch.overrides._get_current_function_mode_stack())
    return found


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors of one shape agree relative to the larger's size; minus infinity must stand in both."""
    if a.shape != b.shape or not torch.equal(torch.isneginf(a), torch.isneginf(b)):
        return False
    a, b = a.masked_fill(torch.isneginf(a), 0).double(), b.masked_fill(torch.isneginf(b), 0).double()
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))) if a.numel() else True


def named(problems: Sequence[str]) -> None:
    """Fail with every problem found."""
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems)
