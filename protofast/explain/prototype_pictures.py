"""What a run's explanations show of its prototypes: their patches and where these come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from protofast.errors import RunFolderError
from protofast.explain.files import FOLDER, Json, read_summary
from protofast.explain.local import Box
from protofast.explain.pictures import Pixels
from protofast.files import standing


class Source(NamedTuple):
    """The training image that a prototype was projected on.

    pixels: uint8 [S', T', 3], as stored. size: (S, T), as the model sees it. box: the prototype's
    patch in pixels of the latter. label: the image's class.
    """

    pixels: Pixels
    size: tuple[int, int]
    box: Box
    label: int


@dataclass(frozen=True)
class PrototypePictures:
    """The pictured prototypes of a run; none of them where it has not been explained."""

    run_folder: Path | None
    summary: Json

    @staticmethod
    def of(
        run_folder: Path | str | None, checkpoint: str | None, prototypes: int
    ) -> PrototypePictures:
        """Those of a run, if its explanations are of this checkpoint (None: of whichever).

        Args:
            run_folder: The run; None where there is none.
            checkpoint: Name of the model's checkpoint.
            prototypes: How many the model has.
        """
        summary = None if run_folder is None else read_summary(Path(run_folder))
        if run_folder is None or summary is None or len(summary["prototypes"]) != prototypes:
            return PrototypePictures(None, {})
        if checkpoint is not None and summary["checkpoint"]["name"] != checkpoint:
            return PrototypePictures(None, {})
        return PrototypePictures(Path(run_folder), summary)

    @property
    def _entries(self) -> Sequence[Json]:
        entries: Sequence[Json] = self.summary["prototypes"]
        return entries

    def crop(self, prototype: int) -> Pixels | None:
        """Its patch [S, T, 3], or None where there is no picture."""
        if self.run_folder is None or self._entries[prototype]["crop"] is None:
            return None
        path = standing(self.run_folder / FOLDER) / self._entries[prototype]["crop"]
        return opened(path, "RGB") if path.is_file() else None

    def source(self, prototype: int) -> Source | None:
        """The image it was projected on, or None where there is no picture of it."""
        if self.run_folder is None or self._entries[prototype]["source"] is None:
            return None
        place = self._entries[prototype]["source"]
        image = self.summary["images"][place["image"]]
        pixels = stored(self.run_folder, self.summary, place["image"])
        x0, y0, x1, y1 = place["box"]
        height, width = image["size"]
        return Source(pixels, (height, width), (x0, y0, x1, y1), image["label"])


def stored(run_folder: Path, summary: Json, key: str) -> Pixels:
    """A stored image [S, T, 3] by its key in the summary."""
    return opened(standing(run_folder / FOLDER) / summary["images"][key]["file"], "RGB")


def opened(path: Path, mode: str) -> Pixels:
    """The pixels of a stored picture, or RunFolderError."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:  # gone, or no picture
        raise RunFolderError(
            f"{path}: cannot be read ({error}); explain the run again with: protofast explain"
        ) from error
