"""Heads gained and lost between the checkpoints of a training, and whether they matter."""
