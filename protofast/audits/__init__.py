"""Audits: how far the explanations of a trained prototype network can be trusted."""

from protofast.audits.attacked_image import AttackedImage, attack_image
from protofast.audits.audit import Audit, AuditSettings, Number, Picture, Subject
from protofast.audits.catalogue import AUDITS
from protofast.audits.head_on_stomach_attack import make_head_disappear
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
    "AttackedImage",
    "Audit",
    "AuditResult",
    "AuditSettings",
    "AuditedModel",
    "Number",
    "Picture",
    "Subject",
    "activation_change",
    "attack_image",
    "audit_runs",
    "build_audits",
    "location_change",
    "make_head_disappear",
    "rank_change",
    "run_audits",
]
