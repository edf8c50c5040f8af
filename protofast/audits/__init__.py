"""Audits: how far the explanations of a trained prototype network can be trusted."""

from protofast.audits.audit import Audit, AuditSettings, Number, Picture, Subject
from protofast.audits.catalogue import AUDITS
from protofast.audits.misalignment_metrics import (
    activation_change,
    location_change,
    rank_change,
)
from protofast.audits.runner import AuditResult, run_audits
from protofast.audits.runs import audit_runs
from protofast.audits.settings import build_audits
from protofast.audits.subjects import AuditedModel

__all__ = [
    "AUDITS",
    "Audit",
    "AuditResult",
    "AuditSettings",
    "AuditedModel",
    "Number",
    "Picture",
    "Subject",
    "activation_change",
    "audit_runs",
    "build_audits",
    "location_change",
    "rank_change",
    "run_audits",
]
