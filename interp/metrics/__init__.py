"""Metrics: from logits and a batch to one number per prompt. Nothing is reduced silently.

Logits are ``[batch, pos, vocab]`` over all columns, ``[batch, 1, vocab]`` where only the answer's position was
unembedded, or ``[batch, class]``. Sums, probabilities and log-probabilities are taken in float32 at least. Any callable
``(logits, batch) -> [batch]`` is a metric too; it may say ``.positions = "answers"`` and ``.sense = -1`` of itself.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
