"""Benchmarks: a claim about speed without one is an opinion. In no wheel."""
