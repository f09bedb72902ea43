"""Splits: which photos train a model and which test it, and the models of a whole validation."""
