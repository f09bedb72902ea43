"""Runs: the folder that a training leaves; writing it, reading it, applying it to a store, tracking it."""
