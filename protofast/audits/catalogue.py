"""All audits, in the order in which they run and are reported."""

from __future__ import annotations

from typing import Any

from protofast.audits.audit import Audit
from protofast.audits.head_on_stomach import HeadOnStomach
from protofast.audits.jpeg import JpegExperiment
from protofast.audits.robust_accuracy import RobustAccuracy
from protofast.audits.spatial_misalignment import SpatialMisalignment

AUDITS: tuple[type[Audit[Any]], ...] = (
    RobustAccuracy,
    HeadOnStomach,
    JpegExperiment,
    SpatialMisalignment,
)
