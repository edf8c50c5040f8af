"""Commands tried on a tiny run of real images in class folders; every test may spoil its copy."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Place, command
from copies import copy_run, unspoilt
from PIL import Image
from threads import one_thread

from protofast.data import open_birds

SETTINGS = """
[data]
kind = "folders"
root = "{root}"
size = 32

[model]
backbone = "small"
weights = "none"
depth = 8
prototypes_per_class = 2
prototype_init = "patches"

[training]
batch_size = 6
workers = 0
accelerator = "cpu"

[training.schedule]
epochs = 2
warm_epochs = 1
project_from = 1
project_every = 0
project_last = true
last_layer_epochs = 1
passes = 1
last_layer_passes = 1
"""
CLASSES = ("albatross", "booby & tern", "crow")


@pytest.fixture(autouse=True)
def _surroundings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """One thread, a cache of its own, and lines that are not folded."""
    monkeypatch.setenv("PROTOFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.delenv("PROTOFAST_TRACEBACK", raising=False)
    with one_thread():
        yield


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The images, and a run that was trained, evaluated, explained and reported."""
    folder = tmp_path_factory.mktemp("cli")
    photos, settings, run = folder / "photos", folder / "tiny.toml", folder / "run"
    splits = open_birds(
        classes=3, train_per_class=6, test_per_class=3, size=40, cache=folder, threads=1
    )
    for side, images in (("train", splits.train), ("test", splits.test)):
        for index in range(len(images)):
            name = f"{index:02d}.{'jpg' if index % 2 else 'png'}"
            file = photos / side / CLASSES[int(images.labels[index])] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = images.image(index).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(file)
    settings.write_text(SETTINGS.format(root=photos))
    with one_thread():
        command("train", settings, "--out", run).done()
    return Place(run, photos, settings)


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Iterator[Place]:
    """A copy of run, images and settings that a test may spoil."""
    copy = Place(tmp_path / "run", tmp_path / "photos", tmp_path / "tiny.toml")
    copy_run(original.run, copy.run)
    shutil.copytree(original.photos, copy.photos)
    copy.settings.write_text(SETTINGS.format(root=copy.photos))
    settings = copy.run / "settings.toml"
    text = settings.read_text()
    assert str(original.photos) in text
    settings.write_text(text.replace(str(original.photos), str(copy.photos)))
    with unspoilt(original.run):
        yield copy


@pytest.fixture
def unchanged(place: Place) -> Iterator[None]:
    """The test must leave the run as it is."""
    before = place.state()
    yield
    assert place.state() == before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: an empty one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(place: Place, small_disk: Path) -> Iterator[Path]:
    """A copy of the run on a disk that may only be read."""
    run = small_disk / "run"
    shutil.copytree(place.run, run)
    _mount("-o", "remount,ro", str(small_disk))
    yield run
    _mount("-o", "remount,rw", str(small_disk))


def _mount(*arguments: str) -> None:
    mounted = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs to mount a disk: {mounted.stderr.strip()}")
