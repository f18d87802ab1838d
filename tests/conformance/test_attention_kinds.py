"""What single families are there for: sinks, soft-caps, windows, biases, grouped heads, packed images, crossing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp import At, Site, Unsupported

from .support import BYPASS, Case, attention, close, output, plain, sites

MAPS = (At(Site.SCORES), At(Site.PATTERN))


def products(case: Case, run: interp.Run, layer: int, stack: str | None = None) -> Tensor:
    """``[batch, head, query, key]`` q k, by hand, with KV heads repeated."""
    q, k = run[At(Site.Q, layer, stack=stack)], run[At(Site.K, layer, stack=stack)]
    return torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(q.shape[2] // k.shape[2], dim=2))


def reads(layer: int, stack: str | None = None) -> list[At]:
    return [At(site, layer, stack=stack) for site in (Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN, Site.Z)]


def test_sinks_survive(case_of: Callable[[str], Case]) -> None:
    """Rows sum to less than 1, scores are before the shift that the architecture makes, and edits keep the sink."""
    case = case_of("gpt_oss")
    batch = case.batch()
    run = interp.run(case.model, batch, reads(1))
    scores, pattern = run[At(Site.SCORES, 1)], run[At(Site.PATTERN, 1)]
    module = case.hf.model.layers[1].self_attn
    sums = pattern.sum(-1)
    assert bool((sums < 1 - 1e-4).all()) and pattern.shape[-1] == pattern.shape[-2]
    visible = ~torch.isneginf(scores)
    assert close(scores[visible], (products(case, run, 1) * module.scaling)[visible])
    column = module.sinks.detach().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    assert close(torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1], pattern)
    sharp = interp.run(case.model, batch, MAPS, [interp.sharpen(At(Site.SCORES, 1), 0.5)])[At(Site.PATTERN, 1)]
    assert close(torch.softmax(torch.cat([scores / 0.5, column], -1), -1)[..., :-1], sharp)
    even = interp.run(case.model, batch, MAPS, [interp.uniform(At(Site.PATTERN, 1))])[At(Site.PATTERN, 1)]
    assert close(even.sum(-1), torch.ones_like(even.sum(-1)))
    with attention(case, "sdpa") as offered:
        assert not offered, "sdpa would drop the sinks without a word"


def test_soft_cap(case_of: Callable[[str], Case]) -> None:
    """Gemma 2 squeezes its scores; what is read is after the squeeze, and by hand it is the same."""
    case = case_of("gemma2")
    run = interp.run(case.model, case.batch(), reads(1))
    module = case.hf.model.layers[1].self_attn
    cap, scores = module.attn_logit_softcapping, run[At(Site.SCORES, 1)]
    raw = products(case, run, 1) * module.scaling
    visible = ~torch.isneginf(scores)
    assert close(scores[visible], (cap * torch.tanh(raw / cap))[visible])
    assert not torch.equal(scores[visible], raw[visible])


@pytest.mark.parametrize(("name", "layer"), [("mistral", 0), ("gemma3_text", 0), ("gemma2", 0), ("gpt_oss", 0)])
def test_windows(case_of: Callable[[str], Case], name: str, layer: int) -> None:
    """Keys three or more back are blocked in the sliding layer, and stay blocked under edits; full layers see all."""
    case = case_of(name)
    batch = case.batch()
    n = batch.width
    distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    inside = (distance >= 0) & (distance < 3)
    for edits in (
        [],
        [interp.sharpen(At(Site.SCORES), 0.5)],
        [interp.uniform()],
        [interp.boost(At(Site.SCORES), 0, 50.0)],
    ):
        run = interp.run(case.model, batch, MAPS, edits)
        assert torch.equal(~torch.isneginf(run[MAPS[0]][layer]), inside.expand(3, 4, n, n))
        assert not run[MAPS[1]][layer][..., ~inside].any()
        if name != "mistral":
            assert torch.equal(~torch.isneginf(run[MAPS[0]][1]), (distance >= 0).expand(3, 4, n, n))


def test_position_bias(case_of: Callable[[str], Case]) -> None:
    """T5's scores are q k plus a learned bias by distance, the same in every layer, and none across."""
    case = case_of("t5")
    batch = case.batch()
    for stack in ("encoder", "decoder"):
        biases = []
        for layer in (0, 1):
            run = interp.run(case.model, batch, reads(layer, stack))
            scores = run[At(Site.SCORES, layer, stack=stack)]
            biases.append((scores - products(case, run, layer, stack)).masked_fill(torch.isneginf(scores), 0.0))
        assert close(biases[0], biases[1], 1e-5) and close(biases[0][0], biases[0][1]) and biases[0].any()
        bias = biases[0][0]
        assert close(bias[:, 2, 1], bias[:, 3, 2]) and not close(bias[:, 2, 1], bias[:, 2, 0])
    run = interp.run(case.model, batch, reads(0, "cross"))
    assert close(run[At(Site.SCORES, 0, stack="cross")], products(case, run, 0, "cross"))


