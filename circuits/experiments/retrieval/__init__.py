"""Which heads copy a fact out of a long text when it is asked for, and what is left of the answers without them."""
