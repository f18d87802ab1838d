"""Every head score that applies to a model, labels with their evidence, and one page to look at each head."""
