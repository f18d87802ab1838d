"""Attention between named groups of tokens."""
