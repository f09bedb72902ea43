"""Pages about runs: RUN/report.html, to read and to send, a page about several runs, and drawings of attention."""

from heads.report.comparison import write_comparison
from heads.report.page import write_report

__all__ = ["write_comparison", "write_report"]
