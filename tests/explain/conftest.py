from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from copies import copy_run, unspoilt
from explained_run import Trained, explain_tiny, train_tiny

from protofast.training import RunFolder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A trained and projected run with its data."""
    return train_tiny(tmp_path_factory.mktemp("explain") / "run")


@pytest.fixture(scope="session")
def explained(trained: Trained) -> Path:
    """The folder of the trained run, explained."""
    run, data = trained
    explain_tiny(run, data, nearest=3, samples=4, top=2)
    return run.path


@pytest.fixture
def copy(explained: Path, tmp_path: Path) -> Iterator[RunFolder]:
    """A copy of the explained run that a test may spoil."""
    with unspoilt(explained):
        yield RunFolder.open(copy_run(explained, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
