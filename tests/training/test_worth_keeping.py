"""Which checkpoint is the best one, and what is never saved."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import Perturbing, Tiny, perturb_by

from protofast.data import Batches, Splits
from protofast.errors import ProtofastError
from protofast.models import ProtoPNet
from protofast.training import RunFolder, train


def test_a_linear_head_makes_no_checkpoint_the_best(
    tiny: Tiny, scratch: tuple[str, ...], birds: Splits, tmp_path: Path
) -> None:
    # The warm stage alone: whatever the linear layer knows is dropped.
    short = tiny(*scratch, "training.schedule.epochs=1", "training.schedule.project_last=false")
    result = train(short, tmp_path / "warm", data=birds)
    assert (result.best, result.test) == (None, None)
    assert result.folder.pointer("best") is None
    assert result.folder.resolve("best") == "warm-0"
    row = next(row for row in result.folder.rows() if row["kind"] == "test")
    assert (row["head"], row["projected"]) == ("linear", False)
    # One joint epoch more: that one is tested with its own prototypes.
    longer = tiny(*scratch, "training.schedule.epochs=2", "training.schedule.project_last=false")
    result = train(longer, tmp_path / "joint", data=birds)
    assert result.best == "joint-1"
    tests = [row for row in result.folder.rows() if row["kind"] == "test"]
    assert [row.get("head") for row in tests] == ["linear", None]
    batch = next(iter(Batches(birds.test, 100)))
    with torch.no_grad():
        logits = result.folder.load_model("best").model(batch.images).logits
    assert result.test is not None
    assert float((logits.argmax(1) == batch.labels).double().mean()) == result.test["accuracy"]
    rates = next(row for row in result.folder.rows() if row["kind"] == "epoch")["learning_rates"]
    assert list(rates) == ["backbone"], "nothing else learns under a linear head"


def test_a_network_that_is_lost_is_not_saved(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    calls = 0

    def lose_a_prototype(batch: Perturbing) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert isinstance(batch.model, ProtoPNet)
            with torch.no_grad():
                batch.model.prototypes[0] = torch.nan

    saving = tiny("training.checkpoint_seconds=0")
    with pytest.raises(ProtofastError, match="training diverged") as caught:
        train(saving, tmp_path / "run", data=birds, perturb=perturb_by(lose_a_prototype))
    folder = RunFolder.open(tmp_path / "run")
    for name in folder.names():
        tensors = folder.read(name)[1]
        assert all(
            value.isfinite().all() for value in tensors.values() if value.is_floating_point()
        )
    assert folder.names() == [folder.pointer("latest")] == ["warm-0-partial"]
    assert str(caught.value).endswith("the last checkpoint from before this is warm-0-partial")
    assert train(None, folder.path, resume=True, data=birds).finished


def test_weights_that_the_last_step_of_an_epoch_loses_are_noticed(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    def spoil_the_gradient(batch: Perturbing) -> None:
        # The loss stays finite, the gradient does not.
        assert isinstance(batch.model, ProtoPNet)
        batch.model.prototypes.register_hook(lambda grad: torch.full_like(grad, torch.inf))

    one = tiny("training.batch_size=24")  # one step an epoch
    with pytest.raises(ProtofastError, match=r"warm-0 left weights that are not finite") as caught:
        train(one, tmp_path / "run", data=birds, perturb=perturb_by(spoil_the_gradient))
    assert str(caught.value).endswith("is missing: there is none yet")
    assert RunFolder.open(tmp_path / "run").names() == []
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["kind"] for row in rows] == []
