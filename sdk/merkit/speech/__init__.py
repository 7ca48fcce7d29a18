"""What hearing needs after the graphs have run: search, text, choice and quality, without torch."""
