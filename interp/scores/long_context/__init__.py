"""Heads that find things in long contexts."""
