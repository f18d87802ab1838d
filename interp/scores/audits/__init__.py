"""Audits that say when attention is not an explanation."""