@pytest.mark.parametrize("name", ["llama", "gemma", "qwen3", "falcon-grouped", "gpt_oss"])
def test_grouped_heads(case_of: Callable[[str], Case], name: str) -> None:
    """K and V have their own heads, nothing is repeated; one KV head serves its group and no other."""
    case = case_of(name)
    stack = case.model.stack()
    groups = stack.n_heads(0) // stack.n_kv_heads(0)
    assert groups > 1 and len(case.model.heads()) == stack.n_layers * stack.n_heads(0)
    batch = case.batch()
    if name in BYPASS:
        return
    run = interp.run(case.model, batch, [At(Site.K), At(Site.V), At(Site.Q)])
    assert run[At(Site.K)].shape == run[At(Site.V)].shape == (2, 3, 6, stack.n_kv_heads(0), stack.d_head(0))
    assert run[At(Site.Q)].shape[3] == stack.n_heads(0)
    last = stack.n_kv_heads(0) - 1
    for site in (Site.K, Site.V):
        edit = interp.scale(At(site, 0, heads=(last,)), 0.5)
        edited = interp.run(case.model, batch, [At(Site.Z, 0)], [edit])
        unedited = interp.run(case.model, batch, [At(Site.Z, 0)], kernels=edited.kernels)
        changed = (edited[At(Site.Z, 0)] != unedited[At(Site.Z, 0)]).any(-1).any(0).any(0)
        assert changed.tolist() == [head // groups == last for head in range(stack.n_heads(0))]
    with pytest.raises(interp.BadAddress, match="key/value"):
        interp.run(case.model, batch, [At(Site.K, 0, heads=(stack.n_kv_heads(0),))])


def test_latent_attention(case_of: Callable[[str], Case]) -> None:
    """DeepSeek's q and k are wider than v; z has v's width."""
    case = case_of("deepseek_v3")
    run = interp.run(case.model, case.batch(), reads(0))
    assert run[At(Site.Q, 0)].shape[-1] == 10 and run[At(Site.V, 0)].shape[-1] == run[At(Site.Z, 0)].shape[-1] == 12


def test_packed_images(case_of: Callable[[str], Case]) -> None:
    """Qwen2-VL's tower runs once per image; reads are stitched, and no patch sees another image."""
    case = case_of("qwen2_vl")
    batch = case.batch()
    run = interp.run(
        case.model, batch, [At(site, stack="vision") for site in (Site.PATTERN, Site.SCORES, Site.Z, Site.V)]
    )
    pattern = run[At(Site.PATTERN, stack="vision")]
    assert pattern.shape == (2, 1, 3, 48, 48)
    image = torch.arange(48) // 16
    same = image[:, None] == image[None, :]
    assert not pattern[..., ~same].any() and bool((pattern[..., same] > 0).all())
    assert torch.equal(torch.isneginf(run[At(Site.SCORES, stack="vision")]), ~same.expand_as(pattern))
    made = torch.einsum("lbhqk,lbkhd->lbqhd", pattern, run[At(Site.V, stack="vision")])
    assert close(made, run[At(Site.Z, stack="vision")])
    first = case.tiny.inputs(1, 6, 0)
    first = {key: value for key, value in case.tiny.inputs(3, 6, 0).items()}
    one = {"input_ids": first["input_ids"][:1], "attention_mask": first["attention_mask"][:1],
           "mm_token_type_ids": first["mm_token_type_ids"][:1], "pixel_values": first["pixel_values"][:16],
           "image_grid_thw": first["image_grid_thw"][:1]}  # fmt: skip
    alone = interp.run(case.model, interp.encode(case.model, inputs=one), [At(Site.PATTERN, stack="vision")])
    assert close(alone[At(Site.PATTERN, stack="vision")], pattern[..., :16, :16])
    for site in (Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN):
        with pytest.raises(Unsupported, match=r"Site\.Z"):
            interp.run(case.model, batch, edits=[interp.scale(At(site, stack="vision"), 2.0)])


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "paligemma", "smolvlm", "idefics3"])
def test_vision_edits_reach_the_text(case_of: Callable[[str], Case], name: str) -> None:
    """Each head of the tower that is used moves the logits, and only those of its own prompt."""
    case = case_of(name)
    batch = case.batch()
    expected = plain(case, batch)
    stack = case.model.stacks["vision"]
    for layer in range(stack.n_layers):
        for head in range(stack.n_heads(layer)):
            edit = interp.zero(At(Site.Z, layer, (head,), stack="vision"))
            moved = float((output(interp.run(case.model, batch, edits=[edit])) - expected).abs().max()) > 1e-5
            assert moved != (name == "llava" and layer == stack.n_layers - 1)
    if not stack.family.packed:
        gate = torch.tensor([1.0, 0.0, 1.0])
        edited = output(
            interp.run(case.model, batch, edits=[interp.gate(At(Site.Z, 0, stack="vision"), gate, axes="batch")])
        )
        assert torch.equal(edited[[0, 2]], expected[[0, 2]]) and not close(edited[1], expected[1])


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_three_stacks(case_of: Callable[[str], Case], name: str) -> None:
    """Encoder, decoder and cross-attention, each with its own shapes; what edits one, the later ones show."""
    case = case_of(name)
    assert list(case.model.stacks) == ["decoder", "encoder", "cross"] and case.model.default_stack == "decoder"
    batch = case.batch()
    ats = [At(Site.PATTERN, 0, stack=stack) for stack in case.model.stacks]
    run = interp.run(case.model, batch, ats)
    decoder, encoder, cross = (run[at] for at in ats)
    assert cross.shape[-2] == decoder.shape[-2] and cross.shape[-1] == encoder.shape[-1]
    assert not decoder.triu(1).any() and encoder.triu(1).any() and cross.triu(1).any()
    spread = interp.run(case.model, batch, ats, [interp.scale(At(Site.Z, 0, stack="encoder"), 0.0)])
    assert torch.equal(spread[ats[1]], encoder) and torch.equal(spread[ats[0]], decoder)
    assert not torch.equal(spread[ats[2]], cross)
    k = interp.run(case.model, batch, [At(Site.K, 0, stack="cross")])[At(Site.K, 0, stack="cross")]
    assert k.shape[1] == encoder.shape[-1]
    with pytest.raises(Unsupported, match="encoder's"):
        interp.run(case.model, batch, [At(Site.K, 0, pos=torch.tensor([[0]]), stack="cross")])
    with pytest.raises(interp.BadInput, match="identity"):
        interp.run(case.model, batch, edits=[interp.to_identity(At(Site.PATTERN, stack="cross"), 0.5)])


