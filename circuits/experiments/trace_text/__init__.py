"""Traces of texts by every method, held against what happens as tokens are blanked out."""
