"""The files that explanations leave in a run folder; the report reads these and no others of them.

::

    explanations/
      summary.json              everything below, in numbers
      images/<set>-<index>.jpg  each picture that is shown anywhere, once; set: train or test
      prototypes/<j>.png        the patch of prototype j, cut out of its source picture
      prototypes/<j>-heat.png   its heat map on its source picture, transparent
      predictions/<n>-<j>.png   heat map of prototype j on prediction n's picture, transparent

The folder is written under a temporary name and renamed when it is complete, so it is there whole
or not at all. An older one is renamed just before, and readers look for it there if need be.

``summary.json`` is one object. Boxes are [x0, y0, x1, y1] in pixels of the picture *as the model
sees it* (its ``size``, not that of the stored file); x1 and y1 are one past the last pixel. A key
whose value is unknown holds null.

- ``format``: 1. ``created``: UTC, ISO 8601. ``protofast``: version.
- ``checkpoint``: ``name`` (stem of the file in ``checkpoints/``), ``sha256`` of that file. Whoever
  shows the explanations compares both with the run's checkpoint: other weights have other
  explanations.
- ``classes``: names. ``set_sizes``: {"train": n, "test": n}.
- ``model``: ``input_size`` [S, T], ``channels``, ``grid`` [H, W] (null where images differ in
  size), ``prototypes``, ``largest_similarity`` met, ``receptive_field`` null or {"size", "jump" (in
  pixels), "cells" of the grid, "whole" (how many of them see the whole image)}.
- ``heatmap``: ``interpolation``, ``percentile`` of the box.
- ``images``: {"train-12": {"set", "index", "name", "label", "file", "size": [S, T]}}.
- ``prototypes``: a list in order of {"prototype", "class" (null where prototypes have none),
  "weight" of its own class, "source": null if not projected, or {"image" (a key of images), "row",
  "column", "box" (around that place), "distance" and "moved" (before and by the projection),
  "similarity" (to that patch as it is now), "apart" (length of prototype minus patch, relative to
  the prototypes' length)}, "crop", "heatmap" (files; null without a picture), "nearest": {"train":
  [...], "test": [...]}, each {"image", "box", "distance", "similarity"}, nearest first, "wins": for
  how many training images of its class it is the most similar prototype of that class, "of": how
  many such images there are, "flags": of ``duplicate``, ``never_wins``, ``collapsed``,
  ``empty_class``, ``not_projected``, ``strayed`` (no longer equal to its patch), "same_as": the
  first 12 prototypes with the same source patch or nearly the same vector, "same_as_count": how
  many there are}.
- ``test``: {"images", "right"}. ``sampling``: {"seed", "right", "wrong"}, the last two in words.
- ``predictions``: a list of {"image", "label", "predicted", "right", "classes": [{"class", "logit",
  "probability", "shown": [{"prototype", "similarity", "distance", "weight", "contribution", "row",
  "column", "box", "heatmap"}], "own": {"prototypes", "contribution"}, "others": {...}}],
  "activated": [{"prototype", "class", "similarity", "row", "column", "box"}]}: contributions shown,
  ``own`` and ``others`` add up to the logit; ``activated`` are the prototypes with the largest
  similarities, whatever their class and weight.
- ``notes``: sentences for the reader, such as that the model was never projected.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protofast.errors import RunFolderError, command_line
from protofast.files import older_name, sha256_of, standing, sync_folder, write_atomically

FOLDER = "explanations"
SUMMARY = "summary.json"
FORMAT = 1

Json = dict[str, Any]


class Writer:
    """Collects the files of a run's explanations and puts them in place all at once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     with Writer(Path(run)) as writer:
    ...         writer.add("images/train-1.jpg", b"...")
    ...         folder = writer.finish({"format": 1})
    ...     sorted(path.name for path in folder.iterdir())
    ['images', 'summary.json']
    """

    def __init__(self, run_folder: Path) -> None:
        if not run_folder.is_dir():
            raise RunFolderError(f"{run_folder}: no such run folder; train a run first")
        self._final = run_folder / FOLDER
        self._temporary = run_folder / f".{FOLDER}-{os.getpid()}"
        self._old = older_name(self._final)

    def __enter__(self) -> Writer:
        self._sweep()
        self._temporary.mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._settle(self._old)

    def _settle(self, old: Path) -> None:
        """Removes older explanations, or puts them back if no newer ones have taken their place."""
        if not self._final.exists():
            with contextlib.suppress(FileNotFoundError):
                old.rename(self._final)
        shutil.rmtree(old, ignore_errors=True)

    def _sweep(self) -> None:
        """Tidies up what killed processes left behind."""
        for path in self._final.parent.glob(f".{FOLDER}-*"):
            process = path.name.removeprefix(f".{FOLDER}-").removesuffix("-old")
            if process != str(os.getpid()) and process.isdigit() and _alive(int(process)):
                continue
            if path.name.endswith("-old"):
                self._settle(path)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def add(self, name: str, content: bytes) -> None:
        """Writes one file; ``name`` is relative to the folder."""
        path = self._temporary / name
        path.parent.mkdir(exist_ok=True)
        try:
            path.write_bytes(content)
        except OSError as error:  # a full disk does not say where
            raise OSError(error.errno, error.strerror, str(self._final / name)) from error

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Writes the summary and replaces the explanations that were there before."""
        text = json.dumps(summary, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        write_atomically(self._temporary / SUMMARY, text)
        os.sync()  # one by one, thousands of pictures would take a minute
        if self._final.exists():
            self._final.rename(self._old)
        self._temporary.rename(self._final)
        sync_folder(self._final.parent)
        return self._final


def read_summary(run_folder: Path) -> Json | None:
    """The summary of a run's explanations, or None if there are none.

    Raises:
        RunFolderError: The file is damaged, or of a later version of protofast.
    """
    path = standing(run_folder / FOLDER) / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{path}: not readable as JSON ({error}); "
            f"make it again with: {command_line('explain', run_folder)}"
        ) from error
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        found = summary.get("format") if isinstance(summary, dict) else None
        raise RunFolderError(
            f"{path}: format {found}, this version of protofast reads {FORMAT}; "
            f"make it again with: {command_line('explain', run_folder)}"
        )
    return summary


def checkpoint_identity(run_folder: Path, name: str) -> Json:
    """Name and SHA-256 of a checkpoint; null for the hash if the file is not there."""
    return {"name": name, "sha256": sha256_of(run_folder / "checkpoints" / f"{name}.safetensors")}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True
