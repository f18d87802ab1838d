"""Encoding: texts, ids, chats, images and ready inputs become a batch, with answers and named spans checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from operator import index as whole_number
from typing import Any, Literal

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.model.answers import answer_ids
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.inputs import context_limit, input_embeddings, pad_id, position_ids
from interp.model.spans import span_masks


def encode(
    model: Model,
    prompts: Any = None,
    *,
    images: Any = None,
    audio: Any = None,
    decoder: Any = None,
    inputs: Mapping[str, Any] | None = None,
    answers: Sequence[Any] | None = None,
    spans: Mapping[str, Any] | None = None,
    mask: Tensor | None = None,
    bos: Literal["tokenizer"] | bool = "tokenizer",
    read_at: Literal["last", "mask"] | int = "last",
    padding_side: Literal["left", "right"] | None = None,
    answer_tokens: Literal["one", "first"] = "one",
) -> Batch:
    """A batch of prompts as ``model`` takes them, on its device.

    Args:
        model: the handle.
        prompts: texts (one or a list), token ids (LongTensor ``[batch, pos]`` or lists of ints), chats (a list of
            ``{"role", "content"}`` messages, or a list of such lists), or ``None`` with ``inputs`` or ``images``.
        images: one image or a list per prompt, for the processor.
        audio: raw audio, for the processor.
        decoder: texts or ids that the decoder of an encoder-decoder is given; its start token alone by default.
        inputs: Hugging Face keywords, passed on as they are.
        answers: per prompt the right answer, or (right, wrong, ...): texts or token ids (class ids for classifiers).
        spans: name -> per prompt a substring that occurs once, a (start, end) range of characters, or a list of those;
            one value stands for every prompt. With ids: ``range`` of positions.
        mask: ``[batch, pos]`` True at real tokens, for ids that are padded.
        bos: what the tokenizer does by itself, or ``True`` / ``False``.
        read_at: where the answer is predicted: the last real token, the mask token, or a position of each prompt.
        padding_side: ``"right"`` by default; generation needs ``"left"`` where lengths differ.
        answer_tokens: ``"one"`` refuses an answer of several tokens; ``"first"`` declares that its first token stands
            for it.

    Raises:
        BadInput: empty prompts, a prompt longer than the context, an answer of several tokens or whose border merges
            with the prompt, a span that is not there, counts that do not match.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> interp.encode(model, torch.tensor([[0, 3, 4, 3]]), answers=[(4, 5)]).answers
        tensor([[4, 5]])
    """
    side = padding_side or "right"
    if side not in ("left", "right"):
        raise BadInput(f"padding_side={padding_side!r}: expected 'left' or 'right'.")
    if answer_tokens not in ("one", "first"):
        raise BadInput(f"answer_tokens={answer_tokens!r}: expected 'one' or 'first'.")
    texts: tuple[str, ...] = ()
    if inputs is not None:
        if prompts is not None:
            raise BadInput("encode: give prompts or inputs=, not both; ids go into inputs={'input_ids': ...}.")
        ready = dict(inputs)
    elif images is not None or audio is not None:
        texts = _texts(prompts) if prompts is not None else ()
        ready = _processed(model, texts, images, audio, side)
    else:
        ready, texts = _text_inputs(model, prompts, mask, bos, side)
    ready = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in ready.items()}
    if model.default_stack == "decoder":
        _add_decoder(model, ready, decoder, side)
    elif decoder is not None:
        raise BadInput(f"decoder= is for encoder-decoders; {type(model.hf).__name__} is none.")
    ids, real, encoder = _rows(model, ready, mask)
    _check(model, real, encoder)
    sides = _padded_sides(real)
    if texts and model.default_stack != "decoder":
        _warn_unknown(model, ids, real)
    chosen = answer_ids(model, texts, answers, len(real), answer_tokens, read_at)
    return Batch(
        inputs=ready,
        mask=real,
        ids=ids,
        read_at=_read_at(model, ids, real, read_at),
        answers=None if chosen is None else chosen.to(model.device),
        spans=span_masks(model, texts, spans, ready, encoder if encoder is not None else real),
        tokens=_tokens(model, ids, real),
        texts=texts,
        encoder_mask=encoder,
        bos=getattr(model.tokenizer, "bos_token_id", None),
        padding_side=sides[0] if sides else side,
        default_stack=model.default_stack,
    )


def _text_inputs(
    model: Model, prompts: Any, mask: Tensor | None, bos: Any, side: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    if prompts is None:
        raise BadInput("encode: nothing was given; pass texts, ids, chats, images= or inputs=.")
    rows: list[list[int]]
    texts: tuple[str, ...] = ()
    if isinstance(prompts, Tensor):
        whole = not (prompts.is_floating_point() or prompts.is_complex() or prompts.dtype == torch.bool)
        if prompts.ndim != 2 or not whole:  # noqa: PLR2004 - [batch, pos]
            raise BadInput(f"encode: ids of {prompts.dtype} {list(prompts.shape)}; expected a LongTensor [batch, pos].")
        return _id_inputs(model, prompts.long(), mask, side), ()
    if _is_chat(prompts):
        rows = _chats(model, prompts)
    elif not isinstance(prompts, str) and len(prompts) and not isinstance(prompts[0], str):
        rows = _listed(prompts)
    else:
        texts = _texts(prompts)
        rows = _tokenised(model, texts, bos)
    if not rows or any(not row for row in rows):
        empty = [index for index, row in enumerate(rows) if not row]
        raise BadInput(f"encode: prompt {empty[0] if empty else 0} is empty; every prompt needs at least one token.")
    if mask is not None:
        raise BadInput("encode: mask= goes with ids as a tensor; texts and lists are padded here.")
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id(model), dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        real[index, place] = True
    return _id_inputs(model, ids, real, side), texts


def _listed(prompts: Any) -> list[list[int]]:
    try:
        return [[whole_number(token) for token in row] for row in prompts]
    except TypeError:
        raise BadInput(
            f"encode: prompts {str(prompts)[:80]}; expected texts, chats, a LongTensor [batch, pos] or lists of ints."
        ) from None


def _id_inputs(model: Model, ids: Tensor, mask: Tensor | None, side: str) -> dict[str, Any]:
    embeddings = input_embeddings(model)
    size = getattr(embeddings, "num_embeddings", None)
    if ids.numel() == 0:
        raise BadInput("encode: empty prompts; every prompt needs at least one token.")
    if size is not None and (int(ids.min()) < 0 or int(ids.max()) >= size):
        raise BadInput(
            f"encode: token ids from {int(ids.min())} to {int(ids.max())}; the vocabulary has 0 to {size - 1}."
        )
    if mask is None:
        real = torch.ones_like(ids, dtype=torch.bool)
    else:
        if mask.shape != ids.shape:
            raise BadInput(f"encode: mask {list(mask.shape)} for ids {list(ids.shape)}; expected the same shape.")
        real = mask.bool()
    made: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long()}
    positions = position_ids(model, real)
    if positions is not None:
        made["position_ids"] = positions
    return made


def _texts(prompts: Any) -> tuple[str, ...]:
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not texts:
        raise BadInput("encode: an empty list of prompts.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(
                f"encode: prompt {index} is a {type(text).__name__}; expected texts, ids or chats throughout."
            )
        if not text:
            raise BadInput(f"encode: prompt {index} is empty; every prompt needs at least one token.")
    return texts


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise BadInput(
            f"encode: {model.name!r} came without a tokenizer; pass load(..., tokenizer=...), or give token ids."
        )
    return model.tokenizer


def _tokenised(model: Model, texts: Sequence[str], bos: Any) -> list[list[int]]:
    tokenizer = _tokenizer(model)
    if bos not in ("tokenizer", True, False):
        raise BadInput(f"bos={bos!r}: expected 'tokenizer', True or False.")
    rows = tokenizer(list(texts), add_special_tokens=bos is not False)["input_ids"]
    if bos is True:
        first = tokenizer.bos_token_id
        if first is None:
            raise BadInput("bos=True: this tokenizer has no BOS token.")
        rows = [row if row[:1] == [first] else [first, *row] for row in rows]
    return rows


def _is_chat(prompts: Any) -> bool:
    if not isinstance(prompts, list | tuple) or not prompts:
        return False
    first = prompts[0]
    return isinstance(first, Mapping) or (
        isinstance(first, list | tuple) and bool(first) and isinstance(first[0], Mapping)
    )


def _chats(model: Model, chats: Any) -> list[list[int]]:
    tokenizer = _tokenizer(model)
    many = chats if not isinstance(chats[0], Mapping) else [chats]
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("encode: chat messages were given, but this tokenizer has no chat template; give texts.")
    return [
        list(tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=True, return_dict=False))
        for chat in many
    ]


def _processed(model: Model, texts: Sequence[str], images: Any, audio: Any, side: str) -> dict[str, Any]:
    if model.processor is None:
        raise BadInput(
            f"encode: {model.name!r} came without a processor; pass load(..., processor=...), or ready tensors as "
            "inputs={'pixel_values': ...}."
        )
    keywords: dict[str, Any] = {"return_tensors": "pt"}
    if texts:
        keywords |= {"text": list(texts), "padding": True}
        if model.tokenizer is not None and getattr(model.processor, "tokenizer", None) is not None:
            keywords["padding_side"] = side
    if images is not None:
        keywords["images"] = images
    if audio is not None:
        keywords["audio"] = audio
    return dict(model.processor(**keywords))


def _add_decoder(model: Model, ready: dict[str, Any], decoder: Any, side: str) -> None:
    if "decoder_input_ids" in ready:
        return
    count = next(value.shape[0] for value in ready.values() if isinstance(value, Tensor))
    start = getattr(model.hf.config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.hf.config, "bos_token_id", None)
    if decoder is None:
        if start is None:
            raise BadInput("encode: the config names no decoder_start_token_id; give decoder= ids.")
        ready["decoder_input_ids"] = torch.full((count, 1), int(start), device=model.device)
        return
    if isinstance(decoder, Tensor):
        ids = decoder.long()
    else:
        rows = (
            [list(row) for row in decoder]
            if not isinstance(decoder, str) and not isinstance(decoder[0], str)
            else [
                [int(start), *row] if start is not None else row
                for row in _tokenizer(model)(list(_texts(decoder)), add_special_tokens=False)["input_ids"]
            ]
        )
        if len({len(row) for row in rows}) > 1:
            raise BadInput("encode: decoder prompts of unequal length; give them in batches of one length.")
        ids = torch.tensor(rows)
    if ids.shape[0] != count:
        raise BadInput(f"encode: {ids.shape[0]} decoder prompts for {count} prompts.")
    ready["decoder_input_ids"] = ids.to(model.device)


def _rows(model: Model, ready: Mapping[str, Any], mask: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """``(ids, real tokens, the encoder's real tokens)`` of the default stack."""

    def real_of(prefix: str, ids: Tensor) -> Tensor:
        given = ready.get(prefix + "attention_mask")
        if given is None and mask is not None and not prefix:
            given = mask
        if isinstance(given, Tensor) and given.ndim == 2:  # noqa: PLR2004 - [batch, pos]
            return given.bool().to(ids.device)
        return torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)

    own = ready.get("decoder_input_ids" if model.default_stack == "decoder" else "input_ids")
    if isinstance(own, Tensor):
        if model.default_stack != "decoder":
            return own, real_of("", own), None
        source = ready.get("input_ids")
        encoder = real_of("", source) if isinstance(source, Tensor) else None
        return own, real_of("decoder_", own), encoder
    embeds = ready.get("inputs_embeds")
    if isinstance(embeds, Tensor):
        return None, real_of("", embeds), None
    first = next((value for value in ready.values() if isinstance(value, Tensor)), None)
    if first is None:
        raise BadInput("encode: inputs= holds no tensor.")
    return None, torch.ones(first.shape[0], 1, dtype=torch.bool, device=first.device), None


