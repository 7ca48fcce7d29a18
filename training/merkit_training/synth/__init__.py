"""The synthetic corpus (`merkit-train synth`): see docs/synthetic-corpus.md."""
