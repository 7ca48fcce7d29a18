"""How well the chain of recognition, separation and punctuation hears, measured against noise."""
