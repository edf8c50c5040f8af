"""Whole small runs: what they leave behind, and what their settings change."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import (
    Perturbing,
    Tiny,
    distances_to_sources,
    perturb_by,
    prototype_table,
    tensors,
)
from torch import Tensor, nn

from protofast.data import Batches, Splits
from protofast.errors import CheckpointError, SettingsError
from protofast.training import Result, RunFolder, build_model, train
from protofast.training.prototype_init import start_from_patches


def test_a_run_leaves_everything_behind(done: Result, tiny: Tiny) -> None:
    folder = done.folder
    assert done.finished
    assert (done.steps_done, done.steps) == (6, 6)
    assert folder.settings == tiny()
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["starts"][0]["threads"] == 1
    assert environment["starts"][0]["versions"]["torch"] == torch.__version__
    assert "project-2" in (folder.path / "log.txt").read_text()
    assert folder.pointer("latest") == "last_layer-2-1"
    kept = {"warm-0", "joint-2", "project-2", "last_layer-2-0", "last_layer-2-1"}
    assert set(folder.names()) - {folder.pointer("best")} <= kept
    assert {"warm-0", "joint-2", "project-2", "last_layer-2-1"} <= set(folder.names())
    assert not list(folder.path.rglob("*.tmp"))


def test_metrics_tell_every_step(done: Result, birds: Splits) -> None:
    rows = done.folder.rows()
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["stage"] for row in epochs] == ["warm", "joint", "joint", *["last_layer"] * 2]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    for row in epochs:
        assert row["images"] == len(birds.train)
        total = row["cross_entropy"] + 0.8 * row["cluster"] - 0.08 * row["separation"]
        assert row["loss"] == pytest.approx(total + 1e-4 * row["l1"])
        assert 0 <= row["accuracy"] <= 1
        assert row["images_per_second"] > 0
    assert epochs[0]["learning_rates"] == {"add_on": 3e-3, "prototypes": 3e-3}
    projection = next(row for row in rows if row["kind"] == "projection")
    assert projection["moved_mean"] > 0
    tests = [row for row in rows if row["kind"] == "test"]
    assert [row["projected"] for row in tests] == [False] * 3 + [True] * 3


def test_the_best_checkpoint_is_a_projected_one(done: Result) -> None:
    projected = [row for row in done.folder.rows() if row.get("projected")]
    assert done.best is not None
    assert done.best.startswith(("project-", "last_layer-"))
    assert done.test is not None
    assert done.test["accuracy"] == max(row["accuracy"] for row in projected)
    loaded = done.folder.load_model("best")
    assert loaded.model.num_prototypes == 6


def test_frozen_batch_norm_keeps_prototypes_equal_to_their_patches(
    done: Result, birds: Splits
) -> None:
    assert distances_to_sources(done.folder, birds) == [0] * 6
    height = width = 2
    for row in prototype_table(done.folder):
        assert birds.project.names[row["image_index"]] == row["image"]
        assert int(birds.project.labels[row["image_index"]]) == row["class"]
        assert row["class_name"] == birds.train.classes[row["class"]]
        assert row["location"] == row["row"] * width + row["col"] < height * width
        left, top, right, bottom = row["box"]
        assert 0 <= left < right <= 32
        assert 0 <= top < bottom <= 32


def test_drifting_batch_norm_is_an_option(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    drift = "training.freeze_batch_norm_after_projection=false"
    result = train(tiny(drift), tmp_path / "run", data=birds)
    assert any(distance > 0 for distance in distances_to_sources(result.folder, birds))


def test_plain_last_layer_images_learn_from_stored_activations(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    plain = ["training.last_layer_images=plain", "training.optimizer.last_layer.last_layer=0.01"]
    result = train(tiny(*plain), tmp_path / "run", data=birds)
    assert result.finished
    names = ("project-2", "last_layer-2-1")
    before, after = (tensors(result.folder, name) for name in names)
    moved = [
        name
        for name in before
        if name.startswith("model/") and not torch.equal(before[name], after[name])
    ]
    assert moved == ["model/last_layer.weight"]
    rows = [row for row in result.folder.rows() if row.get("stage") == "last_layer"]
    losses = [row["cross_entropy"] for row in rows if row["kind"] == "epoch"]
    assert losses[1] < losses[0]


def test_a_linear_head_teaches_the_backbone_and_goes(done_from_scratch: Result) -> None:
    folder = done_from_scratch.folder
    warm, joint = (tensors(folder, name) for name in ("warm-0", "joint-2"))
    assert warm["head/weight"].shape == (3, 192)
    assert torch.equal(warm["head/weight"], joint["head/weight"])
    first = next(row for row in folder.rows() if row["kind"] == "epoch")
    assert first["loss"] == first["cross_entropy"]
    assert "cluster" not in first
    model = folder.load_model("latest").model
    assert not any("head" in name for name in model.state_dict())


def test_prototypes_start_as_centres_of_their_own_class(
    tiny: Tiny, scratch: tuple[str, ...], birds: Splits
) -> None:
    settings = tiny(*scratch)
    torch.manual_seed(0)
    model = build_model(settings.model, settings.data, num_classes=3)
    some = birds.train.subset((birds.train.labels != 2).nonzero()[:, 0])
    before = model.prototypes.detach().clone()
    seen: list[int] = []
    start_from_patches(model, some, head=None, batch_size=5, seed=1, tick=seen.append)
    assert sum(seen) == len(some)
    assert torch.equal(model.prototypes[4:], before[4:]), "class 2 has no images"
    model.eval()
    with torch.no_grad():
        features = model.features(next(iter(Batches(some, 99))).images)
    for label in (0, 1):
        patches = features[some.labels == label].permute(0, 2, 3, 1).flatten(0, 2)
        own = model.prototypes[2 * label : 2 * label + 2].detach()
        nearest = torch.cdist(patches, own).argmin(dim=1)
        for number in (0, 1):
            torch.testing.assert_close(own[number], patches[nearest == number].mean(0))
    start_from_patches(
        model, some, head=None, batch_size=5, seed=20261122002300, tick=seen.append
    )  # any seed will do
    start_from_patches(model, some, head=None, batch_size=5, seed=1, tick=seen.append)
    again = build_model(settings.model, settings.data, num_classes=3)
    again.load_state_dict(model.state_dict())
    start_from_patches(again, some, head=None, batch_size=5, seed=1, tick=seen.append)
    assert torch.equal(model.prototypes, again.prototypes)


def test_perturb_sees_every_training_image(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    seen: list[int] = []

    def blacken_later(batch: Perturbing) -> Tensor | None:
        assert len(batch.images) == len(batch.labels)
        assert torch.equal(batch.labels, birds.train.labels[batch.index])
        seen.append(len(batch.images))
        return torch.zeros_like(batch.images) if len(seen) > 3 else None

    result = train(tiny(), tmp_path / "run", data=birds, perturb=perturb_by(blacken_later))
    assert sum(seen) == 5 * len(birds.train)
    # Black images cannot be told from each other.
    last = [row for row in result.folder.rows() if row["kind"] == "epoch"][-1]
    assert last["accuracy"] == pytest.approx(1 / 3)


def test_mixed_precision_still_projects_in_float32(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    folder = train(tiny("training.precision=bf16-mixed"), tmp_path / "run", data=birds).folder
    assert tensors(folder)["model/prototype_layer.prototypes"].dtype == torch.float32
    assert distances_to_sources(folder, birds) == [0] * 6


def test_a_run_may_start_from_the_network_of_another(
    done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    file = done.folder.file("project-2")
    settings = tiny(f"model.weights={file}", "training.schedule.warm_epochs=0")
    model = build_model(settings.model, settings.data, num_classes=3)
    saved = tensors(done.folder, "project-2")
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[f"model/{name}"])
    result = train(settings, tmp_path / "run", data=birds)
    assert result.finished
    assert RunFolder.open(tmp_path / "run").settings.model.weights == str(file)
    linear = tiny(f"model.weights={file}", "model.similarity=linear")
    with pytest.raises(SettingsError, match=r"model.similarity is linear, .* trained with log"):
        build_model(linear.model, settings.data, num_classes=3)
    other = tiny(f"model.weights={file}", "model.depth=4")
    with pytest.raises(CheckpointError, match=r"project-2.safetensors does not fit the model: add"):
        build_model(other.model, other.data, num_classes=3)
    for classes, said in (
        (birds.train.classes[::-1], "their order is another"),
        ((*birds.train.classes[:2], "Dodo"), r" is missing and 'Dodo' is new"),
        (birds.train.classes[:2], r"have: '[^']+' is missing; take"),
    ):
        with pytest.raises(SettingsError, match=said):
            build_model(
                settings.model, settings.data, num_classes=len(classes), classes=tuple(classes)
            )
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(file.read_bytes()[:-5] + b"other")
    with pytest.raises(CheckpointError, match="is damaged: its checksum does not match"):
        build_model(tiny(f"model.weights={damaged}").model, settings.data, num_classes=3)


@pytest.mark.parametrize(("init", "told"), [("patches", 1), ("uniform", 0)])
def test_prototypes_that_a_start_does_not_keep_are_told(
    init: str, told: int, done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    short = ("epochs=1", "warm_epochs=0", "last_layer_epochs=0", "project_last=false")
    start = f"model.weights={done.folder.file('project-2')}", f"model.prototype_init={init}"
    settings = tiny(*start, *(f"training.schedule.{each}" for each in short))
    train(settings, tmp_path / "run", data=birds)
    train(None, tmp_path / "run", resume=True, data=birds)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("project-2.safetensors give way to patches") == told


def test_class_weights_change_the_loss(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    weights = torch.tensor([1.0, 100.0, 1.0])
    expected: list[Tensor] = []

    def watch(batch: Perturbing) -> None:
        with torch.no_grad():
            logits = batch.model(batch.images).logits
        expected.append(nn.functional.cross_entropy(logits, batch.labels, weights))

    weighted = tiny("training.losses.class_weights=[1, 100, 1]", "training.batch_size=24")
    result = train(weighted, tmp_path / "run", data=birds, perturb=perturb_by(watch))
    terms = [row["cross_entropy"] for row in result.folder.rows() if row["kind"] == "epoch"]
    torch.testing.assert_close(terms, [float(term) for term in expected])
    with pytest.raises(SettingsError, match="2 numbers for 3 classes"):
        train(tiny("training.losses.class_weights=[1, 2]"), tmp_path / "other", data=birds)
