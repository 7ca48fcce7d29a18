"""Separation of a noisy sound into its sources, MossFormer2 (seed 2.4.2)."""
