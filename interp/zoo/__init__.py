"""Small models inside the package (being written)."""
from __future__ import annotations
ZOO: dict = {}