def _check(model: Model, real: Tensor, encoder: Tensor | None) -> None:
    lengths = real.sum(-1)
    if int(lengths.min()) == 0:
        raise BadInput(f"encode: prompt {int(lengths.argmin())} is empty; every prompt needs at least one token.")
    limit = context_limit(model)
    for mask in (real, encoder):
        if limit is not None and mask is not None and mask.shape[1] > limit:
            raise BadInput(
                f"encode: the longest prompt has {int(mask.sum(-1).max())} tokens (padded to {mask.shape[1]}), the "
                f"context of {model.name!r} holds {limit}. Shorten it, or load a model with a longer context."
            )
    allowed = {"right only": "right", "left only": "left", "changes real tokens": "none"}.get(model.card.padding)
    for mask in (real, encoder):
        wrong = [] if mask is None or allowed is None else [side for side in _padded_sides(mask) if side != allowed]
        if mask is not None and wrong:
            raise BadInput(
                f"encode: the prompts have unequal lengths ({sorted(set(mask.sum(-1).tolist()))}) and are padded on "
                f"the {wrong[0]}, which changes the results of real tokens on {model.name!r} (measured at load: "
                f"{model.card.padding}). "
                + (f"Pass padding_side={allowed!r}." if allowed != "none" else "Give prompts of one length at a time.")
            )


