"""Traces that know what values write: transformed vectors, logits, zeroed values, paths."""
