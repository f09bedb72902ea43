"""Hand-made features: what a photo shows, by formulas and words in place of a network (Soleymani 2015)."""
