"""Every method of attribution on the same copying prompts: what each says, and how far they agree."""
