"""Attention sinks: which heads rest on the first token, since which layer, what it is made of, and what it is for."""
