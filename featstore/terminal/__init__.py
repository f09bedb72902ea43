"""What a command shows on a terminal: progress, tables, errors; numbers as people read them; groups of options."""

from featstore.support import clock, counted, size
from featstore.terminal.options import spread_options
from featstore.terminal.terminal import STOPPED, Terminal, duration, one_line

__all__ = ["STOPPED", "Terminal", "clock", "counted", "duration", "one_line", "size", "spread_options"]
