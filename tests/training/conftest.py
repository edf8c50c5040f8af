"""A run that takes a second or two: four kinds of birds, 32 pixels, the small backbone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from copies import copy_run, unspoilt
from threads import one_thread

from protofast.data import Splits
from protofast.models import ProtoPNet, build_backbone
from protofast.training import Result, RunFolder, Settings, build_data, load_settings, train

TINY = """
[data]
kind = "birds"
size = 32
classes = 3
train_per_class = 8
test_per_class = 4

[model]
backbone = "small"
weights = "none"
depth = 8
prototypes_per_class = 2

[training]
batch_size = 8
test_batch_size = 12
project_batch_size = 24
accelerator = "cpu"
workers = 0

[training.schedule]
epochs = 3
warm_epochs = 1
project_from = 1
project_every = 2
project_last = true
last_layer_epochs = 2
passes = 1
last_layer_passes = 1
"""


SCRATCH = (
    "training.warm_head=linear",
    "training.optimizer.warm.backbone=0.004",
    "training.optimizer.warm_decay=one_cycle",
    "training.optimizer.joint_decay=cosine",
    "training.last_layer_images=plain",
    "model.prototype_init=patches",
)
"""How the recipes for training from scratch differ from the paper's."""


@pytest.fixture(scope="session")
def scratch() -> tuple[str, ...]:
    """Overrides for training from scratch."""
    return SCRATCH


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Callable[..., Settings]:
    """Settings of a tiny run; arguments are overrides ``a.b=c``."""
    return lambda *overrides: load_settings(tiny_file, overrides)


@pytest.fixture(scope="session")
def birds(tiny: Callable[..., Settings]) -> Splits:
    """The images of the tiny run."""
    return build_data(tiny().data, threads=1)


@pytest.fixture(scope="session")
def done(
    tiny: Callable[..., Settings], birds: Splits, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """The tiny run, finished: its folder is for reading, whoever changes it takes a copy."""
    with one_thread():
        return train(tiny(), tmp_path_factory.mktemp("done") / "run", data=birds)


@pytest.fixture
def copy(done: Result, tmp_path: Path) -> Iterator[RunFolder]:
    """A copy of the finished run that a test may spoil."""
    with unspoilt(done.folder.path):
        yield RunFolder.open(copy_run(done.folder.path, tmp_path / "copy"))


@pytest.fixture(scope="session")
def done_from_scratch(
    tiny: Callable[..., Settings],
    scratch: tuple[str, ...],
    birds: Splits,
    tmp_path_factory: pytest.TempPathFactory,
) -> Result:
    """The tiny run trained from scratch, for reading too."""
    with one_thread():
        return train(tiny(*scratch), tmp_path_factory.mktemp("scratch") / "run", data=birds)


@pytest.fixture
def model() -> ProtoPNet:
    """An untrained network of three classes, with one, two and three prototypes."""
    torch.manual_seed(0)
    return ProtoPNet(
        build_backbone("small"),
        num_classes=3,
        prototype_class=[2, 0, 1, 0, 2, 2],
        depth=8,
        input_size=(32, 32),
    )
