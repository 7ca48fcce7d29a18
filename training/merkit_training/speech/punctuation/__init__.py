"""Punctuation by the CT-Transformer (seed 2.3)."""
