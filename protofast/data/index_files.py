"""Reading the text files that list a data set's images, with errors that name file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from protofast.errors import DataError

Value = TypeVar("Value")


def require_folder(folder: Path, what: str) -> Path:
    """The folder, if it is there and not empty.

    Raises:
        DataError: It is missing, not a folder, not readable or empty.
    """
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; expected {what}")
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected {what}")
    try:
        empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if empty:
        raise DataError(f"{folder}: the folder is empty; expected {what}")
    return folder


def read_text(file: Path, what: str) -> str:
    """The text of an index file.

    Raises:
        DataError: It is missing or not text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: missing; expected {what}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file ({error.reason} at byte {error.start})") from None


def lines(file: Path, what: str) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and stripped lines; empty ones are left out."""
    for number, line in enumerate(read_text(file, what).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def read_table(file: Path, layout: str, parse: Callable[[str], Value]) -> dict[int, Value]:
    """Reads lines ``<number> <rest>`` as a dictionary in the order of the file.

    Args:
        file: The index file.
        layout: What a line should look like, for messages, such as ``<image id> <class id>``.
        parse: Turns the rest of a line into a value; a ValueError is reported with its line.

    Raises:
        DataError: The file is missing or empty, or a line is malformed or repeats a number.
    """
    table: dict[int, Value] = {}
    for number, line in lines(file, f"lines of the form '{layout}'"):
        key, _, rest = line.partition(" ")
        try:
            value = parse(rest.strip())
            identifier = int(key)
        except ValueError:
            raise DataError(f"{file}, line {number}: expected '{layout}', got {line!r}") from None
        if identifier in table:
            raise DataError(f"{file}, line {number}: {identifier} is listed twice")
        table[identifier] = value
    if not table:
        raise DataError(f"{file}: no lines; expected '{layout}'")
    return table


def choose_classes(
    names: list[str], wanted: int | list[str] | tuple[str, ...] | None, where: Path
) -> list[int]:
    """Positions of the wanted classes: all, the first ``wanted``, or those named.

    Raises:
        DataError: A named class is not there, or fewer than two classes are wanted or available.
    """
    if wanted is None:
        chosen = list(range(len(names)))
    elif isinstance(wanted, int):
        if wanted > len(names):
            raise DataError(f"{where}: has {len(names)} classes, {wanted} were asked for")
        chosen = list(range(wanted))
    else:
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise DataError(
                f"{where}: has no class {unknown[0]!r}; its classes are {', '.join(names[:5])}, …"
            )
        chosen = [position for position, name in enumerate(names) if name in set(wanted)]
    if len(chosen) < 2:
        raise DataError(f"{where}: at least two classes are needed, got {len(chosen)}")
    return chosen


def require_images(counts: list[int], classes: list[str], where: Path, split: str) -> None:
    """Checks that each class has an image in a split.

    Raises:
        DataError: One has none; it is named.
    """
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"{where}: class {empty[0]!r}{more} has no {split} image; "
            "add some, or leave the class out"
        )
