"""Encoders that others exported, made into steps: read, placed in a run, turned into one graph."""
