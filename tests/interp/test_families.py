"""Every family row against its tiny model, with plain torch hooks: nothing of the hook layer is used here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import BEYOND, TINY, TinyModel, head_outputs
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.model.blocks import Blocks, find_blocks
from interp.model.families import FAMILIES, LAYOUTS, rows_for
from interp.model.family import Family, Place, module_at
from interp.model.head_counts import head_counts, input_width

MUST_HAVE = set(
    "gpt2 gpt_neo gptj gpt_neox llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 olmo "
    "olmo2 opt bloom falcon stablelm gpt_oss cohere granite deepseek_v3 bert roberta distilbert modernbert t5 bart "
    "whisper vit dinov2 clip siglip llava qwen2_vl paligemma smolvlm idefics3".split()
)
# No row of LAYOUTS describes these: names of their own, or an MLP on flattened rows.
NEEDS_THE_TABLE = {"gpt_neo", "bloom", "falcon", "opt"}


@pytest.fixture(scope="module", params=list(TINY))
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    return TINY[request.param]()


@pytest.fixture(scope="module")
def stacks(tiny: TinyModel) -> list[Blocks]:
    return find_blocks(tiny.hf)


def logits(tiny: TinyModel) -> Tensor:
    with torch.no_grad():
        return head_outputs(tiny.hf(**tiny.inputs()))


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def at(block: nn.Module, path: str) -> nn.Module:
    module = module_at(block, path)
    assert module is not None, path
    return module


@contextmanager
def hooked() -> Iterator[Any]:
    """Gives a function (module, side, act); act may return a new tensor for what goes in or comes out."""
    handles = []

    def hook(module: nn.Module, side: str, act: Any) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            new = act(given(args, kwargs))
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            new = act(first(output))
            return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

        if side == "input":
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:  # before the hooks by which transformers itself records hidden states
            handles.append(module.register_forward_hook(after, prepend=True))

    try:
        yield hook
    finally:
        for handle in handles:
            handle.remove()


def places(row: Family) -> dict[str, tuple[str, str]]:
    """What a row says is where: name -> (side, path); the block itself is the empty path."""
    found = {
        "pre": ("input", ""),
        "post": ("output", ""),
        "attn": ("output", row.attention_writer),
        "mlp": ("output", row.mlp_writer),
        "z": ("input", row.out),
        "mlp_in": ("input", row.mlp),
    }
    if row.mid:
        found["mid"] = row.mid
    if row.cross:
        found |= {"cross": ("output", row.cross.writer), "cross_z": ("input", row.cross.out)}
        found["resid_cross"] = row.cross.resid
    return found


def record(tiny: TinyModel, block: nn.Module, row: Family) -> dict[str, Tensor]:
    """Everything that a row names at one block, copied, and written tensors as they are added."""
    seen: dict[str, list[Tensor]] = {}
    with hooked() as hook:
        for name, (side, path) in places(row).items():
            calls = seen.setdefault(name, [])
            hook(at(block, path) if path else block, side, lambda x, calls=calls: calls.append(x.clone()))
        logits(tiny)
    assert {name: len(calls) for name, calls in seen.items()} == dict.fromkeys(seen, 1)
    return {name: calls[0] for name, calls in seen.items()}


def residual_error(block: nn.Module, row: Family, config: Any, seen: dict[str, Tensor]) -> float:
    """Largest deviation from the row's identities, relative to the residual."""
    factor = getattr(config, row.multiplier) if row.multiplier else 1.0
    pre, post = seen["pre"], seen["post"]
    if row.flat_mlp:
        seen = seen | {name: seen[name].view(pre.shape) for name in ("mlp", "mid") if seen[name].dim() < pre.dim()}
    attn, mlp = factor * seen["attn"], factor * seen["mlp"]
    if not attn.shape == mlp.shape == pre.shape == post.shape:
        return float("inf")

    def norm(path: str | None, x: Tensor) -> Tensor:
        return at(block, path)(x) if path else x

    with torch.no_grad():
        if row.norm == "parallel":
            return deviation(pre + attn + mlp, post)
        norms = row.post_norms or (None, None)
        errors = [deviation(norm(norms[0], pre + attn), seen["mid"])]
        last = seen["mid"]
        if row.cross:
            last = seen["resid_cross"]
            errors.append(deviation(norm(row.cross.post_norm, seen["mid"] + seen["cross"]), last))
        errors.append(deviation(norm(norms[1], last + mlp), post))
    return max(errors)


