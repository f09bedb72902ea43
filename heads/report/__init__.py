"""Reports of runs: RUN/report.html, one page to read and to send, and drawings of attention."""

from heads.report.page import write_report

__all__ = ["write_report"]
