"""``secondary_sinks``: tokens that become sinks inside a prompt, with birth, lifetime, and the MLP that wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.address import At, Site
from interp.edits import custom
from interp.edits.base import Context, Edit
from interp.errors import BadInput
from interp.model.batch import Batch
from interp.model.handle import Model
from interp.scores.ask import Ask
from interp.scores.reducer import Reducer
from interp.scores.sinks.secondary_sinks import COSINE, LONGEST, SHORTEST, Lives, SinkClasses

_COLUMNS = (
    *("prompt", "position", "column", "token", "kind", "birth", "lifetime"),
    *("norm ratio", "alpha", "writer", "writer cosine"),
)


@dataclass(frozen=True, eq=False, repr=False)
class SecondarySinks:
    """Tokens that point like their prompt's first token for some layers.

    Attributes:
        lives: label, birth and lifetime of every token, births as places in ``layers``.
        layers: block indices with attention.
        norms: ``[prompt, depth]`` norm of the first token's residual entering each layer and leaving the last.
        alpha: ``[prompt, layer, pos]`` what each token receives on average from the queries that see it, over heads.
        mass: layer -> ``[prompt, head, class]`` mean over rows of the mass on the first token, on secondary sinks, on
            copies.
        rows: one row per labelled token; see :meth:`table`.
        stack: whose residuals.
        metadata: how the numbers were made.
    """

    lives: Lives
    layers: tuple[int, ...]
    norms: Float[np.ndarray, "prompt depth"]
    alpha: Float[np.ndarray, "prompt layer pos"]
    mass: Mapping[int, Float[np.ndarray, "prompt head class"]]
    rows: pd.DataFrame
    stack: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per labelled token.

        ``position`` counts the prompt's own tokens; ``kind`` is secondary or copy; ``birth`` is the block index where
        the token first points like the first one, ``lifetime`` at how many layers it does; ``norm ratio`` its norm over
        the first token's at birth; ``alpha`` what it receives while it lives (a direction alone is no sink); ``writer``
        the block whose MLP output points most like the first token's residual at birth, with the cosine.
        """
        return self.rows.copy()

    def levels(self) -> pd.DataFrame:
        """How many secondary sinks share each (birth, lifetime), with their mean norm ratio and alpha."""
        secondary = self.rows[self.rows["kind"] == "secondary"]
        found = secondary.groupby(["birth", "lifetime"], as_index=False)
        levels = found.agg({"column": "size", "norm ratio": "mean", "alpha": "mean"})
        return pd.DataFrame(levels).rename(columns={"column": "tokens"})

    def capped(self, norm: float) -> list[Edit]:
        """Edits that cut the output of each secondary sink's writer, at the sink's token, to at most ``norm``.

        Raises:
            BadInput: a norm that is not above 0, or no secondary sink with a writer.
        """
        if not norm > 0:
            raise BadInput(f"capped: norm={norm!r}; expected a number above 0.")
        chosen = self.rows[(self.rows["kind"] == "secondary") & (self.rows["writer"] >= 0)]
        if not len(chosen):
            raise BadInput("capped: no secondary sink whose writer is known was found; there is nothing to cap.")
        places = list(zip(chosen["writer"].tolist(), chosen["prompt"].tolist(), chosen["column"].tolist(), strict=True))
        edits = []
        for layer in sorted({writer for writer, _, _ in places}):
            member = torch.zeros_like(self.lives.secondary)
            for writer, prompt, column in places:
                member[prompt, column] |= writer == layer
            where = At(Site.MLP_OUT, layer=layer, stack=self.stack)
            edits.append(custom(where, _cut(member, norm), phase="prefill", name="capped"))
        return edits

    def __repr__(self) -> str:
        counts = self.rows["kind"].value_counts().to_dict()
        return f"SecondarySinks({len(self.norms)} prompts, {counts or 'none found'})"


def _cut(member: Tensor, norm: float) -> Any:
    def apply(x: Tensor, ctx: Context) -> Tensor:
        here = member.to(x.device)[ctx.prompts.to(x.device)][:, ctx.rows.to(x.device)]
        size = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
        factor = (norm / size.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1)
        return torch.where(here.unsqueeze(-1), (x * factor).to(x.dtype), x)

    return apply


class _Writers(Reducer):
    """Cosines of each layer's MLP output at chosen tokens with a direction of each token."""

    maps = False
    sites = frozenset({Site.MLP_OUT})

    def __init__(self, ask: Ask, prompts: Tensor, columns: Tensor, directions: Tensor) -> None:
        super().__init__(ask)
        self.prompts, self.columns, self.directions = prompts, columns, directions
        self.cosines: dict[int, Tensor] = {}

    def finish(self, layer: int, seen: Mapping[Site, Tensor]) -> None:
        """The layer's cosines."""
        written = seen[Site.MLP_OUT].float()[self.prompts, self.columns]
        self.cosines[layer] = torch.nn.functional.cosine_similarity(written, self.directions, dim=-1)