@pytest.mark.parametrize("name", BYPASS)
def test_beside_the_interface(case_of: Callable[[str], Case], name: str) -> None:
    """Pattern and scores are read as they are, q, k and v not at all, and z is edited."""
    case = case_of(name)
    batch = case.batch()
    run = interp.run(case.model, batch, [*MAPS, At(Site.Z)])
    pattern = run[MAPS[1]]
    assert close(pattern.sum(-1), torch.ones_like(pattern.sum(-1))) and not pattern.triu(1).any()
    assert close(torch.softmax(run[MAPS[0]], -1), pattern)
    offered = {site for _, _, site in sites(case, edit=True)}
    assert Site.Z in offered and not offered & {Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN}
    assert {Site.SCORES, Site.PATTERN} <= {site for _, _, site in sites(case)}
    for refused in (interp.knockout(0, 0), interp.uniform(), interp.sharpen(At(Site.SCORES), 2.0),
                    interp.scale(At(Site.V), 2.0), interp.freeze_pattern()):  # fmt: skip
        with pytest.raises(Unsupported, match="does not go through the attention interface"):
            interp.run(case.model, batch, edits=[refused])


@pytest.mark.parametrize("name", ["gpt_neo"])
def test_local_attention_beside_the_interface(case_of: Callable[[str], Case], name: str) -> None:
    """GPT-Neo's second layer sees three tokens back."""
    case = case_of(name)
    pattern = interp.run(case.model, case.batch(), [MAPS[1]])[MAPS[1]]
    distance = torch.arange(6)[:, None] - torch.arange(6)[None, :]
    assert not pattern[1][..., distance >= 3].any() and pattern[0][..., distance >= 3].any()
