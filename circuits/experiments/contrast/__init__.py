"""Contrastive gating: which heads to close so that one format of the same items is lost and another is kept."""