def secondary_sinks(
    model: Model,
    batch: Batch,
    *,
    cosine: float = COSINE,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
    stack: str | None = None,
) -> SecondarySinks:
    """The tokens of each prompt that become sinks for some layers: where, from when, for how long, and by which MLP.

    Args:
        model: the handle.
        batch: the prompts.
        cosine: a token is a candidate at a layer where its residual's ``|cos|`` with the first token's exceeds it.
        shortest: a secondary sink is a candidate at more than this share of the layers with attention.
        longest: and at fewer than this share; from there on it is a copy of the primary sink. The published 4 and
            (number of layers - 15) belong to models of 40 layers and more; the shares are this library's.
        stack: whose residuals, the default stack for None.

    Only layers in which the first token itself is a sink are compared: after its norm grows most, until it falls most.
    A cosine says nothing about attention: see ``alpha`` in the table (after "On the existence and behaviour of
    secondary attention sinks", 2025). One forward, and a second one where a token is found.

    Raises:
        BadInput: shares outside [0, 1] or out of order.
        Unsupported: residuals or patterns cannot be read on this stack.

    Example:
        >>> import interp
        >>> model = interp.load("handmade")
        >>> secondary_sinks(model, interp.encode(model, torch.tensor([[0, 3, 4, 3]]))).alpha.shape
        (1, 2, 4)
    """
    place = model.stack(stack)
    ask = Ask("secondary_sinks", model, batch, place)
    seen = SinkClasses(ask, cosine, shortest, longest)
    ask.stream([seen])
    lives, layers = seen.lives(), tuple(sorted(seen.directions))
    found = (lives.secondary | lives.copy).nonzero()
    prompts, columns = found[:, 0], found[:, 1]
    births = lives.birth[prompts, columns]
    writers = _written_by(ask, seen, layers, prompts, columns, births)
    alpha = torch.stack([(seen.mass[x] / seen.seen_by[x].unsqueeze(1)).mean(1) for x in layers], dim=1)
    rows = []
    for index, (prompt, column) in enumerate(found.tolist()):
        birth = int(births[index])
        inside = slice(*lives.window[prompt].tolist())
        alike = torch.stack([seen.cosines[x][prompt, column].abs() > cosine for x in layers])[inside]
        size, first = seen.sizes[layers[birth]][prompt, column], seen.norms[prompt, birth]
        position = int(batch.mask[prompt, :column].sum()) if ask.mask is not None else column
        token = batch.tokens[prompt][position] if batch.tokens and ask.mask is batch.mask else ""
        kind = "secondary" if bool(lives.secondary[prompt, column]) else "copy"
        received = float(alpha[prompt, inside, column][alike].mean())
        known = (prompt, position, column, token, kind, layers[birth], int(lives.lifetime[prompt, column]))
        rows.append((*known, float(size / first), received, *writers[index]))
    return SecondarySinks(
        lives=lives,
        layers=layers,
        norms=seen.norms.cpu().numpy(),
        alpha=alpha.cpu().numpy(),
        mass={layer: x.cpu().numpy() for layer, x in seen.measured().by_layer.items()},
        rows=pd.DataFrame(rows, columns=list(_COLUMNS)),
        stack=place.name,
        metadata={"model": model.name, "cosine": cosine, "shortest": shortest, "longest": longest},
    )


def _written_by(
    ask: Ask, seen: SinkClasses, layers: tuple[int, ...], prompts: Tensor, columns: Tensor, births: Tensor
) -> list[tuple[int, float]]:
    """For each token the block below its birth whose MLP output points most like the first token there; -1 for none."""
    if not len(prompts) or ask.stack.refusal(Site.MLP_OUT, edit=False):
        return [(-1, float("nan"))] * len(prompts)
    directions = torch.stack([seen.directions[layer] for layer in layers], dim=1)[prompts, births]
    writers = _Writers(ask, prompts, columns, directions)
    ask.stream([writers])
    cosines = torch.stack([writers.cosines[layer] for layer in layers], dim=1)  # [token, layer]
    made = []
    for token, birth in enumerate(births.tolist()):
        best = int(cosines[token, :birth].abs().argmax()) if birth else -1
        made.append((layers[best], float(cosines[token, best])) if birth else (-1, float("nan")))
    return made
