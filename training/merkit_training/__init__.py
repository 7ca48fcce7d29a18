"""merkit_training."""
