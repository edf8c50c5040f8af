"""A small audit of two models: one that was never interrupted, and a way to run others."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dimming import Counting, DimmingSettings, Run, small_birds, small_model
from threads import one_thread

from protofast.audits import AuditedModel, AuditResult, run_audits
from protofast.data import ImageSet


@pytest.fixture(scope="module", name="one_thread")
def _one_thread() -> Iterator[None]:
    """What is compared bit for bit is computed by one number of threads."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return small_birds(tmp_path_factory.mktemp("birds"))


@pytest.fixture(scope="module")
def models() -> list[AuditedModel]:
    return [AuditedModel(name=name, model=small_model(seed)) for seed, name in enumerate("ab")]


@pytest.fixture
def run(birds: ImageSet, models: list[AuditedModel], tmp_path: Path) -> Run:
    """Runs the small audit on both models, into the same folder."""

    def go(**changes: Any) -> tuple[AuditResult, Counting]:
        audit = Counting(
            changes.pop("settings", DimmingSettings()), fail_at=changes.pop("fail_at", None)
        )
        whose, images = changes.pop("models", models), changes.pop("images", birds)
        out = changes.pop("out", tmp_path / "audit")
        usual = {"batch_size": 4, "warn": lambda said: None}
        return run_audits(whose, images, [audit], out, **usual | changes), audit

    return go


@pytest.fixture(scope="module")
def whole(
    birds: ImageSet, models: list[AuditedModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An audit folder that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "audit"
    return run_audits(models, birds, [Counting(DimmingSettings())], out, batch_size=4).folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, where `run` works."""
    return Path(shutil.copytree(whole, tmp_path / "audit"))
