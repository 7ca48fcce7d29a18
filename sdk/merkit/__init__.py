"""merkit: multimodal emotion recognition, embedded or served from one bundle."""

__version__ = "0.1.0"
