"""Prototype networks and their backbones."""

from protofast.models.backbones import BACKBONES, build_backbone
from protofast.models.protocol import LogitsOnly, Output, PrototypeModel
from protofast.models.protopnet import ProtoPNet
from protofast.models.receptive_field import ReceptiveField, receptive_field

__all__ = [
    "BACKBONES",
    "LogitsOnly",
    "Output",
    "ProtoPNet",
    "PrototypeModel",
    "ReceptiveField",
    "build_backbone",
    "receptive_field",
]
