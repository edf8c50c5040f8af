"""The pictures of an audit as the page embeds them: the worst first, as many as have room."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from protofast.report.audit_files import AuditFiles, Result, Shot

# What all pictures together may take, so that the file can be sent to somebody.
ROOM = 24 << 20  # bytes

_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Version:
    """One of the pictures of the same thing.

    Attributes:
        name: What it shows, such as "clean" or "attacked".
        uri: Its data.
        width: In pixels; None where the file does not say in its first bytes.
        height: The same.
    """

    name: str
    uri: str
    width: int | None
    height: int | None


@dataclass(frozen=True)
class PictureView:
    """A picture in one or several versions."""

    number: int
    versions: list[Version]
    caption: str
    image: str

    @property
    def is_switched(self) -> bool:
        """Whether one version is shown at a time; the style sheet knows switches of up to six."""
        return 1 < len(self.versions) <= 6

    @property
    def breadth(self) -> str:
        """How much room it needs: "" as a square, "broad" as a chart, "wide" as several panels."""
        ratios = [v.width / v.height for v in self.versions if v.width and v.height]
        ratio = max(ratios, default=1.0)
        return "wide" if ratio > 2 else "broad" if ratio > 1.3 else ""

    @property
    def unnamed_image(self) -> str:
        """The image's name, if the caption does not say it."""
        return "" if self.image in self.caption else self.image


@dataclass(frozen=True)
class Album:
    """The pictures of one model under one protocol, the worst first."""

    model: str
    protocol: str
    pictures: list[PictureView]
    left_out: list[str]  # files for which there was no room

    @property
    def has_broad(self) -> bool:
        """Whether some picture takes two columns, so that three in all leave no gaps."""
        return any(picture.breadth == "broad" for picture in self.pictures)


def picture_views(audit: AuditFiles) -> dict[tuple[int, str, str], Album]:
    """All pictures that have room, by model, audit and protocol.

    Each audit's worst picture is taken before any audit's second. Files that are missing or no
    pictures are named in ``audit.problems``.
    """
    albums = {
        (one.model.index, one.audit, one.protocol): Album(one.model.name, one.protocol, [], [])
        for one in audit.results
        if one.shots
    }
    queue = sorted(
        (
            (rank, place)
            for place, one in enumerate(audit.results)
            for rank in range(len(one.shots))
        ),
    )
    used = 0
    for number, (rank, place) in enumerate(queue):
        result = audit.results[place]
        shot = result.shots[rank]
        album = albums[result.model.index, result.audit, result.protocol]
        versions = _versions(audit, result, shot)
        size = sum(len(version.uri) for version in versions)
        if used + size > ROOM:
            album.left_out.extend(shot.files.values())
        elif versions:
            used += size
            album.pictures.append(PictureView(number, versions, shot.caption, shot.image))
    return {key: album for key, album in albums.items() if album.pictures or album.left_out}


def _versions(audit: AuditFiles, result: Result, shot: Shot) -> list[Version]:
    versions = []
    for name, file in shot.files.items():
        content = audit.read(file)
        kind = next(
            (kind for mark, kind in _KINDS.items() if (content or b"").startswith(mark)), ""
        )
        if content is None or not kind:
            what = "cannot be found" if content is None else "is no PNG or JPEG picture"
            audit.problems.append(f"{result.what}: a picture ({name}) {what}")
            continue
        width, height = _size(content)
        uri = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        versions.append(Version(name, uri, width, height))
    return versions


def _size(content: bytes) -> tuple[int | None, int | None]:
    """Width and height from a PNG's header."""
    if content[12:16] != b"IHDR" or len(content) < 24:
        return None, None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
