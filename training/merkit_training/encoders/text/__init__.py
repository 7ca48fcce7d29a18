"""The text encoder: a decoder-only LLM (seed 2.2.3), and the tokeniser."""
