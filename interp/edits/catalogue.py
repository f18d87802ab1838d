"""The edits by name, one line each; data only, so that a command can list them without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EDITS: Mapping[str, str] = MappingProxyType(
    {
        "zero": "set the tensor at an address to 0 (removal; off-distribution at z)",
        "mean": "replace by the mean over a reference batch, or over the batch's other prompts (mean-self)",
        "resample": "replace by the activation of another prompt, drawn once per seed",
        "noise": "add Gaussian noise drawn from (seed, edit, layer, head, position, prompt)",
        "uniform": "attend evenly to every visible key",
        "patch": "insert the activation of another run, batch, stack or tensor",
        "gate": "multiply by a factor in [0, 1], per head, layer or prompt",
        "scale": "multiply by any factor",
        "add": "add a vector",
        "knockout": "forbid attention from a group of queries to a group of keys",
        "set_pattern": "replace the attention pattern by a given one",
        "freeze_pattern": "hold the attention pattern at that of an unedited run",
        "to_identity": "blend the pattern with the identity map: (1 - strength) A + strength I",
        "sharpen": "divide the attention scores by a temperature",
        "boost": "add a constant to the scores of chosen keys, before the softmax",
        "redistribute": "move a share of the mass on chosen keys to others, after the softmax; row sums stay",
        "custom": "any function of the tensor and of what was read earlier in the same forward",
    }
)
