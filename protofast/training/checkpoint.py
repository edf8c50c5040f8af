"""One file holds one moment: tensors and JSON in the safetensors format. Nothing is pickled.

The file is written under a temporary name, synced and renamed, so it is there whole or not at all.
safetensors notices a file that was cut short; a checksum over tensors and facts notices damage
inside.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from protofast.errors import CheckpointError
from protofast.files import write_atomically

_KEY, _FACTS = "protofast", "protofast.facts"
_FORMAT = 2  # 1 had the facts outside the checksum, and said less of the place in the plan


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: The file, conventionally ``*.safetensors``.
        tensors: Any devices, any dtypes; tensors that share memory are written apart.
        facts: Anything that JSON can hold.

    Raises:
        OSError: It could not be written (a full disk, say); an older file of this name is
            untouched.
    """
    whole = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    said = json.dumps(dict(facts), allow_nan=False, separators=(",", ":"))
    kind = json.dumps({"format": _FORMAT, "checksum": _checksum(whole, said)})
    write_atomically(path, save(whole, {_KEY: kind, _FACTS: said}))


def is_checkpoint(path: Path) -> bool:
    """Whether the file says that it is a checkpoint of ours, damaged or not."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(min(length, 1 << 24)))
        return _KEY in head["__metadata__"]
    except (OSError, KeyError, TypeError, ValueError):
        return False


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint.

    Returns:
        Tensors on the CPU, and the facts.

    Raises:
        CheckpointError: The file is missing, cut short, damaged, or not a checkpoint of ours.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    try:
        tensors: dict[str, Tensor] = load(content)
        metadata = _metadata(content)
        kind = json.loads(metadata[_KEY])
        number, checksum = kind["format"], kind["checksum"]
        said = metadata[_FACTS] if number == _FORMAT else "{}"
        facts: dict[str, Any] = json.loads(said)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} is cut short or damaged, or not a checkpoint of protofast ({reason})"
        ) from error
    if number != _FORMAT:
        raise CheckpointError(
            f"{path} has format {number}, this version of protofast reads format {_FORMAT}; use "
            "the version that wrote it, or start the run again in another folder"
        )
    if checksum != _checksum(tensors, said):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    return tensors, facts


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which is: length of the header, JSON header, data."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata


def _checksum(tensors: Mapping[str, Tensor], said: str) -> int:
    checksum = zlib.crc32(said.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), checksum)
        flat = tensor.reshape(-1)
        if flat.numel():
            checksum = zlib.crc32(flat.view(torch.uint8).numpy().data, checksum)
    return checksum
