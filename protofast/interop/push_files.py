"""The files that the original push.py writes: arrays with the same columns, pictures."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protofast.errors import InstallError
from protofast.heatmaps import high_activation_boxes, upsample
from protofast.interop.contract import TESNET
from protofast.interop.search import PushBatch, Searched
from protofast.models import ReceptiveField

_AT_ONCE = 64  # prototypes whose maps are up-sampled together


class PushFiles:
    """Writes each prototype's pictures when it has found a nearer patch, and the boxes at the end.

    The arguments are those of `push_prototypes`.
    """

    def __init__(
        self,
        search: Searched,
        root: str | os.PathLike[str],
        epoch: int | None,
        image_prefix: str | None,
        map_prefix: str | None,
        boxes_prefix: str | None,
        with_class: bool,
        activation: Callable[[Any], Any] | None,
    ) -> None:
        self.search, self.epoch = search, epoch
        self.folder = Path(root) if epoch is None else Path(root) / f"epoch-{epoch}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.image_prefix, self.map_prefix = image_prefix, map_prefix
        self.boxes_prefix, self.activation = boxes_prefix, activation
        shape = (len(search.prototypes), 6 if with_class else 5)
        self.field_boxes = np.full(shape, -1)
        self.boxes = np.full(shape, -1)
        field = getattr(search.network, "proto_layer_rf_info", None)
        if field is None or len(field) != 4:
            raise ValueError(
                "writing files needs the network's proto_layer_rf_info, [grid, jump, size, start]; "
                f"got {field!r}"
            )
        if image_prefix is not None:
            _pillow()

    def update(self, batch: PushBatch, better: Tensor, rows: Tensor, locations: Tensor) -> None:
        """The prototypes `better` have found `locations` in the images `rows` of the batch."""
        for some in torch.arange(len(better)).split(_AT_ONCE):
            if len(some):
                self._update(batch, better[some], rows[some], locations[some])

    def write_boxes(self) -> None:
        """Write both arrays of boxes, if they were asked for."""
        if self.boxes_prefix is None:
            return
        for name, boxes in (("-receptive_field", self.field_boxes), ("", self.boxes)):
            np.save(self.folder / f"{self.boxes_prefix}{name}{self.epoch}.npy", boxes)

    def _update(self, batch: PushBatch, better: Tensor, rows: Tensor, locations: Tensor) -> None:
        maps = self.search.maps(batch.features[rows], better.unsqueeze(1))[:, 0]  # [R, H', W']
        activations = self._activations(maps)  # [R, H', W'] float32
        size = (batch.images.shape[2], batch.images.shape[3])
        heatmaps = upsample(activations, size)  # [R, S, T]
        boxes = high_activation_boxes(heatmaps)[:, [1, 3, 0, 2]].cpu().numpy()  # y0, y1, x0, x1
        fields = self._field_boxes(locations, maps.shape[2], size)
        heats = heatmaps.cpu().numpy()
        for place, (j, row) in enumerate(zip(better.tolist(), rows.tolist(), strict=True)):
            for array, box in ((self.field_boxes, fields[place]), (self.boxes, boxes[place])):
                array[j, 0] = batch.start + row
                array[j, 1:5] = box
                array[j, 5:] = int(batch.labels[row])
            if self.map_prefix is not None:
                np.save(self.folder / f"{self.map_prefix}{j}.npy", activations[place].cpu().numpy())
            if self.image_prefix is not None:
                image = batch.images[row].cpu().numpy().transpose(1, 2, 0)
                self._write_pictures(j, image, heats[place], boxes[place], fields[place])

    def _activations(self, maps: Tensor) -> Tensor:
        """What the original draws of distances [R, H', W']: similarities, shifted for 'linear'."""
        network = self.search.network
        if self.search.formulas is TESNET:
            return -maps.float()
        if network.prototype_activation_function == "linear":
            depth, height, width = self.search.prototypes.shape[1:]
            return (depth * height * width - maps).float()
        if network.prototype_activation_function != "log" and self.activation is not None:
            return torch.as_tensor(np.asarray(self.activation(maps.cpu().numpy()))).float()
        similarities: Tensor = network.distance_2_similarity(maps)
        return similarities.float()

    def _field_boxes(self, locations: Tensor, columns: int, size: tuple[int, int]) -> list[Any]:
        """Rows from and to, columns from and to, of the receptive field of each location."""
        grid, jump, width, start = self.search.network.proto_layer_rf_info
        field = ReceptiveField((int(grid), columns), size, jump, width, start)
        boxes = (field.box(location) for location in locations.tolist())
        return [(y0, y1, x0, x1) for x0, y0, x1, y1 in boxes]

    def _write_pictures(self, j: int, image: Any, heat: Any, box: Any, field: Any) -> None:
        """Whole image and crops of it [S, T, channels] in [0, 1], bare and under the heat map."""
        under_heat = 0.5 * image + 0.3 * _jet(heat)
        self._write(f"-original{j}", image)
        self._write(f"-original_with_self_act{j}", under_heat)
        y0, y1, x0, x1 = field
        if (y1 - y0, x1 - x0) != image.shape[:2]:
            self._write(f"-receptive_field{j}", image[y0:y1, x0:x1])
            self._write(f"-receptive_field_with_self_act{j}", under_heat[y0:y1, x0:x1])
        y0, y1, x0, x1 = box
        self._write(f"{j}", image[y0:y1, x0:x1])

    def _write(self, name: str, picture: Any) -> None:
        bytes_ = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
        if bytes_.shape[2] == 1:
            bytes_ = bytes_[:, :, 0]
        _pillow().fromarray(bytes_).save(self.folder / f"{self.image_prefix}{name}.png")


def _jet(heat: Any) -> Any:
    """A heat map [S, T], stretched to 0...1, in the colours of the jet scale, [S, T, 3]."""
    value: Any = heat - heat.min()
    value = value / max(float(value.max()), np.finfo(np.float32).tiny)
    value = (255 * value).astype(np.uint8) / 255  # in 256 steps, as the original's colour map
    return np.clip(1.5 - np.abs(4 * value[:, :, None] - np.array([3.0, 2.0, 1.0])), 0, 1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InstallError("writing pictures needs Pillow: pip install pillow") from error
    return Image
