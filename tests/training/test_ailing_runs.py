"""Runs that cannot begin, and runs of which something has to be told."""

from pathlib import Path

import pytest
import torch
from small_runs import Tiny, prototype_table

from protofast.data import Splits
from protofast.errors import ProtofastError, SettingsError
from protofast.training import build_model, train


def test_what_this_machine_lacks_is_named(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    half = tiny("training.precision=16-mixed")
    with pytest.raises(SettingsError, match="16-mixed needs a GPU; on the CPU use bf16-mixed"):
        train(half, tmp_path / "run", data=birds, device=torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match=r"accelerator = cuda.* cannot be had here"):
            train(tiny("training.accelerator=cuda"), tmp_path / "run", data=birds)
    assert not (tmp_path / "run").exists()


def test_what_cannot_begin_leaves_no_folder(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    other = build_model(tiny().model, tiny().data, num_classes=2)
    with pytest.raises(ValueError, match="the model has 2 classes, the data 3"):
        train(tiny(), tmp_path / "run", data=birds, model=other)
    assert not (tmp_path / "run").exists()


def test_a_class_without_images_is_told(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    some = birds.project.subset((birds.project.labels != 1).nonzero()[:, 0])
    result = train(tiny(), tmp_path / "run", data=Splits(birds.train, some, birds.test))
    warnings = [row for row in result.folder.rows() if row["kind"] == "warning"]
    name = birds.train.classes[1]
    assert any(name in row["message"] for row in warnings if row["what"] == "empty_classes")
    rows = prototype_table(result.folder)
    assert [row["image"] is None for row in rows] == [row["class"] == 1 for row in rows]


def test_sick_prototypes_are_told_once_per_stage(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    settings = tiny()
    model = build_model(settings.model, settings.data, num_classes=3)
    with torch.no_grad():
        model.prototypes[0::2] = 0.5
        model.prototypes[1::2] = 30.0  # far from anything a sigmoid gives
        model.prototypes[4] = model.prototypes[2]
    result = train(settings, tmp_path / "run", data=birds, model=model)
    found = [
        (row["stage"], row["what"]) for row in result.folder.rows() if row["kind"] == "warning"
    ]
    assert ("warm", "never_winning") in found
    assert ("joint", "never_winning") in found
    assert len(found) == len(set(found))
    messages = (result.folder.path / "log.txt").read_text()
    assert "joint-2: 3 of 6 prototypes were never the nearest of their class" in messages


def test_a_diverged_run_stops_with_one_line(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    wild = tiny("training.optimizer.warm.prototypes=1e30")
    with pytest.raises(ProtofastError, match=r"training diverged: the loss of warm-0") as caught:
        train(wild, tmp_path / "run", data=birds)
    assert "\n" not in str(caught.value)
