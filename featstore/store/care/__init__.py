"""Caring for a store: what it should consist of, verify, repair."""
