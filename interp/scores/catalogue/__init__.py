"""The catalogue of head scores, one file per family; data alone."""
