"""QRHead: what a query adds to the attention on documents, without low outliers, against an empty query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from interp.scores.long_context.query_focused import document_scores

DOCUMENTS = {"one": slice(1, 4), "two": slice(4, 8), "three": slice(8, 9)}
QUERY = slice(9, 11)


def prompts(model: interp.Model, seed: int = 0) -> interp.Batch:
    ids = torch.randint(5, 90, (3, 13), generator=torch.Generator().manual_seed(seed))
    return interp.encode(model, ids)


def asked(**more: object) -> dict[str, dict[str, object]]:
    return {"query_retrieval": {"query": QUERY, "documents": DOCUMENTS, "gold": slice(5, 6), "null": [7], **more}}


def test_low_outliers_are_left_out_per_document_and_head() -> None:
    c = torch.tensor([[[0.2, 0.1, 0.3, -5.0, 0.2, 0.1, 0.2, 0.9, 0.9], [0.1] * 9]])
    members = torch.zeros(2, 1, 9, dtype=torch.bool)
    members[0, 0, :7], members[1, 0, 7:] = True, True
    found = document_scores(c, members)[0]
    own = c[0, 0, :7]
    assert bool(own[3] <= own.mean() - 2 * own.std(unbiased=True)), "an outlier by the unbiased deviation"
    assert found[0, 0].item() == pytest.approx(float(own.sum() + 5.0)) and found[0, 1].item() == pytest.approx(1.8)
    assert found[1].tolist() == pytest.approx([0.7, 0.2]), "without spread nothing is left out"


def test_the_deviation_is_unbiased_and_the_bound_strict() -> None:
    """One value at 1 and n - 1 at 2 lie (n - 1) / sqrt(n) unbiased deviations apart from the mean: 2 from n = 6 on.

    With the biased deviation, sqrt(n - 1), it would be left out from n = 5 on.
    """
    for n in range(3, 12):
        c = torch.full((1, n), 2.0)
        c[0, 0] = 1
        found = float(document_scores(c, torch.ones(1, 1, n, dtype=torch.bool)))
        assert found == pytest.approx(2 * (n - 1) + (0 if n >= 6 else 1)), n


def test_single_tokens_and_missing_documents() -> None:
    c = torch.tensor([[0.5, -0.2, 0.1]])
    members = torch.tensor([[[True, False, False]], [[False, False, False]]])
    found = document_scores(c, members)[0]
    assert found[0].item() == 0.5 and found[1].isnan()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom", "mistral"])
def test_equals_two_runs_written_out(case_of: Callable[..., object], name: str) -> None:
    model = case_of(name).model  # type: ignore[attr-defined]
    batch = prompts(model)
    found = interp.score(model, batch, asked(by_document=True))["query_retrieval"]
    assert batch.ids is not None and found.positions == ("one", "two", "three")
    at = interp.At(interp.Site.PATTERN)
    null = interp.encode(model, torch.cat([batch.ids[:, :9], torch.full((3, 1), 7), batch.ids[:, 11:]], dim=1))
    with_query = interp.run(model, batch, read=[at])[at][..., 9:, :9].mean(-2)
    empty = interp.run(model, null, read=[at])[at][..., 9:, :9].mean(-2)
    c = (with_query - empty).transpose(0, 1)  # [batch, layer, head, key]
    expected = []
    for place in DOCUMENTS.values():
        own = c[..., place]
        if own.shape[-1] > 1:
            own = torch.where(own > own.mean(-1, keepdim=True) - 2 * own.std(-1, keepdim=True), own, 0.0)
        expected.append(own.sum(-1))
    np.testing.assert_allclose(found.samples, torch.stack(expected, -1).numpy(), atol=2e-5)
    gold = interp.score(model, batch, asked())["query_retrieval"]
    np.testing.assert_allclose(gold.samples, found.samples[..., 1], atol=1e-6)


def test_the_empty_query_itself_scores_zero(case_of: Callable[..., object]) -> None:
    model = case_of("llama").model  # type: ignore[attr-defined]
    batch = prompts(model)
    assert batch.ids is not None
    same = interp.encode(model, torch.cat([batch.ids[:1]] * 2))
    options = asked(null=batch.ids[0, QUERY].tolist(), by_document=True)
    assert np.abs(interp.score(model, same, options)["query_retrieval"].samples).max() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_sinks(case_of: Callable[..., object], side: str) -> None:
    model = case_of("llama").model  # type: ignore[attr-defined]
    rows = [list(range(10, 23)), list(range(30, 45))]
    batch = interp.encode(model, rows, padding_side=side)
    for sinks in (None, "first", 2):
        found = interp.score(model, batch, asked(), exclude_sinks=sinks)["query_retrieval"].samples
        for row in range(2):
            alone = interp.encode(model, [rows[row]])
            expected = interp.score(model, alone, asked(), exclude_sinks=sinks)["query_retrieval"].samples
            np.testing.assert_allclose(found[row], expected[0], atol=2e-5)


def test_left_out_columns_take_no_part_in_a_documents_deviation(case_of: Callable[..., object]) -> None:
    """Their attention is 0 with either query: as members they would move the mean, and so what is an outlier."""
    model = case_of("llama").model  # type: ignore[attr-defined]
    batch = interp.encode(model, torch.randint(5, 90, (6, 24), generator=torch.Generator().manual_seed(4)))
    dropped = torch.zeros(6, 24, dtype=torch.bool)
    dropped[:, 1:9] = True

    def found(document: slice) -> np.ndarray:
        options = {"query": slice(20, 22), "documents": {"one": document}, "gold": slice(12, 13), "null": [7]}
        return interp.score(model, batch, {"query_retrieval": options}, exclude_sinks=dropped)[
            "query_retrieval"
        ].samples

    np.testing.assert_allclose(found(slice(1, 20)), found(slice(9, 20)), atol=1e-12)


def test_what_follows_the_query_reads_it_too(case_of: Callable[..., object]) -> None:
    model = case_of("gpt2").model  # type: ignore[attr-defined]
    batch = prompts(model)
    everything = interp.score(model, batch, asked())["query_retrieval"].samples
    suffix = interp.score(model, batch, asked(rows=slice(9, None)))["query_retrieval"].samples
    np.testing.assert_allclose(everything, suffix)
    query_alone = interp.score(model, batch, asked(rows=QUERY))["query_retrieval"].samples
    assert np.abs(everything - query_alone).max() > 1e-3


def test_refusals_of_queries(case_of: Callable[..., object]) -> None:
    model = case_of("gpt2").model  # type: ignore[attr-defined]
    batch = prompts(model)
    for more, message in (
        ({"query": slice(3, 5)}, "and its query begins at column 3; put the documents before the query"),
        ({"gold": slice(12, 13)}, "no document of prompts .* shares a token with gold="),
        ({"null": []}, "expected the empty query as a text or as token ids"),
        ({"null": "N/A"}, "needs a tokenizer; give the empty query as token ids"),
    ):
        with pytest.raises(BadInput, match=message):
            interp.score(model, batch, asked(**more))
    encoder = case_of("bert")
    with pytest.raises(BadInput, match="see no later key"):
        interp.score(encoder.model, encoder.batch(3, 13), asked())  # type: ignore[attr-defined]


def test_a_real_query_finds_its_needle() -> None:
    """The zoo's retrieval layer is drawn to the asked needle by the question, and not to the others."""
    from interp.zoo.needle_text import needle_rows

    model = interp.load("needle")
    rows = needle_rows(4, 128, torch.Generator().manual_seed(2), questions=1)
    ids = rows.ids[:, :-5]  # up to the key that is asked for
    query = torch.zeros_like(ids, dtype=torch.bool)
    query[:, -1] = True
    documents = {"gold": rows.asked[:, : ids.shape[1]], "others": (rows.needle & ~rows.asked)[:, : ids.shape[1]]}
    batch = interp.encode(model, ids, spans=documents)
    options = {"query": query, "documents": ["gold", "others"], "null": [5], "by_document": True}
    found = interp.score(model, batch, {"query_retrieval": options})["query_retrieval"].values
    best = np.unravel_index(found[..., 0].argmax(), found.shape[:2])
    assert best[0] == 1 and found[(*best, 0)] > 0.1 and found[(*best, 0)] > 2 * abs(found[(*best, 1)])
