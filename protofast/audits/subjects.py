"""The models that are audited, the images they are audited on, and how both are told apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from protofast.data import ImageSet
from protofast.errors import DataError
from protofast.models import PrototypeModel

_FILE_NAME = re.compile(r"[^/\\\0.][^/\\\0]*")
_HASHED_AT_ONCE = 256  # images


@dataclass(frozen=True, kw_only=True)
class AuditedModel:
    """A model to audit, and what is known of it.

    Attributes:
        name: What to call it; part of file names.
        model: Any prototype model, on the device to compute on. An audit leaves it as it was.
        sha256: Of the file its weights come from; empty for a model without, which is looked at
            itself.
        run: Absolute path of the run folder it comes from, if any.
        checkpoint: Which of the run's.
        facts: The run's settings as a nested mapping, if any.
    """

    name: str
    model: PrototypeModel
    sha256: str = ""
    run: str = ""
    checkpoint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """SHA-256 of the checkpoint, or else of the model."""
        return self.sha256 or model_checksum(self.model)


def check_models(models: Sequence[AuditedModel], images: ImageSet) -> None:
    """Makes sure that the models can be audited together on the images.

    Raises:
        ValueError: There are none, two have one name, or a name is no file name.
        DataError: There are no images, or they are of other classes, size or channels than a model
            was made for.
    """
    names = [each.name for each in models]
    if not names:
        raise ValueError("there is no model to audit")
    if len(set(names)) < len(names):
        raise ValueError(f"the models must have different names; got {', '.join(names)}")
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"the name of a model is part of file names; {name!r} cannot be")
    if len(images) == 0:
        raise DataError("there are no images to audit the models on")
    for each in models:
        model = each.model
        made_for = (model.num_classes, model.num_channels, model.input_size)
        there = (len(images.classes), images.channels, images.size)
        if made_for != there:
            raise DataError(
                f"{each.name} was made for {_said(*made_for)}; the images to audit it on have "
                f"{_said(*there)}"
            )


def model_checksum(model: PrototypeModel) -> str:
    """SHA-256 of what tells a model from others: weights, class, and what it says it was made with.

    Weights are parameters and buffers, with their names, dtypes and shapes. Two models of one class
    with the same weights can still compute different things (another similarity, say): these are
    told apart if the class has a `config` that says so, as `ProtoPNet` has.
    """
    kind = type(model)
    described = [
        f"{kind.__module__}.{kind.__qualname__}",
        model.num_classes,
        model.num_channels,
        model.input_size,
        getattr(model, "config", None),
    ]
    said = hashlib.sha256(json.dumps(described, sort_keys=True, default=repr).encode())
    for name, tensor in model.state_dict().items():
        whole = tensor.detach().cpu().contiguous()
        said.update(f"{name} {whole.dtype} {list(whole.shape)};".encode())
        said.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return said.hexdigest()


def images_checksum(images: ImageSet, progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of the pixels, names, labels and classes of a set, in its order.

    Args:
        images: The set; it is read once.
        progress: Called with (images done, images in all).
    """
    said = hashlib.sha256(repr((images.classes, images.names, images.labels.tolist())).encode())
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for start in range(0, len(images), _HASHED_AT_ONCE):
            chunk = range(start, min(start + _HASHED_AT_ONCE, len(images)))
            if progress is not None:
                progress(start, len(images))
            for pixels in pool.map(images.image, chunk):
                said.update(f"{list(pixels.shape)};".encode())
                said.update(pixels.contiguous().numpy().data)
    return said.hexdigest()


def _said(classes: int, channels: int, size: tuple[int, int] | None) -> str:
    pixels = "different sizes" if size is None else f"{size[0]} x {size[1]} pixels"
    return f"{classes} classes and images of {pixels} in {channels} channel(s)"
