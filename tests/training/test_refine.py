"""Projecting and pruning a run's checkpoints: what comes out, and what must stay as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from copies import replace
from small_runs import Tiny, different, prototype_table, train_for
from torch import Tensor

from protofast.data import Batches, ImageSet, Splits
from protofast.errors import DataError, RunFolderError, SettingsError
from protofast.training import Refined, Result, RunFolder, project_run, prune_run, train


@pytest.fixture
def run(copy: RunFolder) -> RunFolder:
    """A finished run."""
    return copy


def _files(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _outputs(run: RunFolder, which: str, birds: Splits) -> tuple[Tensor, Tensor]:
    """Distances and logits of the training images."""
    model = run.load_model(which).model
    batch = next(iter(Batches(birds.project, 24)))
    with torch.no_grad():
        output = model(batch.images)
    return output.distances, output.logits


def _assert_described(run: RunFolder, birds: Splits) -> None:
    """Each prototype of the best checkpoint is the patch that its row names, and of its class."""
    loaded = run.load_model("best")
    rows = prototype_table(run)
    assert rows == loaded.prototypes
    assert len(rows) == loaded.model.num_prototypes
    distances = _outputs(run, "best", birds)[0]
    for number, row in enumerate(rows):
        assert row["prototype"] == number
        assert row["class"] == int(loaded.model.prototype_class[number])
        assert row["class_name"] == loaded.classes[row["class"]]
        assert row["image"] == birds.project.names[row["image_index"]]
        assert distances[row["image_index"], number] == 0


def test_projecting_moves_prototypes_onto_patches(run: RunFolder, birds: Splits) -> None:
    source = "joint-2"  # before its projection
    refined = project_run(run, birds, checkpoint=source, last_layer_epochs=3)
    assert refined.checkpoint == run.pointer("best") == "projected-joint-2"
    assert refined.source == source
    assert refined.prototypes == (6, 6)
    assert refined.empty_classes == ()
    _assert_described(run, birds)
    # The run's own projection of the same checkpoint found the same patches.
    tensors = [
        run.read(name)[1]["model/prototype_layer.prototypes"] for name in ("best", "project-2")
    ]
    assert torch.equal(*tensors)
    logits = _outputs(run, "best", birds)[1]
    accuracy = float((logits.argmax(1) == birds.project.labels).double().mean())
    assert accuracy > 0.3


def test_the_last_layer_learns_and_nothing_else(run: RunFolder, birds: Splits) -> None:
    project_run(run, birds, checkpoint="project-2", last_layer_epochs=0)
    project_run(run, birds, checkpoint="project-2", last_layer_epochs=5)
    before, after = (run.read(name)[1] for name in ("projected-project-2", "projected-project-2-2"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model/last_layer.weight"]
    assert run.pointer("best") == "projected-project-2-2"


def test_accuracies_are_those_of_the_test_images(run: RunFolder, birds: Splits) -> None:
    refined = project_run(run, birds, last_layer_epochs=2)
    batch = next(iter(Batches(birds.test, 100)))
    for name, told in zip((refined.source, refined.checkpoint), refined.accuracy, strict=True):
        with torch.no_grad():
            logits = run.load_model(name).model(batch.images).logits
        assert float((logits.argmax(1) == batch.labels).double().mean()) == told


def test_pruning_keeps_what_its_neighbours_speak_for(run: RunFolder, birds: Splits) -> None:
    model = run.load_model("project-2").model
    distances = _outputs(run, "project-2", birds)[0]  # [n, P]
    order = distances.argsort(dim=0, stable=True)[:6]  # [6, P]
    own = (birds.project.labels[order] == model.prototype_class).sum(dim=0)
    threshold = int(own.sort().values[2]) + 1  # at least three go
    keep = (own >= threshold).nonzero()[:, 0].tolist()
    assert 0 < len(keep) <= 3
    rows = prototype_table(run)
    refined = prune_run(
        run, birds, checkpoint="project-2", threshold=threshold, last_layer_epochs=2
    )
    assert refined.prototypes == (6, len(keep))
    assert refined.checkpoint == run.pointer("best") == "pruned-project-2"
    assert [row | {"prototype": None} for row in prototype_table(run)] == [
        rows[number] | {"prototype": None} for number in keep
    ]
    _assert_described(run, birds)
    pruned = run.load_model("best").model
    assert torch.equal(pruned.prototypes, model.prototypes[keep])
    gone = set(range(3)) - set(pruned.prototype_class.tolist())
    assert refined.empty_classes == tuple(birds.train.classes[label] for label in sorted(gone))


def test_what_was_refined_can_be_refined_again(run: RunFolder, birds: Splits) -> None:
    first = prune_run(run, birds, threshold=1, last_layer_epochs=1)
    second = prune_run(run, birds, threshold=1, last_layer_epochs=1)
    assert second.source == first.checkpoint
    assert second.checkpoint == f"pruned-{first.checkpoint}"
    third = project_run(run, birds, checkpoint="best", last_layer_epochs=1)
    assert third.checkpoint == f"projected-{second.checkpoint}"
    assert third.prototypes == (first.prototypes[1], first.prototypes[1])
    _assert_described(run, birds)
    assert {first.checkpoint, second.checkpoint, third.checkpoint} < set(run.names())


def test_the_same_again_replaces_nothing(run: RunFolder, birds: Splits) -> None:
    names = [
        prune_run(run, birds, checkpoint="project-2", threshold=1, last_layer_epochs=epochs)
        for epochs in (0, 1, 2)
    ]
    assert [refined.checkpoint for refined in names] == [
        "pruned-project-2",
        "pruned-project-2-2",
        "pruned-project-2-3",
    ]


def test_refining_leaves_the_runs_own_files_alone(run: RunFolder, birds: Splits) -> None:
    before = _files(run.path)
    prune_run(run, birds, threshold=1, last_layer_epochs=1)
    after = _files(run.path)
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"checkpoints/best", "prototypes/prototypes.json", "metrics.jsonl", "log.txt"}
    assert after["metrics.jsonl"].startswith(before["metrics.jsonl"])
    row = run.rows()[-1]
    assert row["kind"] == "pruned"
    assert row["prototypes_before"] == 6


def test_what_was_never_projected_is_not_pruned(run: RunFolder, birds: Splits) -> None:
    before = _files(run.path)
    with pytest.raises(SettingsError, match=r"never projected.*protofast project "):
        prune_run(run, birds, checkpoint="joint-2")
    with pytest.raises(SettingsError, match=r"would remove all 6 prototypes"):
        prune_run(run, birds, checkpoint="project-2", k=24, threshold=24)
    assert _files(run.path) == before


def test_best_and_its_table_change_together_or_not_at_all(run: RunFolder, birds: Splits) -> None:
    table = run.path / "prototypes" / "prototypes.json"
    table.unlink()
    table.mkdir()  # so that it cannot be replaced
    before = _files(run.path)
    with pytest.raises(OSError, match=r"prototypes\.json"):
        prune_run(run, birds, threshold=1, last_layer_epochs=0)
    assert _files(run.path) == before


def test_other_classes_and_other_processes(run: RunFolder, birds: Splits, tiny: Tiny) -> None:
    from protofast.training import build_data

    before = _files(run.path)
    other = build_data(tiny("data.classes=2").data, threads=1)
    with pytest.raises(DataError, match="the network knows 3 classes, the data have 2"):
        project_run(run, other)
    with run.lock(), pytest.raises(RunFolderError, match="another process"):
        prune_run(run, birds)
    assert _files(run.path) == before


@pytest.mark.parametrize("refine", [project_run, prune_run])
def test_only_images_that_decide_must_be_the_runs(
    refine: Callable[..., Refined], run: RunFolder, birds: Splits
) -> None:
    def without_first(images: ImageSet) -> ImageSet:
        return images.subset(range(1, len(images)))

    def described(refined: Refined) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        return prototype_table(run), run.read(refined.checkpoint)[1]

    options = {"threshold": 1} if refine is prune_run else {}
    options |= {"checkpoint": "project-2", "last_layer_epochs": 2}
    before = _files(run.path)
    changed = Splits(birds.train, without_first(birds.project), birds.test)
    with pytest.raises(DataError, match=r"^the projection images are others than the run's"):
        refine(run, changed, **options)
    assert _files(run.path) == before

    same = refine(run, birds, **options)
    assert same.other_images is None
    rows, tensors = described(same)
    changed = Splits(without_first(birds.train), birds.project, without_first(birds.test))
    other = refine(run, changed, **options)
    assert other.other_images == (
        "the test images are others than the run's: names or labels differ"
    )
    assert other.other_images in (run.path / "log.txt").read_text()
    # Nothing but the accuracies is different.
    assert described(other)[0] == rows
    for name, tensor in described(other)[1].items():
        assert torch.equal(tensor, tensors[name]), name
    # The accuracies are those of the images given, the checkpoint still knows the run's own.
    assert run.load_model("best").images == run.load_model("latest").images


def test_training_images_decide_where_their_labels_are_counted(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    balanced = "training.losses.class_weights='balanced'"
    folder = train(tiny(balanced), tmp_path / "run", data=birds).folder
    fewer = Splits(birds.train.subset(range(1, len(birds.train))), birds.project, birds.test)
    with pytest.raises(DataError, match=r"^the training images are others than the run's"):
        project_run(folder, fewer)


@pytest.mark.parametrize("spoil_latest", [False, True])
def test_an_interrupted_run_goes_on_as_if_it_had_never_been_refined(
    done: Result, tiny: Tiny, birds: Splits, tmp_path: Path, spoil_latest: bool
) -> None:
    # After the projection, in the last layer's stage.
    result = train_for(15, tiny(), tmp_path / "run", data=birds)
    assert not result.finished
    run = result.folder
    latest = run.pointer("latest")
    assert latest is not None
    refined = project_run(run, birds, last_layer_epochs=1)
    pruned = prune_run(run, birds, threshold=1, last_layer_epochs=1)
    assert run.pointer("best") == pruned.checkpoint
    assert run.pointer("latest") == latest
    if spoil_latest:  # the refined ones are newer, but nothing can be resumed from them
        replace(run.checkpoints / f"{latest}.safetensors", b"")
    result = train(None, run.path, resume=True, data=birds)
    assert result.finished
    assert different(done.folder, run) == []
    assert run.pointer("best") == done.folder.pointer("best")
    assert {refined.checkpoint, pruned.checkpoint} < set(run.names()), "training deletes neither"
    assert prototype_table(run) == run.load_model("latest").prototypes


def test_resuming_a_finished_run_keeps_what_refining_made(run: RunFolder, birds: Splits) -> None:
    refined = prune_run(run, birds, threshold=1, last_layer_epochs=1)
    before = _files(run.path)
    result = train(None, run.path, resume=True, data=birds)
    assert result.finished
    assert result.steps_before == result.steps_done == result.steps
    after = _files(run.path)
    assert run.pointer("best") == refined.checkpoint
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"environment.json", "log.txt"}
