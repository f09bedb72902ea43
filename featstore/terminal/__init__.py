"""What a command shows on a terminal: progress, tables, errors; numbers as people read them."""

from featstore.support import clock
from featstore.terminal.terminal import Terminal, counted, one_line, size

__all__ = ["Terminal", "clock", "counted", "one_line", "size"]
