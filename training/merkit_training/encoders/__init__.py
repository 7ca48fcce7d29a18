"""The tiny, base and paper profiles of every encoder: one module for each modality."""