def _padded_sides(mask: Tensor) -> list[str]:
    return [side for side, column in (("left", 0), ("right", -1)) if not bool(mask[:, column].all())]


def _read_at(model: Model, ids: Tensor | None, real: Tensor, read_at: Any) -> Tensor:
    width = real.shape[1]
    columns = torch.arange(width, device=real.device)
    if read_at == "last":
        return (columns * real).argmax(-1)
    if read_at == "mask":
        token = getattr(model.tokenizer, "mask_token_id", None)
        if token is None or ids is None:
            raise BadInput("read_at='mask': this model has no mask token.")
        found = (ids == token) & real
        if bool((found.sum(-1) != 1).any()):
            counts = found.sum(-1).tolist()
            raise BadInput(f"read_at='mask': each prompt needs the mask token exactly once, found {counts}.")
        return found.long().argmax(-1)
    if isinstance(read_at, bool) or not isinstance(read_at, int):
        raise BadInput(f"read_at={read_at!r}: expected 'last', 'mask' or a position.")
    shortest = int(real.sum(-1).min())
    if not -shortest <= read_at < shortest:
        raise BadInput(f"read_at={read_at} is outside the shortest prompt, which has {shortest} tokens.")
    ordinal = real.cumsum(-1) - 1
    wanted = read_at if read_at >= 0 else real.sum(-1, keepdim=True) + read_at
    return (real & (ordinal == wanted)).long().argmax(-1)


def _tokens(model: Model, ids: Tensor | None, real: Tensor) -> tuple[tuple[str, ...], ...]:
    if ids is None:
        return ()
    rows = [ids[index][real[index]].tolist() for index in range(len(ids))]
    if model.tokenizer is None:
        return tuple(tuple(map(str, row)) for row in rows)
    return tuple(tuple(model.tokenizer.decode([token]) for token in row) for row in rows)


def _warn_unknown(model: Model, ids: Tensor | None, real: Tensor) -> None:
    token = getattr(model.tokenizer, "unk_token_id", None)
    if token is None or ids is None or token == getattr(model.tokenizer, "eos_token_id", None):
        return
    count = int(((ids == token) & real).sum())
    if count:
        warnings.warn(
            f"{count} of {int(real.sum())} tokens are the unknown token {model.tokenizer.unk_token!r}: the tokenizer "
            f"of {model.name!r} does not know those words.",
            stacklevel=3,
        )
