"""Sinks, and the massive values that go with them."""
