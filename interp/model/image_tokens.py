"""Which tokens of a prompt stand for its image."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import BadInput, Unsupported
from interp.model.batch import Batch
from interp.model.handle import Model

_PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
_EDGES = ("vision_start_token_id", "vision_end_token_id", "boi_token_id", "eoi_token_id", "boi_token_index",
          "eoi_token_index")  # fmt: skip


def image_token_ids(model: Model, *, edges: bool = False) -> tuple[int, ...]:
    """Ids of the tokens that the model replaces by image features, as its config names them; none for text models.

    Args:
        model: the handle.
        edges: the ids of the tokens that open and close an image as well, where the config names them.

    Example:
        >>> import interp
        >>> image_token_ids(interp.load("handmade"))
        ()
    """
    found = []
    for name in (*_PLACEHOLDERS, *(_EDGES if edges else ())):
        value = getattr(model.hf.config, name, None)
        if isinstance(value, int) and value >= 0:
            found.append(value)
    return tuple(dict.fromkeys(found))


def image_columns(model: Model, batch: Batch, *, edges: bool = False) -> Bool[Tensor, "batch pos"]:
    """``[batch, pos]`` True at the tokens that stand for images (or frames of a video).

    They are found by the ids of the prompts as the processor made them, never by a fixed place.

    Args:
        model: the handle.
        batch: the prompts.
        edges: count the tokens that open and close an image.

    Raises:
        Unsupported: the model takes no images among its tokens.
        BadInput: a prompt without an image token.
    """
    placeholders = image_token_ids(model)
    if not placeholders:
        raise Unsupported(
            f"{model.name!r} ({type(model.hf).__name__}) takes no images among its tokens: its config names no image "
            "token. Image scores are for vision-language models; for text, name a span and use its scores."
        )
    if batch.ids is None:
        raise BadInput("These prompts have no token ids, so that their image tokens cannot be found; encode ids.")

    def among(ids: Tensor, wanted: tuple[int, ...]) -> Tensor:
        return torch.isin(ids, torch.tensor(wanted, device=ids.device)) & batch.mask

    bare = (~among(batch.ids, placeholders).any(-1)).nonzero().flatten().tolist()
    if bare:
        raise BadInput(f"Prompts {bare[:5]} have no image token; give every prompt an image.")
    return among(batch.ids, image_token_ids(model, edges=edges))
