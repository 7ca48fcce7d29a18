"""Features of any clips by any encoder, in the layout that MER's tools read (seed 2.2, 3.1)."""
