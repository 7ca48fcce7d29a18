"""Late fusion of encoder features (seed 2.1, eq. 1-6): features, branches, training, tables."""
