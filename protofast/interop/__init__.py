"""Drop-in for other people's code: their networks, their checkpoints, their configuration."""

from protofast.interop.acceleration import accelerate, restore

__all__ = ["accelerate", "restore"]
