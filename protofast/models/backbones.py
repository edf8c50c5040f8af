"""Backbones by name."""

from pathlib import Path

from torch import nn

from protofast.errors import SettingsError
from protofast.models.small import SmallBackbone

BACKBONES = ("small",)


def build_backbone(
    name: str, *, num_channels: int = 3, weights: str | Path | None = None
) -> nn.Module:
    """Build the backbone called `name`."""
    if name == "small":
        return SmallBackbone(num_channels)
    raise SettingsError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
