"""The table that probes are fitted on equals what the model itself computes."""

import numpy as np
import pytest
import torch
from tiny_models import TINY

import interp
from interp import At, Site
from probes import features


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.load(TINY["llama"]().hf, check=False)


def test_equals_the_input_of_the_output_projection(model: interp.Model) -> None:
    ids = torch.randint(3, 90, (3, 6), generator=torch.Generator().manual_seed(0))
    batch = interp.encode(model, ids)
    seen: list[torch.Tensor] = []
    handle = model.stack().layer(1).out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model.hf(**batch.inputs)
    finally:
        handle.remove()
    assert np.array_equal(features(model, batch, At(Site.Z, layer=1)), seen[0][:, -1].numpy())


def test_padding_does_not_count_and_batches_follow_one_another(model: interp.Model) -> None:
    together = interp.encode(model, [[5, 6, 7, 8], [9, 10]])
    apart = [interp.encode(model, [[5, 6, 7, 8]]), interp.encode(model, [[9, 10]])]
    at = At(Site.RESID_POST, layer=1)
    np.testing.assert_allclose(features(model, together, at), features(model, apart, at), rtol=1e-4, atol=1e-4)


def test_a_span_is_averaged(model: interp.Model) -> None:
    batch = interp.encode(model, [[5, 6, 7, 8]], spans={"middle": range(1, 3)})
    at = At(Site.RESID_PRE, layer=1)
    both = interp.run(model, batch, read=[at])[at][:, 1:3].mean(1).numpy()
    np.testing.assert_allclose(features(model, batch, at, pos="middle"), both, rtol=1e-6)


@pytest.mark.parametrize("at", [At(Site.Z), At(Site.PATTERN, layer=0), At(Site.Z, layer=0, pos=1)])
def test_refuses_what_is_no_table(model: interp.Model, at: At) -> None:
    with pytest.raises(interp.BadInput, match="features"):
        features(model, interp.encode(model, [[5, 6, 7]]), at)
