"""The report of a run: one HTML file, made from the files in its folder alone."""

from protofast.report.build import build_report

__all__ = ["build_report"]
