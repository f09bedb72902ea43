"""Extraction: photos through frozen networks into a store."""
