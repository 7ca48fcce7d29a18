"""merkit_bench."""
