"""Two ranks (gloo on the CPU) train as one: equal weights on both, projection as by one rank.

The alignment loss is part of it, whose second pass must be averaged over ranks like the first.
"""

import json
from pathlib import Path

import pytest
import torch
from copies import copy_run
from scripts import run_script
from small_runs import Tiny

from protofast.data import Batches, Splits
from protofast.projection import project_prototypes
from protofast.training import RunFolder, train


@pytest.fixture(scope="module")
def two_ranks(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two ranks with four images each per step."""
    path = tmp_path_factory.mktemp("ranks")
    settings = path / "settings.toml"
    changes = "[training]\nbatch_size = 4\nalignment.weight = 1.0\n"
    settings.write_text(f'recipe = "{tiny_file}"\n{changes}')
    run_script(Path(__file__).with_name("train_on_ranks.py"), settings, path / "run")
    return RunFolder.open(path / "run")


def test_both_ranks_end_with_the_same_weights(two_ranks: RunFolder) -> None:
    first, second = (
        json.loads((two_ranks.path.parent / f"rank-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first["finished"]
    assert first["sum"] == second["sum"]
    assert first["best"] == second["best"]
    assert first["images"][0] == first["images"][1] > 0, "the bar counts the images of both ranks"
    assert first["again"].startswith("RunFolderError: ")
    assert second["again"].startswith("ProtofastError: the first rank failed: RunFolderError")
    starts = json.loads((two_ranks.path / "environment.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2]


def test_every_image_counts_once(two_ranks: RunFolder, birds: Splits) -> None:
    rows = two_ranks.rows()
    assert {row["images"] for row in rows if row["kind"] == "epoch"} == {len(birds.train)}
    assert {row["images"] for row in rows if row["kind"] == "test"} == {len(birds.test)}


def test_projection_is_that_of_one_rank(two_ranks: RunFolder, birds: Splits) -> None:
    model = two_ranks.load_model("joint-2").model
    projection = project_prototypes(model, Batches(birds.project, 24))
    rows = two_ranks.read("project-2")[2]["prototypes"]
    assert [row["image_index"] for row in rows] == projection.images.tolist()
    assert [row["location"] for row in rows] == projection.locations.tolist()
    projected = two_ranks.load_model("project-2").model
    torch.testing.assert_close(model.prototypes, projected.prototypes, rtol=0, atol=1e-6)


def test_the_last_layer_learns_as_on_one_rank(
    two_ranks: RunFolder, birds: Splits, tiny: Tiny, tmp_path: Path
) -> None:
    # There batch norm stands still, so two batches of four are the same as one of eight.
    path = tmp_path / "one"
    copy_run(two_ranks.path, path)
    for name in ("last_layer-2-0", "last_layer-2-1"):
        (path / "checkpoints" / f"{name}.safetensors").unlink()
    (path / "checkpoints" / "latest").write_text("project-2\n")
    train(tiny(), path, resume=True, allow_changes=True, data=birds)
    one, two = (
        folder.load_model("last_layer-2-1").model for folder in (RunFolder.open(path), two_ranks)
    )
    before = two_ranks.load_model("project-2").model.last_layer.weight
    assert not torch.equal(before, two.last_layer.weight)
    torch.testing.assert_close(
        one.last_layer.weight - before, two.last_layer.weight - before, rtol=1e-2, atol=1e-6
    )
    log = (path / "log.txt").read_text()
    assert "not restored: the random states, which were saved by another number of ranks" in log
