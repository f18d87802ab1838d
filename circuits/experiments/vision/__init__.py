"""Which heads a vision-language model's answers about pictures rest on, and what it says with the picture withheld."""
