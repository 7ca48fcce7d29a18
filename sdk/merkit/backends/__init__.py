"""Executors of the pipeline behind one narrow interface; see `merkit.backends.base`."""
