"""Run folders made by hand."""

from report_runs import build_run, make_run

__all__ = ["build_run", "make_run"]
