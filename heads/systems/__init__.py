"""The heads that can be trained: one file a paper. A new head is one new file here that calls `register`."""

from heads.systems.registry import find_system, load_systems

__all__ = ["find_system", "load_systems"]
