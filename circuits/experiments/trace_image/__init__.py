"""Traces of images by every method, held against covered pixels and against where the answer truly is."""
