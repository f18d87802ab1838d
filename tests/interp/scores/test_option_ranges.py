"""The declared range of a score of shape or sinks holds whatever its options are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conformance.support import Case

import interp
from interp.scores.catalogue import shape, sinks

ENTRIES = {**shape.ENTRIES, **sinks.ENTRIES}
GROUPS = (slice(-3, None), {"early": slice(0, 2), "late": slice(3, None)})
OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "normalised": (True,),
    "queries": GROUPS,
    "version": ("rows", "matrix"),
    "share": (True,),
    "n": (1, 3, 0.3),
    "mass": (0.2, 0.99),
    "of": ("value", "residual"),
    "temperature": (0.05, 1.0, 20.0),
    "thetas": ((0.0,), (0.3, 0.9), 0.05),
    "minus_uniform": (True,),
    "most_tokens": (16,),
    "percentile": (0.1, 0.99),
    "measure": ("cosine", "jsd", "top_k"),
    "k": (2,),
    "entries": (500,),
    "own_row": (False,),
    "eps": (0.0, 0.9),
    "first": (3,),
    "cosine": (0.1,),
    "shortest": (0.0,),
    "longest": (0.3,),
    "image": (slice(1, 4),),
    "dimensions": ((0, 5),),
    "tau": (0.5,),
    "rho": (0.1,),
    "least_mass": (0.0,),
    "factor": (1.2,),
    "pairs": ("half", "interleaved"),
    "rotary": (4,),
}
NAMED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "concentration": {"share": (True,)},
    "hub_count": {"share": (0.05, 0.9)},
    "layer_similarity": {"queries": (1, 3)},
    "visual_nonsink_ratio": {"queries": (slice(5, None),)},
    "visual_sink_mass": {"queries": (slice(5, None),)},
    "image_centric": {"queries": (slice(5, None),)},
}
NEEDED = {name: {"image": slice(1, 4)} for name in ("visual_nonsink_ratio", "visual_sink_mass", "image_centric")}


def asked(name: str) -> dict[str, dict[str, Any]]:
    """Label -> options: each option with each of its values, by itself."""
    made: dict[str, dict[str, Any]] = {name: {"score": name, **NEEDED.get(name, {})}}
    for option in ENTRIES[name].options:
        for number, value in enumerate(NAMED.get(name, {}).get(option, OPTIONS[option])):
            own = {"score": name, **NEEDED.get(name, {}), option: value}
            if option == "rotary":
                own["pairs"] = "half"
            made[f"{name} {option} {number}"] = own
    return made


@pytest.mark.parametrize("sinks_left_out", [None, "first"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_option_stays_in_the_range(case_of: Callable[[str], Case], family: str, sinks_left_out: Any) -> None:
    case = case_of(family)
    batch = case.batch(3, 9)
    wanted = {label: options for name in ENTRIES for label, options in asked(name).items()}
    found = interp.score(case.model, batch, wanted, exclude_sinks=sinks_left_out)
    outside = {}
    for label, table in found.items():
        low, high = ENTRIES[wanted[label]["score"]].range
        values = np.asarray(table.samples if table.samples is not None else table.values)
        assert not np.isinf(values).any(), label
        known = values[~np.isnan(values)]
        if known.size and (known.min() < low - 1e-5 or known.max() > high + 1e-5):
            outside[label] = (float(known.min()), float(known.max()), (low, high))
    assert outside == {}


def test_options_that_leave_a_narrower_range() -> None:
    """The values that once were outside: a mean share below 1, a Jacobian divided by a small temperature."""
    model = interp.load("handmade")
    batch = interp.encode(model, torch.tensor([[0, 3, 4, 5, 3, 4, 5]]))
    found = interp.score(
        model,
        batch,
        {
            "jacobian": {"score": "softmax_jacobian", "temperature": 0.1},
            "share": {"score": "effective_support", "share": True},
        },
    )
    assert np.nanmax(found["jacobian"].values) > 0.5
    assert np.nanmin(found["share"].values) < 1
    assert "minus_uniform" not in ENTRIES["nmi"].options
