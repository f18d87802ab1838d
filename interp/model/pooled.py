"""Encoders without a head, given one: the mean-pooled embedding of a prompt read along some directions."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.model.load import load
from interp.model.run import run


def pooled(
    hidden: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch d_model"]:
    """``[batch, d_model]`` the mean over each prompt's real tokens, as sentence encoders take it.

    Example:
        >>> pooled(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
        [[2.0]]
    """
    here = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * here).sum(1) / here.sum(1).clamp(min=1)


def embeddings(model: Model, batch: Batch) -> Float[Tensor, "batch d_model"]:
    """The mean-pooled last hidden states of an encoder.

    Raises:
        Unsupported: a model without last hidden states.
    """
    output = run(model, batch).output
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:  # noqa: PLR2004 - batch, pos, d_model
        raise Unsupported(f"{model.name!r} gives no last hidden states [batch, pos, d_model] to pool.")
    return pooled(hidden.float(), batch.mask)


def with_directions(model: Model, directions: Float[Tensor, "direction d_model"]) -> Model:
    """A handle whose logits ``[batch, direction]`` are the mean-pooled embedding along each direction.

    An encoder of sentences gives no logits, so that there is nothing for a metric to read. With the unit embedding of
    each prompt as the directions, prompt i's logit i is the length of its embedding along what it was as a whole,
    ``<e, e_i> / ||e_i||``; answers are numbers of directions. (The cosine itself would have no gradient there: it is at
    its largest.) The encoder's own module is used and stays as it is.

    Args:
        model: an encoder without a head.
        directions: one per class.

    Raises:
        BadInput: directions of another width, or a model that has logits of its own.

    Example:
        >>> import interp, transformers
        >>> config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                                  intermediate_size=8, max_position_embeddings=16)
        >>> encoder = interp.load(transformers.BertModel(config).eval())
        >>> headed = with_directions(encoder, torch.eye(8)[:3])
        >>> batch = interp.encode(headed, torch.tensor([[1, 2, 3, 4]]), answers=[2])
        >>> tuple(interp.run(headed, batch).logits.shape)
        (1, 3)
    """
    width = getattr(model.hf.config, "hidden_size", None)
    if directions.ndim != 2 or directions.shape[1] != width:  # noqa: PLR2004 - direction, d_model
        raise BadInput(f"with_directions: directions {list(directions.shape)}; expected [direction, d_model={width}].")
    if type(model.hf).__name__ != type(model.hf.base_model).__name__ or not _headless(model):
        raise BadInput(f"with_directions: {type(model.hf).__name__} has a head of its own; use its logits.")
    config = copy.deepcopy(model.hf.config)
    config.num_labels = len(directions)
    head = _DirectionHead(config, model.hf, directions.detach().to(model.device, torch.float32))
    return load(head, tokenizer=model.tokenizer, processor=model.processor)


def _headless(model: Model) -> bool:
    return model.hf.get_output_embeddings() is None and "encoder" not in model.stacks


class _DirectionHead(transformers.PreTrainedModel):
    """An encoder with the directions as its classes."""

    def __init__(
        self,
        config: transformers.PretrainedConfig,
        encoder: transformers.PreTrainedModel | None = None,
        directions: Tensor | None = None,
    ) -> None:
        """From a config alone it is an untrained encoder, as every model of the library is."""
        own: Any = transformers.AutoModel.from_config(config) if encoder is None else encoder
        self.config_class = type(config)
        self.base_model_prefix = own.base_model_prefix or "encoder"
        for name in ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend"):
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))
        super().__init__(config)
        setattr(self, self.base_model_prefix, own)
        none = torch.zeros(int(config.num_labels or 0), own.get_input_embeddings().weight.shape[-1])
        self.register_buffer("directions", none if directions is None else directions)
        self.train(own.training)

    def forward(self, **inputs: Any) -> SequenceClassifierOutput:
        """The logits ``[batch, direction]``."""
        encoder = getattr(self, self.base_model_prefix)
        hidden = encoder(**inputs).last_hidden_state
        mask = inputs.get("attention_mask")
        mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask
        directions: Any = self.directions
        return SequenceClassifierOutput(logits=pooled(hidden.float(), mask.bool()) @ directions.mT)  # pyright: ignore[reportArgumentType]
