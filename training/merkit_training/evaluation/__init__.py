"""How good is it, on whose clips, and when does it fail: reports and submissions."""
