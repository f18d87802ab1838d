"""Retrieval heads: how much of a needle a head copies while the model writes the answer.

A prompt has a span ``needle`` (the tokens to be copied, somewhere in a long context) and an answer. While the token
``y`` of the answer is predicted, a head **copies** position ``i`` if ``i`` is where its row of attention is largest
(``top_k = 1``; ties go to the lowest position), ``i`` lies in the needle, and the token at ``i`` is ``y``. The row is
that of the last token that the model has read, the token is the next one::

    set    |positions of the needle that were copied| / |needle|       in [0, 1]
    count  |steps at which something was copied|      / |needle|       above 1 where the answer says a token twice

Wu, Wang, Xiao, Peng, Fu, "Retrieval Head Mechanistically Explains Long-Context Factuality", 2024 (arXiv 2404.15574).
Their text defines the set, with which a score never passes 1; their code counts, which is why published scores reach
1.003. The set here is one of positions: a word that stands twice in the needle can be copied twice.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.address import Head
from interp.edits.groups import Group
from interp.errors import BadInput
from interp.model.row_blocks import Block
from interp.names import unknown
from interp.results import HeadScores
from interp.scores.ask import Ask, Measured
from interp.scores.long_context.chosen_rows import columns_with_filler
from interp.scores.long_context.generated import generated_answers
from interp.scores.positions.position import ids_and_mask
from interp.scores.reducer import Reducer

THRESHOLD = 0.1  # from which on a head is called a retrieval head (Wu et al., 2024)
COUNTS = ("set", "count")


def retrieval(
    ask: Ask, needle: Group = "needle", answer: Group = "answer", count: str = "set", top_k: int = 1
) -> Retrieval:
    """How much of the needle each head copies while the answer at the prompt's end is read, per prompt.

    Teacher-forced: one forward computes the rows that predict the answer's tokens, and no others. It equals
    :func:`retrieval_generated` where the model's greedy answer is the one that stands there.

    Args:
        ask: what is scored.
        needle: the tokens to be copied, a span's name or positions.
        answer: the answer's tokens, after the needle.
        count: ``"set"`` every position of the needle once; ``"count"`` every step.
        top_k: how many of the largest entries of a row may be the one copied; a step copies the largest that fits.

    Raises:
        BadInput: an option out of range, an answer before the needle, a prompt without a needle.

    Example:
        >>> import interp
        >>> from interp.scores.long_context.haystack import Fact, haystack_batch, haystacks
        >>> model = interp.load("needle-planted")
        >>> fact = Fact("remember mary book lamp cake moon .", "recall mary", "book lamp cake moon")
        >>> made = haystacks(model, "the dog ran . " * 40, fact, lengths=[100], template="{context} {question}")
        >>> scores = interp.score(model, haystack_batch(model, made), "retrieval")["retrieval"]
        >>> bool(scores.values[1, 0] > 0.9)
        True
    """
    _refuse_options(ask, count, top_k)
    ids, _mask = ids_and_mask(ask)
    wanted, answers = ask.columns(needle, "needle"), ask.columns(answer, "answer")
    _refuse_early_answers(ask, wanted, answers)
    return Retrieval(ask, ids, wanted, answers, count=count, top_k=top_k)


def retrieval_generated(
    ask: Ask,
    needle: Group = "needle",
    count: str = "set",
    top_k: int = 1,
    max_new_tokens: int = 50,
    stop: str | None = "\n",
    recall_over: float = 0.5,
    stem: bool = False,
) -> Measured:
    """How much of the needle each head copies while the model writes its greedy answer, per prompt.

    The answer is generated, put behind the prompt, and read by one forward that computes the answer's rows alone. A
    prompt counts where the answer says enough of the needle, and is NaN else.

    Args:
        ask: what is scored; the prompts end where the answer begins.
        needle: the tokens to be copied, a span's name or positions.
        count: ``"set"`` every position of the needle once; ``"count"`` every step.
        top_k: how many of the largest entries of a row may be the one copied; a step copies the largest that fits.
        max_new_tokens: the longest answer (the paper's 50).
        stop: the answer ends before the first token whose text holds this (the paper's line break), or at the model's
            end token; None for the end token alone.
        recall_over: a prompt counts where the ROUGE-1 recall of the needle's words is larger (the paper's 0.5); see
            :func:`interp.scores.long_context.rouge.rouge_1_recall`.
        stem: compare stems of words, as the paper's code does. The stems are made by simple rules of our own, so that
            equality with that package is UNVERIFIED.

    Raises:
        BadInput: an option out of range, prompts of more than text, a model that does not generate.
    """
    _refuse_options(ask, count, top_k)
    ids_and_mask(ask)
    wanted = ask.columns(needle, "needle")
    written = generated_answers(
        ask, wanted, max_new_tokens=max_new_tokens, stop=stop, recall_over=recall_over, stem=stem
    )
    about = {"recall": written.recall, "answers": written.texts, "prompts counted": sum(written.counted)}
    by_layer = {layer: Measured.nowhere(ask.stack, layer, len(ask.batch)) for layer in ask.layers}
    rows = written.batch
    if rows is not None:
        assert rows.ids is not None
        spans = (rows.spans["needle"], rows.spans["answer"])
        reducer = Retrieval(ask, rows.ids, *spans, count=count, top_k=top_k, dropped=written.dropped)
        ask.stream([reducer], batch=rows)
        for layer, values in reducer.measured().by_layer.items():
            by_layer[layer] = by_layer[layer].to(values)
            by_layer[layer][written.kept.to(values.device)] = values
    return Measured(by_layer, metadata=about)


class Retrieval(Reducer):
    """How much of the needle each head copies at the rows that predict the answer.

    Args:
        ask: what is scored.
        ids: token ids of the prompts, the answer included.
        needle: True at the tokens to be copied.
        answer: True at the answer's tokens.
        count: ``"set"`` or ``"count"``.
        top_k: how many of the largest entries of a row may be the one copied.
        dropped: key columns to leave out, where the blocks come with them.
    """

    def __init__(
        self,
        ask: Ask,
        ids: Int[Tensor, "batch pos"],
        needle: Bool[Tensor, "batch pos"],
        answer: Bool[Tensor, "batch pos"],
        *,
        count: str = "set",
        top_k: int = 1,
        dropped: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        super().__init__(ask)
        self.ids, self.needle, self.count, self.top_k, self.dropped = ids, needle, count, top_k, dropped
        self.predicts = torch.zeros_like(answer)
        self.predicts[:, :-1] = answer[:, 1:]
        self.rows = columns_with_filler(self.predicts)
        self.found: dict[int, Tensor] = {}

    def block(self, block: Block, products: Tensor | None) -> None:
        """Add the positions that the block's rows copied."""
        rows = block.rows
        wanted = self.ids.gather(1, (rows + 1).clamp(max=self.ids.shape[1] - 1))
        pattern = block.pattern
        if self.dropped is not None:
            pattern = pattern * ~self.dropped[:, None, None, : block.n_keys]
        counted = self.predicts.gather(1, rows)
        steps = copied(pattern, self.ids[:, : block.n_keys], wanted, self.needle[:, : block.n_keys], top_k=self.top_k)
        steps = torch.where(counted[:, None], steps, -1)
        batch, heads = steps.shape[:2]
        if block.layer not in self.found:
            self.found[block.layer] = torch.zeros(
                batch, heads, self.ids.shape[1], dtype=torch.long, device=steps.device
            )
        hit = steps >= 0
        self.found[block.layer].scatter_add_(2, steps.clamp(min=0), hit.long())

    def measured(self) -> Measured:
        """Copied positions (or steps) over the needle's length."""
        length = self.needle.sum(1)[:, None].double()
        made = {}
        for layer, times in self.found.items():
            number = (times > 0).sum(-1) if self.count == "set" else times.sum(-1)
            made[layer] = number / length.to(times.device)
        return Measured(made)


def copied(
    pattern: Float[Tensor, "batch head row key"],
    ids: Int[Tensor, "batch key"],
    wanted: Int[Tensor, "batch row"],
    needle: Bool[Tensor, "batch key"],
    *,
    top_k: int = 1,
) -> Int[Tensor, "batch head row"]:
    """The position that each row copies, -1 where it copies none.

    Args:
        pattern: rows of attention.
        ids: the tokens that are looked at.
        wanted: the token that follows each row.
        needle: True at the positions that may be copied.
        top_k: how many of the largest entries are tried, the largest first, ties by position.

    Example:
        >>> pattern = torch.tensor([[[[0.2, 0.7, 0.1], [0.2, 0.7, 0.1]]]])
        >>> needle = torch.tensor([[False, True, False]])
        >>> copied(pattern, torch.tensor([[5, 6, 7]]), torch.tensor([[6, 7]]), needle).tolist()
        [[[1, -1]]]
    """
    found = torch.full(pattern.shape[:3], -1, dtype=torch.long, device=pattern.device)
    left = pattern
    for turn in range(min(top_k, pattern.shape[-1])):
        largest, place = left.max(-1).values, left.argmax(-1)  # argmax gives the first of equal entries
        at = place.flatten(1)
        fits = (
            needle.gather(1, at).view_as(place) & (ids.gather(1, at).view_as(place) == wanted[:, None]) & (largest > 0)
        )
        found = torch.where((found < 0) & fits, place, found)
        if turn + 1 < top_k:
            left = left.scatter(-1, place.unsqueeze(-1), -1.0)
    return found


def retrieval_score(
    pattern: Float[Tensor, "batch head pos pos"],
    ids: Int[Tensor, "batch pos"],
    needle: Bool[Tensor, "batch pos"],
    answer: Bool[Tensor, "batch pos"],
    *,
    count: str = "set",
    top_k: int = 1,
) -> Float[Tensor, "batch head"]:
    """The score from whole maps: :func:`copied` at every row before an answer's token.

    Example:
        >>> ids = torch.tensor([[1, 5, 6, 2, 5, 6]])
        >>> needle, answer = torch.zeros(2, 1, 6, dtype=torch.bool)
        >>> needle[:, 1:3] = answer[:, 4:6] = True
        >>> looks = torch.zeros(1, 1, 6, 6)
        >>> looks[0, 0, 3, 1] = looks[0, 0, 4, 2] = 1.0
        >>> retrieval_score(looks, ids, needle, answer).tolist()
        [[1.0]]
    """
    following = torch.cat([ids[:, 1:], ids[:, -1:]], dim=1)
    steps = copied(pattern, ids, following, needle, top_k=top_k)
    made = torch.full(steps.shape[:2], torch.nan, dtype=torch.float64)
    for prompt in range(len(ids)):
        rows = answer[prompt].nonzero().flatten() - 1
        for head in range(steps.shape[1]):
            hits = [place for place in steps[prompt, head, rows].tolist() if place >= 0]
            made[prompt, head] = len(set(hits) if count == "set" else hits) / int(needle[prompt].sum())
    return made


def retrieval_heads(scores: HeadScores, threshold: float = THRESHOLD) -> tuple[Head, ...]:
    """The heads whose mean score is at least ``threshold``, the largest first.

    The paper's threshold is 0.1; a head that copies a tenth of the needle on average passes it.

    Example:
        >>> table = HeadScores.from_array([[0.05, 0.1], [0.7, 0.0]], name="retrieval", quantity="score", sense=0)
        >>> [str(head) for head in retrieval_heads(table)]
        ['L1.H0', 'L0.H1']
    """
    values = scores.values
    over = [Head(layer, head) for layer, head in zip(*(values >= threshold).nonzero(), strict=True)]
    return tuple(sorted((Head(int(one.layer), int(one.index)) for one in over), key=lambda one: -values[one[:2]]))


def _refuse_options(ask: Ask, count: str, top_k: int) -> None:
    if count not in COUNTS:
        raise BadInput(unknown(count, COUNTS, "way to count what was copied"))
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise BadInput(f"{ask.name}: top_k={top_k!r}; expected how many of the largest entries count, at least 1.")


def _refuse_early_answers(ask: Ask, needle: Tensor, answer: Tensor) -> None:
    columns = torch.arange(needle.shape[1], device=needle.device)
    last = torch.where(needle, columns, -1).amax(1)
    first = torch.where(answer, columns, needle.shape[1]).amin(1)
    early = (first <= last).nonzero().flatten().tolist()
    if early:
        raise BadInput(
            f"{ask.name}: the answer begins before the needle ends in prompts {early[:5]}; the answer stands at the "
            "end of the prompt, after the needle. For prompts without their answer ask for retrieval_generated."
        )
