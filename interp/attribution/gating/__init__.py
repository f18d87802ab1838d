"""Causal head gating: one learned factor per head, and what the factors say about the heads."""
