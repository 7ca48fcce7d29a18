"""The audio encoder: HuBERT (seed 2.2.2)."""
