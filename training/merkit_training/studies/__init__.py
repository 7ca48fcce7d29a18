"""Studies: the seed's comparisons, repeated over seeds and answered by their own figures."""
