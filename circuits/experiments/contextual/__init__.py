"""Which heads read the document that holds the answer, wherever it stands, and whether the model needs them."""
