"""The shape of a head's map, wherever it looks."""