def deviation(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def attentions(stack: Blocks) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every attention module of a stack and its output projection."""
    for block in stack.modules:
        for part in (stack.family, stack.family.cross):
            if part:
                yield at(block, part.attention), at(block, part.out)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_every_required_family_has_a_tiny_model() -> None:
    assert {name.partition("-")[0] for name in TINY} >= MUST_HAVE


def test_rows_are_consistent() -> None:
    for row in {id(row): row for rows in FAMILIES.values() for row in rows}.values():
        assert (row.mid is None) == (row.norm == "parallel")
        assert (row.post_norms is None) == (row.norm != "post")
        assert row.note == "" or row.note.endswith(".")


def test_a_layout_does_not_hide_one_that_names_more() -> None:
    for i, early in enumerate(LAYOUTS):
        for late in LAYOUTS[i + 1 :]:
            hidden = set(early.paths) < set(late.paths) and set(early.when) <= set(late.when)
            assert not hidden, f"{late} is never reached: {early} fits wherever it does"


# ---- finding blocks -------------------------------------------------------------------------------------------------


def test_stacks_have_their_names(tiny: TinyModel, stacks: list[Blocks]) -> None:
    assert tuple(stack.name for stack in stacks) == tiny.stacks
    assert all(tiny.hf.get_submodule(stack.path) is stack.modules for stack in stacks)


def test_every_block_fits_and_the_type_is_in_the_table(stacks: list[Blocks]) -> None:
    for stack in stacks:
        assert stack.family in FAMILIES[stack.model_type]
        assert all(stack.family.fits(block, stack.config) for block in stack.modules)


def test_a_second_list_of_one_name_gets_a_number() -> None:
    tiny = TINY["llama"]()
    tiny.hf.model.norms = nn.ModuleList([nn.LayerNorm(3)])
    tiny.hf.model.draft = TINY["llama"]().hf.model.layers
    assert [(found.name, found.path) for found in find_blocks(tiny.hf)] == [
        ("text", "model.layers"),
        ("text_2", "model.draft"),
    ]


def test_a_block_without_attention_does_not_hide_its_list() -> None:
    tiny = TINY["llama"]()
    tiny.hf.model.layers.insert(0, nn.Linear(3, 3))
    assert [len(found.modules) for found in find_blocks(tiny.hf)] == [3]


def test_an_unknown_type_is_understood_by_structure(tiny: TinyModel, stacks: list[Blocks]) -> None:
    """Of the layouts that fit, one holds; families that need a row of their own are refused by the same check."""
    for stack in stacks:
        unknown = type("Unknown", (), {"__getattr__": lambda self, name, known=stack.config: getattr(known, name)})()
        type(unknown).model_type = "nobody-knows"
        block = stack.modules[0]
        rows = rows_for(block, unknown)
        assert set(rows) <= set(LAYOUTS)
        holds = [row for row in rows if residual_error(block, row, unknown, record(tiny, block, row)) < 1e-5]
        assert bool(holds) == (tiny.name.partition("-")[0] not in NEEDS_THE_TABLE), rows
        if holds:
            known = replace(stack.family, note="", when=())
            assert replace(holds[0], note="", when=()) == known


# ---- the residual stream --------------------------------------------------------------------------------------------


def test_residual_identity(tiny: TinyModel, stacks: list[Blocks]) -> None:
    for stack in stacks:
        for block in stack.modules:
            seen = record(tiny, block, stack.family)
            assert residual_error(block, stack.family, stack.config, seen) < 1e-5
            for name in ("attn", "mlp") + (("cross",) if stack.family.cross else ()):
                assert seen[name].std() > 0.02 * seen["pre"].std(), f"{name} is too small for the check to mean much"


def test_the_identity_fails_with_the_wrong_writer(tiny: TinyModel, stacks: list[Blocks]) -> None:
    for stack in stacks:
        block, seen = stack.modules[0], record(tiny, stack.modules[0], stack.family)
        wrong = seen | {"attn": 1.01 * seen["attn"]}
        assert residual_error(block, stack.family, stack.config, wrong) > 1e-5
        wrong = seen | {"mlp": 1.01 * seen["mlp"]}
        assert residual_error(block, stack.family, stack.config, wrong) > 1e-5


@pytest.mark.parametrize("which", ["mid", "resid_cross"])
def test_a_change_at_mid_is_a_change_of_the_residual(tiny: TinyModel, stacks: list[Blocks], which: str) -> None:
    """Inputs are changed in place, outputs replaced: the block then goes on with the changed residual."""
    for stack in stacks:
        row = stack.family
        place = row.mid if which == "mid" else row.cross.resid if row.cross else None
        if place is None:
            continue
        for block in stack.modules:
            before = record(tiny, block, row)
            with hooked() as hook:
                hook(at(block, place.path), place.side, lambda x, place=place: shift(x, place))
                after = record(tiny, block, row)
            assert not torch.equal(before["post"], after["post"])
            last = "resid_cross" if row.cross else "mid"
            norm = at(block, row.post_norms[1]) if row.post_norms else nn.Identity()
            factor = getattr(stack.config, row.multiplier) if row.multiplier else 1.0
            shape = before["pre"].shape
            residual = before[which].view(shape) + 0.5 if which == last else after[last].view(shape)
            with torch.no_grad():
                expected = norm(residual + factor * after["mlp"].view(shape))
            assert deviation(after["post"], expected) < 1e-5


def shift(x: Tensor, place: Place) -> Tensor | None:
    if place.side == "output":
        return x + 0.5
    x.add_(0.5)
    return None


def test_what_a_hook_is_given_stays_as_it_was(tiny: TinyModel, stacks: list[Blocks]) -> None:
    """Only where a row says so does the block add onto the MLP's output in place."""
    for stack in stacks:
        block = stack.modules[0]
        kept: dict[str, tuple[Tensor, Tensor]] = {}
        with hooked() as hook:
            for name, (side, path) in places(stack.family).items():
                module = at(block, path) if path else block
                hook(module, side, lambda x, name=name, kept=kept: kept.update({name: (x, x.clone())}))
            logits(tiny)
        changed = {name for name, (tensor, copy) in kept.items() if not torch.equal(tensor, copy)}
        assert changed == ({"mlp"} if stack.family.mlp_overwritten else set())


def test_flags_of_the_row_describe_the_shapes(tiny: TinyModel, stacks: list[Blocks]) -> None:
    for stack in stacks:
        row, seen = stack.family, record(tiny, stack.modules[0], stack.family)
        assert seen["pre"].dim() == seen["post"].dim() == (2 if row.packed else 3)
        assert seen["mlp"].dim() == (2 if row.packed or row.flat_mlp else 3)
        if row.flat_mlp:
            assert seen["mlp"].shape[0] == seen["pre"].shape[0] * seen["pre"].shape[1]


def test_the_mlp_of_a_parallel_block_does_not_see_attention(tiny: TinyModel, stacks: list[Blocks]) -> None:
    """The residual identity alone would hold for a sequential block that is called parallel."""
    for stack in stacks:
        for block in stack.modules:
            before = record(tiny, block, stack.family)
            with hooked() as hook:
                hook(at(block, stack.family.out), "input", torch.zeros_like)
                after = record(tiny, block, stack.family)
            assert torch.equal(before["mlp_in"], after["mlp_in"]) == (stack.family.norm == "parallel")


@pytest.mark.parametrize("name", BEYOND)
def test_types_that_nobody_asked_for(name: str) -> None:
    """One of the rows that fit holds at every block with attention; the others are refused by the identity."""
    tiny = BEYOND[name]()
    stacks = find_blocks(tiny.hf)
    assert tuple(stack.name for stack in stacks) == tiny.stacks
    for stack in stacks:
        row = stack.family
        assert (stack.model_type in FAMILIES) == (name in ("cohere2", "codegen", "mpt", "mbart"))
        blocks = [block for block in stack.modules if row.fits(block, stack.config)]
        assert len(blocks) == (1 if name in ("lfm2", "qwen3_next") else len(stack.modules))
        for block in blocks:
            assert residual_error(block, row, stack.config, record(tiny, block, row)) < 1e-5
            counts = head_counts(at(block, row.attention), at(block, row.out), stack.config)
            assert counts is not None and counts.n_heads == (3 if stack.name == "vision" else 4)
            assert row.norm == "parallel" or row.mid is not None


# ---- heads ----------------------------------------------------------------------------------------------------------


class AttentionCalls:
    """Stands for the attention functions; remembers the shapes and outputs of each module's calls."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[int, int, Tensor]]] = {}

    def function(self, name: str) -> Any:
        plain = ALL_ATTENTION_FUNCTIONS.get(name)

        def attend(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            inner = plain or sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
            output, weights = inner(module, query, key, *args, **kwargs)
            self.seen.setdefault(id(module), []).append((query.shape[1], key.shape[1], output))
            return output, weights

        return attend


def test_attention_is_the_module_that_the_interface_sees(
    tiny: TinyModel, stacks: list[Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Query and key heads as the attention function gets them, and z as it returns it."""
    calls, widths, z = AttentionCalls(), {}, {}
    functions = {name: calls.function(name) for name in ("sdpa", "eager")}
    for name, function in functions.items():
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, name, function)
    with hooked() as hook:
        for stack in stacks:
            for attention, out in attentions(stack):
                key = id(attention)
                hook(out, "input", lambda x, key=key: z.update({key: x.clone()}))
                widths[key] = head_counts(attention, out, stack.config)
                assert widths[key].n_heads * widths[key].d_head == input_width(out)
        logits(tiny)
    expected = {id(attention) for stack in stacks if stack.family.interface for attention, _ in attentions(stack)}
    assert set(calls.seen) == expected
    for module, seen in calls.seen.items():
        n_heads, n_kv_heads, d_head = widths[module]
        assert {(queries, keys) for queries, keys, _ in seen} == {(n_heads, n_kv_heads)}
        output = torch.cat([output for *_, output in seen], dim=1)  # one call per image in packed towers
        assert output.shape[-2:] == (n_heads, d_head)
        assert torch.equal(output.reshape(z[module].shape), z[module])


