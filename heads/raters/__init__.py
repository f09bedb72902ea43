"""Raters: how far they agree about photos, and what a model can reach at most against their labels."""
