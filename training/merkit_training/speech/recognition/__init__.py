"""Paraformer: sound to tokens in one pass (seed 2.4.1)."""
