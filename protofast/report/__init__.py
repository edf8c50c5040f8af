"""The report of a run: one HTML file, made from the files in its folder alone."""

from protofast.report.build import Report, build_report, write_report

__all__ = ["Report", "build_report", "write_report"]