class Softmaxes(TorchFunctionMode):
    """Collects what every softmax returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.nn.functional.softmax, torch.softmax, Tensor.softmax):
            self.seen.append(result)
        return result


def test_patterns_of_families_beside_the_interface_pass_through_softmax(tiny: TinyModel, stacks: list[Blocks]) -> None:
    for stack in stacks:
        if stack.family.interface:
            continue
        implementation = tiny.hf.config._attn_implementation
        tiny.hf.config._attn_implementation = "eager"
        try:
            with Softmaxes() as softmaxes:
                logits(tiny)
        finally:
            tiny.hf.config._attn_implementation = implementation
        patterns = [seen for seen in softmaxes.seen if seen.dim() == 4]
        counts = [head_counts(attention, out, stack.config) for attention, out in attentions(stack)]
        assert [pattern.shape for pattern in patterns] == [(2, count.n_heads, 7, 7) for count in counts if count]
        for pattern in patterns:
            assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-6)
            assert torch.equal(pattern.triu(1), torch.zeros_like(pattern))


def zero_slice(x: Tensor, axis: int, part: slice) -> Tensor:
    kept = torch.ones(x.shape[axis])
    kept[part] = 0
    return x * (kept if axis == -1 else kept[:, None])


def test_zeroing_a_head_is_zeroing_its_slice_of_the_weight(tiny: TinyModel, stacks: list[Blocks]) -> None:
    plain = logits(tiny)
    for stack in stacks:
        for number, (attention, out) in enumerate(attentions(stack)):
            counts = head_counts(attention, out, stack.config)
            assert counts is not None
            axis = -1 if isinstance(out, nn.Linear) else 0  # Linear weighs [out, in], Conv1D [in, out]
            kept = out.weight.detach().clone()
            moved = []
            for head in range(counts.n_heads):
                part = slice(head * counts.d_head, (head + 1) * counts.d_head)
                with hooked() as hook:
                    hook(out, "input", lambda z, part=part: zero_slice(z, -1, part))
                    by_hook = logits(tiny)
                try:
                    out.weight.data = zero_slice(kept, axis, part)
                    by_weight = logits(tiny)
                finally:
                    out.weight.data = kept
                assert torch.equal(by_hook, by_weight)
                moved.append(float((by_hook - plain).abs().max()) > 1e-4)
            unread = tiny.name == "llava" and stack.name == "vision" and number == len(stack.modules) - 1
            assert moved == [not unread] * counts.n_heads
    assert torch.equal(logits(tiny), plain)


# ---- the tiny models themselves -------------------------------------------------------------------------------------


def test_inputs_are_reproducible_and_sized(tiny: TinyModel) -> None:
    inputs, again, other = tiny.inputs(3, 9, 1), tiny.inputs(3, 9, 1), tiny.inputs(3, 9, 2)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert any(not torch.equal(inputs[name], other[name]) for name in inputs)
    with torch.no_grad():
        found = head_outputs(tiny.hf(**inputs))
    assert found.shape[0] == 3 and torch.isfinite(found).all()
    assert found.std() > 0.1


def test_models_are_reproducible(tiny: TinyModel) -> None:
    assert torch.equal(logits(TINY[tiny.name]()), logits(tiny))
    assert not tiny.hf.training
