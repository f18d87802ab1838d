"""Heads by their weights alone."""
