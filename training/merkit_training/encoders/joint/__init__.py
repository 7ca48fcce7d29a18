"""The joint audio-text encoder: sound and words in one LLM (seed 2.3)."""
