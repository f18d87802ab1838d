"""Causal head gating on repeated random tokens: one learned factor per head, held against exact ablation."""
