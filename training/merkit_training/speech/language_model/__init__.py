"""N-gram language models for recognition (seed 2.4.1)."""
