"""Kinds of heads by name, as a survey lists them, with the test of each. Data: it can be listed without torch.

``interp.label_heads`` runs the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from interp.scores.labels import expression, identification, reasoning, recalling
from interp.scores.labels.kinds import HeadTest as HeadTest
from interp.scores.labels.kinds import HeadType as HeadType

HEAD_TYPES: Mapping[str, HeadType] = MappingProxyType(
    {
        **recalling.TYPES,
        **identification.TYPES,
        **reasoning.TYPES,
        **expression.TYPES,
        **reasoning.OUTSIDE,
    }
)
