"""The face encoders: Emotion ViT and InternViT (seed 2.2.1)."""
