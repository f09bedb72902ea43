"""Splits: who is trained on and who is tested."""
