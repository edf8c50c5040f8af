"""An audit folder: what an audit leaves behind, and what an interrupted one goes on from.

```
settings.toml                                   what was audited, and how
units/<model>/predictions/<number>.json         the classes named, by unit of images
units/<model>/<audit>-<protocol>/<number>.json  the rows of each unit of work
tables/<model>-<audit>-<protocol>.csv           all rows of an audit
pictures/<model>/<audit>-<protocol>/*.png       the most telling of them
audit.json                                      every number; what the report is made from
```

A unit is written whole or not at all, with a fingerprint of everything its rows depend on but for
their last digits: one of other weights, images, settings or another version is not taken for done.
How it was computed, which the last digits depend on, is written beside it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from protofast.audits.audit import Picture, Row
from protofast.errors import RunFolderError
from protofast.files import encoded, finite, locked, sync_file, sync_folder, write_atomically

FORMAT = 1
_OWN = ("settings.toml", "units", "tables", "pictures", "audit.json", "audit.html", ".lock")
# What a killed process leaves of one of these, too.
_OURS = re.compile(r"|".join(rf"{re.escape(name)}|\.{re.escape(name)}\.\d+\.tmp" for name in _OWN))
_LIST = "pictures.json"
# What reading a file that is missing, cut short, or somebody else's leads to.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Unit(NamedTuple):
    """A piece of work that was done.

    rows: as JSON gives them back. images: how many it looked at. computed: how, in words; see
    `protofast.audits.computed`. seconds: what it took.
    """

    rows: list[Row]
    images: int
    computed: str
    seconds: float


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, the same for the same values in any order of keys."""
    said = json.dumps(finite(facts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(said.encode()).hexdigest()


def table_text(rows: Sequence[Row]) -> str:
    """Rows as comma-separated values; lists and tables in a cell as JSON, None as nothing."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return text.getvalue()


class AuditFolder:
    """A folder that holds an audit; :meth:`open` makes it where there is none.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def open(path: Path | str) -> AuditFolder:
        """The audit folder at ``path``, old or new.

        One that is there has a ``settings.toml`` of an audit, or nothing but what an audit leaves.

        Raises:
            RunFolderError: There is something else at ``path``.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file; choose another folder for the audit (--out)")
        if path.is_dir() and not _is_settings(path / "settings.toml"):
            held = sorted(file.name for file in path.iterdir())
            foreign = [name for name in held if not _OURS.fullmatch(name)]
            if (path / "settings.toml").exists() or foreign:
                raise RunFolderError(
                    f"{path} is neither an audit folder nor empty (it holds "
                    f"{(foreign or ['settings.toml'])[0]}); choose another for the audit (--out)"
                )
        (path / "units").mkdir(parents=True, exist_ok=True)
        return AuditFolder(path)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps every other process from working on this audit; see :func:`protofast.files.locked`.

        Raises:
            RunFolderError: Another process holds it.
        """
        return locked(self.path)

    def sweep(self) -> None:
        """Deletes what a killed audit left half-written; call it under the lock."""
        for pattern in (".*.tmp", "units/*/*/.*.tmp", "tables/.*.tmp"):
            for file in (*self.path.glob(pattern),):
                file.unlink(missing_ok=True)
        for folder in (*self.path.glob("pictures/*/.*.tmp"),):
            shutil.rmtree(folder)

    def write(self, name: str, text: str) -> None:
        """Writes a file of the folder atomically, unless it says that already."""
        if not self.says(name, text):
            file = self.path / name
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, text)

    def says(self, name: str, text: str) -> bool:
        """Whether a file of the folder is there with this content."""
        file = self.path / name
        return file.is_file() and file.read_bytes() == encoded(text)

    def outdate(self, *names: str) -> None:
        """Deletes the results, before something that they are made from is replaced.

        Args:
            names: Of the files; by default the numbers and the report.
        """
        for name in names or ("audit.html", "audit.json"):
            (self.path / name).unlink(missing_ok=True)

    # ----- units -----

    def read_unit(self, part: str, number: int, mark: str) -> Unit | None:
        """A unit that is done; None if it is not there, half of it is, or its mark is another.

        Args:
            part: ``<model>/<audit>-<protocol>``.
            number: Which unit, from 0.
            mark: The fingerprint of everything its rows depend on.
        """
        try:
            found = json.loads(self._unit(part, number).read_bytes())
            if found["fingerprint"] != mark or not isinstance(found["rows"], list):
                return None
            return _unit_of(found)
        except _DAMAGED:
            return None

    def has_unit(self, part: str, number: int) -> bool:
        """Whether there is a unit, of whatever mark."""
        return self._unit(part, number).is_file()

    def write_unit(self, part: str, number: int, mark: str, unit: Unit) -> Unit:
        """Writes a unit; returns it as :meth:`read_unit` would, numbers not finite as None."""
        file = self._unit(part, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        said = {"fingerprint": mark, **unit._asdict(), "seconds": round(unit.seconds, 3)}
        text = json.dumps(finite(said), allow_nan=False)
        write_atomically(file, text + "\n")
        return _unit_of(json.loads(text))

    def _unit(self, part: str, number: int) -> Path:
        return self.path / "units" / part / f"{number:04d}.json"

    # ----- pictures -----

    def pictures(
        self, part: str, mark: str, draw: Callable[[Path], list[Picture]]
    ) -> list[dict[str, Any]]:
        """The pictures of an audit, drawn if they are not there yet; entries of ``audit.json``.

        Args:
            part: ``<model>/<audit>-<protocol>``.
            mark: The fingerprint of everything they depend on.
            draw: Draws into the folder it is given, and says what it drew.
        """
        folder = self.path / "pictures" / part
        found = self._drawn(folder, mark)
        if found is not None:
            return found
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        draft.mkdir(parents=True)
        try:
            entries = [self._entry(part, picture, draft) for picture in draw(draft)]
            for drawn in draft.rglob("*"):
                sync_file(drawn)
            text = json.dumps({"fingerprint": mark, "pictures": entries}, indent=1)
            write_atomically(draft / _LIST, text + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
            for parent in (folder.parent, self.path / "pictures", self.path):
                sync_folder(parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return entries

    @staticmethod
    def _entry(part: str, picture: Picture, folder: Path) -> dict[str, Any]:
        missing = [file for file in picture.files.values() if not (folder / file).is_file()]
        if missing:
            raise FileNotFoundError(f"{part}: the picture {missing[0]} was not drawn")
        files = {shows: f"pictures/{part}/{file}" for shows, file in picture.files.items()}
        return {"files": files, "caption": picture.caption, "image": picture.image}

    def _drawn(self, folder: Path, mark: str) -> list[dict[str, Any]] | None:
        try:
            found = json.loads((folder / _LIST).read_bytes())
            entries: list[dict[str, Any]] = found["pictures"]
            files = [self.path / file for entry in entries for file in entry["files"].values()]
            return entries if found["fingerprint"] == mark and all(map(_there, files)) else None
        except _DAMAGED:
            return None


def _unit_of(found: Mapping[str, Any]) -> Unit:
    return Unit(
        found["rows"], int(found["images"]), str(found["computed"]), float(found["seconds"])
    )


def _is_settings(file: Path) -> bool:
    """Whether a file is the ``settings.toml`` of an audit."""
    try:
        return {"audits", "seed"} <= tomllib.loads(file.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, RecursionError):
        return False


def _there(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
