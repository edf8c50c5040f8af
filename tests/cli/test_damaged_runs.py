"""Damaged files in a run folder: each is named, and nothing else is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Place, command
from copies import replace

READERS = ("evaluate", "project", "prune", "explain")


def _used_by(name: str, run: Path) -> Path:
    """The checkpoint that a command takes by itself."""
    which = "latest" if name == "project" else "best"
    chosen = (run / "checkpoints" / which).read_text().strip()
    return run / "checkpoints" / f"{chosen}.safetensors"


def _flip(content: bytes) -> bytes:
    return content[:-1000] + bytes(255 - byte for byte in content[-1000:])


@pytest.mark.parametrize("name", READERS)
def test_checkpoints(place: Place, name: str) -> None:
    file = _used_by(name, place.run)
    whole = file.read_bytes()
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: content[:5000],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"PK\x03\x04 something else",
        _flip,
    ]
    for damage in damages:
        replace(file, damage(whole))
        before = place.state()
        answer = command(name, place.run)
        assert answer.code == 1
        assert str(file) in answer.error
        assert "damaged" in answer.error
        assert "others in this run: " in answer.error
        assert place.state() == before
    file.unlink()
    said = command(name, place.run).error
    assert f"no checkpoint {file.stem}, which is the" in said
    assert "there are warm-0, " in said
    other = command(name, place.run, "--checkpoint", "joint-1")
    assert other.code == (2 if name == "prune" else 0)  # joint-1 was never projected


@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("unchanged")
def test_names_of_checkpoints(place: Place, name: str) -> None:
    for wrong in ("nope", "../../run", ""):
        said = command(name, place.run, "--checkpoint", wrong).error
        assert "there are warm-0, joint-1, project-1, last_layer-1-0" in said


@pytest.mark.parametrize("content", [b"gone-7\n", b"\xff\xfe", b"../../../etc/passwd"])
def test_a_pointer_to_nothing(place: Place, content: bytes) -> None:
    for which in ("best", "latest"):
        (place.run / "checkpoints" / which).write_bytes(content)
    for name in READERS:
        assert "there are warm-0, " in command(name, place.run).error
    out = command("train", "--resume", place.run).done()
    assert "is finished already" in out


def test_resuming_goes_back_to_the_newest_whole_checkpoint(place: Place) -> None:
    latest = (place.run / "checkpoints" / "latest").read_text().strip()
    assert latest == "last_layer-1-0"
    file = place.run / "checkpoints" / f"{latest}.safetensors"
    replace(file, file.read_bytes()[:-1])
    out = command("train", "--resume", place.run, "--no-report").done()
    assert f"{file} is cut short or damaged" in out
    assert "resumed from checkpoint project-1: 3 of 4 steps are done" in out
    assert (place.run / "checkpoints" / "latest").read_text().strip() == latest
    for other in (place.run / "checkpoints").glob("*.safetensors"):
        replace(other, b"")
    answer = command("train", "--resume", place.run)
    assert "no checkpoint in" in answer.error
    assert "start the run again in another folder" in answer.error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"data = [", "is not valid TOML"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"[data]\nkind = 'folders'\n", ":1: data.root: data.kind folders needs the folder"),
        (b"[model]\ndepth = 'x'\n", ":2: model.depth = 'x' is not allowed"),
        (b"", "settings.toml is empty"),
    ],
)
def test_settings(place: Place, content: bytes, said: str) -> None:
    (place.run / "settings.toml").write_bytes(content)
    before = place.state()
    for name in READERS:
        answer = command(name, place.run)
        assert answer.code == 1
        assert said in answer.error
    assert said in command("train", "--resume", place.run).error
    assert place.state() == before


JUNK = [b"{", b"[1, 2]", b"\xff\x00\xfe", b"", b'{"format": 1}', b"null", b"3\n3\n"]


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("metrics.jsonl", ()),
        ("prototypes/prototypes.json", ()),
        ("explanations/summary.json", ("make it anew with: protofast explain",)),
        ("evaluation/metrics.json", ("make it anew with: protofast evaluate",)),
        ("evaluation/confusion.csv", ("make it anew with: protofast evaluate",)),
        ("environment.json", ()),
    ],
)
def test_what_the_report_reads(place: Place, name: str, also: tuple[str, ...]) -> None:
    page = place.run / "report.html"
    for junk in JUNK:
        (place.run / name).write_bytes(junk)
        page.unlink()
        answer = command("report", place.run)
        assert f"report: {page}" in answer.out
        assert page.read_text().rstrip().endswith("</html>")
        if answer.code:
            assert name in answer.error
            assert all(text in answer.error for text in also)
            assert name in page.read_text()
    # Nothing of it is needed to make it anew.
    for again in ("evaluate", "explain"):
        command(again, place.run).done()
    assert "is finished already" in command("train", "--resume", place.run).done()
    if name.startswith(("explanations", "evaluation")):
        command("report", place.run).done()


def test_a_summary_of_another_shape_is_left_out_of_the_report(place: Place) -> None:
    (place.run / "explanations" / "summary.json").write_text(
        '{"format": 1, "classes": 1, "images": [], "prototypes": {}, "predictions": 3, '
        '"checkpoint": null, "test": 4}'
    )
    answer = command("report", place.run)
    assert answer.code == 1
    assert "explanations/summary.json cannot be used" in answer.error
    assert "make it anew with: protofast explain" in answer.error


def test_an_explained_checkpoint_shows_its_own_projection(place: Place) -> None:
    """Whatever prototypes.json says, which is of the run's latest projection."""
    (place.run / "prototypes" / "prototypes.json").write_text("[]")
    command("explain", place.run).done()
    summary = (place.run / "explanations" / "summary.json").read_text()
    assert '"not_projected"' not in summary
