"""Attention flow: the maximum flow from a token at the top layer to a token at the bottom."""
