"""The pictures that explanations show: each stored once, however often it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protofast.data import ImageSet
from protofast.explain.files import Json
from protofast.explain.pictures import jpeg

# A report with thousands of pictures stays small enough to send: then each of them becomes smaller.
# Up to 8,000 of them (2,000 prototypes with two nearest images from each set) take 10 MB together;
# more than that take more, because on a picture below 48 pixels nobody recognises anything.
LONGEST, SHORTEST = 224, 48  # of the longer side, in pixels
_BYTES_IN_ALL = 10e6
# JPEG files of square photographs at our quality: 5.5 x side ** 1.4 bytes (measured on 60
# photographs of CUB at 48 to 224 pixels: within 2 % on average).
_FACTOR, _POWER = 5.5, 1.4


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
    side = (_BYTES_IN_ALL / max(1, pictures) / _FACTOR) ** (1 / _POWER)
    return int(min(max(side, SHORTEST), LONGEST))
