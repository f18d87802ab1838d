"""How much of the model's copying is left as heads are taken away, in the order of several rankings."""
