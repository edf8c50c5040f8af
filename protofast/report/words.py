"""Numbers and names as the report writes them."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"

# Characters that have no business in a name: controls, and marks that turn the direction of the
# text around them.
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_NUMBERED = re.compile(r"^\d+[._ -]+(?=\S)")


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals and a true minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def short(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} {TIMES} 10^{int(exponent)}".replace("-", MINUS)
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return (
        DASH
        if value is None or not math.isfinite(value)
        else f"{number(100 * value, digits)}{THIN}%"
    )


def count(value: int, word: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 image``, ``2,399 images``."""
    return f"{value:,} {word if value == 1 else plural or word + 's'}"


def spelled(value: int) -> str:
    """A small number as a word."""
    numbers = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return numbers[value] if 0 <= value < len(numbers) else f"{value:,}"


def name(text: object) -> str:
    """A name from outside, on one line and without invisible characters."""
    whole = str(text).encode("utf-8", "replace").decode("utf-8")  # no half of a surrogate pair
    return " ".join(_INVISIBLE.sub(" ", whole).split()) or "(no name)"


def shell(path: object) -> str:
    """A path as one types it in a command, every space and strange character kept."""
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are no UTF-8
        strange = True
    else:
        strange = _INVISIBLE.search(text) is not None
    if not strange:
        return shlex.quote(text)
    plain = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(plain)}'"


def class_names(classes: Sequence[object]) -> list[str]:
    """Class names as people write them: ``001.Laysan_Albatross`` becomes ``Laysan Albatross``.

    Only if all names stay different; otherwise they are left as they are.
    """
    plain = [name(text) for text in classes]
    pretty = [_NUMBERED.sub("", text.replace("_", " ")).strip() for text in plain]
    chosen = pretty if all(pretty) and len(set(pretty)) == len(pretty) else plain
    return [shortened(text) for text in chosen]


def shortened(text: str, longest: int = 80) -> str:
    """A text of at most so many characters, with its middle left out if need be."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}{ELLIPSIS}{text[-end:]}"
