"""Class identifiability of ViT heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from conformance.support import Case, load_case
from tiny_models import IMAGES, TOWER, randomise

import interp
from interp import At, Batch, Model, Site
from interp.errors import BadInput, UnknownName, Unsupported
from interp.model.class_head import class_head
from interp.scores.writes.identifiability import identifiability

CaseOf = Callable[[str], Case]
CLS, PATCHES = torch.tensor([0]), torch.arange(1, 5)


def answered(case: Case, classes: list[int]) -> Batch:
    return replace(case.batch(len(classes)), answers=torch.tensor(classes)[:, None])


def test_rank_and_ties() -> None:
    logits = torch.tensor([[5.0, 3.0, 3.0, 1.0]])
    rank = {c: float(identifiability(logits, torch.tensor([c]))[0]) for c in range(4)}
    assert rank == {0: 1.0, 1: 1 - 1.5 / 4, 2: 1 - 1.5 / 4, 3: 0.25}
    one = torch.tensor([1])
    assert float(identifiability(logits, one, ties="best")) == 0.75
    assert float(identifiability(logits, one, ties="worst")) == 0.5
    same = torch.zeros(1, 8)
    assert float(identifiability(same, one)) == 1 - 3.5 / 8
    with pytest.raises(UnknownName, match="ties"):
        identifiability(logits, one, ties="first")


def test_random_logits_are_at_chance() -> None:
    """Mean ``1/2 + 1/(2C)``: the ranks 0 .. C - 1 are equally likely."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 10, generator=draw)
    found = identifiability(logits, torch.randint(0, 10, (20000,), generator=draw))
    assert float(found.mean()) == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_heads_by_norm_and_matrix_written_out(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    classes = [0, 3, 6]
    batch = answered(case, classes)
    seen = interp.run(case.model, batch, [At(Site.RESULT)])[At(Site.RESULT)]
    norm = case.hf.vit.layernorm if name == "vit" else case.hf.dinov2.layernorm
    weight = case.hf.classifier.weight  # [class, d] or [class, 2 d]: CLS, then the mean of patches
    for kind, places in (("cls", CLS), ("patches", PATCHES)):
        half = weight[:, 24:] if name == "dinov2" and kind == "patches" else weight[:, :24]
        with torch.no_grad():
            logits = norm(seen)[:, :, places] @ half.T  # [layer, batch, place, head, class]
        own = torch.stack([logits[:, i, ..., c] for i, c in enumerate(classes)], dim=1)
        expected = (1 - (logits > own.unsqueeze(-1)).sum(-1) / 7).mean(2)  # [layer, batch, head]
        found = interp.score(case.model, batch, {"x": {"score": "class_identifiability", "tokens": kind}})["x"]
        np.testing.assert_allclose(found.per_prompt, expected.transpose(0, 1), atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_the_last_stream_ranks_first_what_the_model_says(case_of: CaseOf, name: str) -> None:
    case = case_of(name)
    batch = case.batch(3)
    final = At(Site.RESID_POST, case.model.stack().n_layers - 1)
    seen = interp.run(case.model, batch, [final])
    head = class_head(case.model, batch, cls=CLS, patches=PATCHES)
    assert head.pooling == {"vit": "cls", "dinov2": "cls and mean"}[name]
    with torch.no_grad():
        logits = head.logits(seen[final][:, 0], "cls", bias=True)
        if name == "dinov2":
            logits = logits + head.logits(seen[final][:, 1:], "patches").mean(1)
    assert seen.logits is not None
    torch.testing.assert_close(logits, seen.logits, rtol=1e-4, atol=1e-5)
    if name == "vit":
        assert identifiability(logits, seen.logits.argmax(-1)).tolist() == [1.0, 1.0, 1.0]


def pooled_model() -> Model:
    """A SigLIP classifier: no token for the class, the mean of all patches after the last norm."""
    config = hf.SiglipConfig(vision_config={**IMAGES, **TOWER, "vision_use_head": False}, num_labels=7)
    model = hf.SiglipForImageClassification(config).eval()
    randomise(model, 5)
    return interp.load(model)


def test_models_that_average_their_tokens_have_patches_alone() -> None:
    model = pooled_model()
    batch = interp.encode(model, inputs={"pixel_values": torch.randn(2, 3, 8, 8)}, answers=[1, 2])
    found = interp.score(model, batch, {"x": {"score": "class_identifiability"}})["x"]
    patches = interp.score(model, batch, {"x": {"score": "class_identifiability", "tokens": "patches"}})["x"]
    np.testing.assert_array_equal(found.per_prompt, patches.per_prompt)
    assert found.metadata["tokens"] == "the mean over patches"
    with pytest.raises(BadInput, match="none stands for the class"):
        interp.score(model, batch, {"x": {"score": "class_identifiability", "tokens": "cls"}})


def test_value_vectors_are_split_by_head(case_of: CaseOf) -> None:
    case = case_of("vit")
    batch = answered(case, [0, 3, 6])
    found = interp.score(case.model, batch, "class_value_agreement")["class_value_agreement"]
    for layer, head in ((0, 0), (1, 2)):
        out = case.model.stack().layer(layer).out.weight  # [d_model, head * d_head]
        vectors = out[:, head * 8 : (head + 1) * 8].T
        cosines = torch.cosine_similarity(case.hf.classifier.weight[[0, 3, 6]][:, None], vectors[None], dim=-1)
        np.testing.assert_allclose(found.per_prompt[:, layer, head], cosines.detach().amax(1), rtol=1e-5)


def test_a_planted_value_vector_points_to_its_class() -> None:
    case = load_case("vit")
    batch = answered(case, [4, 4])
    out = case.model.stack().layer(0).out.weight
    with torch.no_grad():
        out[:, 8 + 3] = 2.5 * case.hf.classifier.weight[4]  # the fourth value vector of head 1
    found = interp.score(case.model, batch, "class_value_agreement")["class_value_agreement"].values
    assert found[0, 1] == pytest.approx(1, abs=1e-6) and found[0, 0] < 0.9


def test_a_planted_head_names_its_class() -> None:
    """A head that writes the class's own direction at CLS ranks it first; the image cannot matter."""
    config = hf.ViTConfig(**IMAGES, **TOWER, num_labels=7)
    vit = hf.ViTForImageClassification(config).eval()
    randomise(vit, 1)
    model = interp.load(vit)
    layer = model.stack().layer(1)
    with torch.no_grad():
        module = layer.attention.v_proj
        module.weight[8:16] = 0
        module.bias[8:16] = 0
        module.bias[8] = 1  # head 1 writes its first value vector everywhere
        gain = vit.vit.layernorm.weight
        target = vit.classifier.weight[5] - vit.classifier.weight.mean(0)
        layer.out.weight[:, 8] = (target / gain) - (target / gain).mean()
    batch = interp.encode(model, inputs={"pixel_values": torch.randn(2, 3, 8, 8)}, answers=[5, 5])
    for kind in ("cls", "patches"):
        found = interp.score(model, batch, {"x": {"score": "class_identifiability", "tokens": kind}})["x"].values
        assert found[1, 1] == 1.0, kind


def test_what_has_no_classes_is_refused(case_of: CaseOf) -> None:
    vit = case_of("vit")
    with pytest.raises(BadInput, match="no class is known"):
        interp.score(vit.model, vit.batch(2), "class_identifiability")
    with pytest.raises(BadInput, match="are no class of this model"):
        interp.score(vit.model, answered(vit, [7, 0]), "class_identifiability")
    clip = case_of("clip")
    with pytest.raises(Unsupported, match="has no class head"):
        interp.score(clip.model, clip.batch(2), "class_identifiability")
    gpt2 = case_of("gpt2")
    with pytest.raises(BadInput, match="image grids"):
        interp.score(gpt2.model, gpt2.batch(2), "class_identifiability")
