"""Graphs of the chain that hears through noise (seed 2.4)."""
