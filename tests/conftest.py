"""What every test runs under: no network, one thread, a fixed seed, and models that stay as they were found."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums are taken in one order, and workers do not fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def built_cases() -> dict[str, object]:
    """The tiny models built so far in this worker, by name; filled by ``case_of``."""
    return {}


@pytest.fixture
def case_of(built_cases: dict[str, object]) -> Iterator[Callable[[str], object]]:
    """A function name -> loaded tiny model, built once per worker; each must be left as it was found."""
    from conformance.support import Case, fingerprint, load_case

    before: dict[str, object] = {}

    def get(name: str) -> Case:
        if name not in built_cases:
            built_cases[name] = load_case(name)
        case = built_cases[name]
        assert isinstance(case, Case)
        before.setdefault(name, fingerprint(case.hf))
        return case

    yield get
    for name, found in before.items():
        case = built_cases[name]
        assert isinstance(case, Case)
        now = fingerprint(case.hf)
        if now != found:
            del built_cases[name]  # the next test gets a fresh one
        assert now == found, f"the test left something behind on {name}"
