"""Is attention an explanation? Attention against explanations made after the fact, audits, and other weights."""
