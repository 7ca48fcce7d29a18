"""Hearing through noise: recognition, punctuation, separation (seed 2.3, 2.4)."""
