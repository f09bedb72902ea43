"""One page about one run, to read and to send: RUN/report.html."""

from heads.report.page import write_report

__all__ = ["write_report"]
