"""The pictures that explanations show: each stored once, however often it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from protofast.data import ImageSet
from protofast.explain.files import Json
from protofast.explain.pictures import jpeg

# A report with thousands of pictures stays small enough to send: then each of them becomes smaller.
LONGEST, SHORTEST = 224, 80  # of the longer side, in pixels
_BYTES_IN_ALL = 10e6
_BYTES_PER_PIXEL = 0.3  # of a JPEG of a photograph at our quality


@dataclass
class Album:
    """Collects which pictures are needed; :meth:`write` stores them.

    Args:
        sets: The ImageSets by name ("train", "test").
    """

    sets: dict[str, ImageSet]
    _wanted: dict[str, tuple[str, int]] = field(default_factory=dict)

    def key(self, set_name: str, index: int) -> str:
        """The key of a picture in ``summary.json``; from now on it will be stored."""
        key = f"{set_name}-{index}"
        self._wanted[key] = (set_name, index)
        return key

    def write(self, add: Callable[[str, bytes], None]) -> Json:
        """Stores all pictures and returns the object ``images`` of the summary."""
        longest = longest_side(len(self._wanted))
        entries: Json = {}
        for key, (set_name, index) in self._wanted.items():
            image_set = self.sets[set_name]
            image = image_set.image(index)
            name = f"images/{key}.jpg"
            add(name, jpeg(image, longest=longest))
            entries[key] = {
                "set": set_name,
                "index": index,
                "name": image_set.names[index],
                "label": int(image_set.labels[index]),
                "file": name,
                "size": [image.shape[1], image.shape[2]],
            }
        return entries


def longest_side(pictures: int) -> int:
    """The longer side of a stored picture if there are so many of them."""
    side = math.sqrt(_BYTES_IN_ALL / _BYTES_PER_PIXEL / max(1, pictures))
    return int(min(max(side, SHORTEST), LONGEST))
