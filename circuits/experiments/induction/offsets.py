"""Where heads look, counted from the earlier copy of the current token: the trap of a head that looks one token beside.

A head may complete repeated text and have a standard induction score near zero: one that looks two tokens after the
earlier copy and moves what an earlier layer wrote there about the token before. So the place where a head looks most
is reported beside its score.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

import interp
from circuits.experiments.induction.job import Job, head_grid
from circuits.experiments.repeated import Repeated
from interp.address import At, Head, Site

OFFSETS = (-2, -1, 0, 1, 2, 3, 4)
INDUCTION = OFFSETS.index(1)
BESIDE = tuple(OFFSETS.index(offset) for offset in (2, 3, 4))  # further on: still after the earlier copy


def offset_profile(job: Job) -> Float[np.ndarray, "prompt layer head offset"]:
    """How much of a query's attention goes to the key at each of :data:`OFFSETS` from the earlier copy of its token.

    Averaged over the queries of the second copy; offset 0 is the earlier copy itself (duplicate token), 1 the token
    after it (induction).
    """
    parts = []
    chunks = job.selection.chunks(job.config.batch_size)[:1]  # one batch is enough to see where a head looks
    with job.progress.stage("Where heads look", len(chunks)) as done:
        for chunk in chunks:
            parts.append(job.get("offsets", chunk, lambda c=chunk: {"share": _profile(job, c)})["share"])
            done()
    return np.concatenate(parts)


def _profile(job: Job, prompts: Repeated) -> np.ndarray:
    layers = [layer for layer, width in enumerate(job.widths) if width]
    reads = [At(Site.PATTERN, layer=layer) for layer in layers]
    run = interp.run(job.model, job.batch(prompts), read=reads, logits="last")
    queries = np.arange(prompts.queries.start, prompts.queries.stop)
    found: list[np.ndarray] = []
    for offset in OFFSETS:
        keys = queries - prompts.segment + offset
        seen = (keys >= 0) & (keys <= queries)
        shares: dict[Head, np.ndarray] = {}
        for layer, at in zip(layers, reads, strict=True):
            diagonal = run[at][:, :, queries[seen], keys[seen]].float().mean(-1).cpu().numpy()
            shares |= {Head(layer, index): diagonal[:, index] for index in range(diagonal.shape[1])}
        found.append(head_grid(shares, job.widths))
    return np.stack(found, axis=-1)
