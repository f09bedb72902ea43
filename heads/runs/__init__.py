"""Runs: the folder that a training leaves, written, read and applied."""
