"""The induction experiment: previous-token and induction heads, what they do for the loss, and when they appear."""
