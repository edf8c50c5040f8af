"""Reports: one HTML file of a run or of an audit, made from the files in its folder alone."""

from protofast.report.audit_build import build_audit_report, write_audit_report
from protofast.report.build import Report, build_report, write_report

__all__ = ["Report", "build_audit_report", "build_report", "write_audit_report", "write_report"]
