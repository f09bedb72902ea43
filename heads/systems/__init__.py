"""The systems that can be trained: one file per paper, each registering its models and their defaults.

Adding a system is one new file here that calls `register`, and its name in `_FILES`.
"""

from importlib import import_module

from heads.systems.system import System, find_system, register, systems

_FILES = ("amtl", "amtl_plus", "sentiment", "personality", "probes", "svr")


def load_systems() -> dict[str, System]:
    """Every registered system, by name."""
    for name in _FILES:
        import_module(f"heads.systems.{name}")
    return systems()


__all__ = ["System", "find_system", "load_systems", "register"]
