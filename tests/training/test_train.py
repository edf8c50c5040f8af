"""Whole small runs: what they leave behind, how they stop, and how they are taken up again."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protofast.data import Batches, Splits
from protofast.errors import CheckpointError, ProtofastError, RunFolderError, SettingsError
from protofast.training import Result, RunFolder, Settings, build_model, train
from protofast.training.progress import Silence
from protofast.training.prototype_init import start_from_patches

Tiny = Callable[..., Settings]
PLAN = [
    *("warm-0", "joint-1", "joint-2", "project-2"),
    *("last_layer-2-0", "last_layer-2-1"),
]


@pytest.fixture(scope="module")
def done(tiny: Tiny, birds: Splits, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    torch.set_num_threads(1)
    return train(tiny(), path, data=birds)


def _weights(folder: RunFolder, which: str = "latest") -> dict[str, Tensor]:
    return folder.read(which)[1]


def _assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


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
    rows = json.loads((done.folder.path / "prototypes" / "prototypes.json").read_text())
    assert len(rows) == 6
    model = done.folder.load_model("latest").model
    images = next(iter(Batches(birds.project, 24)))
    with torch.no_grad():
        distances = model.classify(model.features(images.images)).distances
    height = width = 2
    for row in rows:
        assert birds.project.names[row["image_index"]] == row["image"]
        assert int(birds.project.labels[row["image_index"]]) == row["class"]
        assert row["class_name"] == birds.train.classes[row["class"]]
        assert row["location"] == row["row"] * width + row["col"] < height * width
        left, top, right, bottom = row["box"]
        assert 0 <= left < right <= 32
        assert 0 <= top < bottom <= 32
        assert distances[row["image_index"], row["prototype"]] == 0


def test_drifting_batch_norm_is_an_option(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    drift = "training.freeze_batch_norm_after_projection=false"
    result = train(tiny(drift), tmp_path / "run", data=birds)
    rows = json.loads((result.folder.path / "prototypes" / "prototypes.json").read_text())
    model = result.folder.load_model("latest").model
    with torch.no_grad():
        images = next(iter(Batches(birds.project, 24))).images
        distances = model(images).distances
    assert any(distances[row["image_index"], row["prototype"]] > 0 for row in rows)


class _StopAfter(Silence):
    """Sets an event after so many calls from inside the loop, wherever that is."""

    def __init__(self, event: threading.Event, calls: int) -> None:
        self.event, self.calls = event, calls

    def advance(self, *args: object, **kwargs: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.event.set()


@pytest.mark.parametrize(("from_scratch", "threads"), [(False, 1), (True, 1), (False, 2)])
def test_a_stopped_run_goes_on_bit_for_bit(
    from_scratch: bool,
    threads: int,
    tiny: Tiny,
    scratch: tuple[str, ...],
    birds: Splits,
    tmp_path: Path,
) -> None:
    torch.set_num_threads(threads)
    shorter = ("training.schedule.epochs=2",) if threads > 1 else ()
    settings = tiny(*(scratch if from_scratch else shorter))
    done = train(settings, tmp_path / "undisturbed", data=birds)
    starts = 0
    result = None
    every = 4 if threads == 1 else 6
    # Every fourth call: within epochs, projections and tests. (Three of them come before the first
    # joint batch, where the prototypes start, which is done anew.)
    while result is None or not result.finished:
        stop = threading.Event()
        result = train(
            settings,
            tmp_path / "run",
            resume=starts > 0,
            data=birds,
            stop=stop,
            progress=_StopAfter(stop, every),
        )
        starts += 1
        assert starts < 50
    assert starts > (5 if threads == 1 else 1)
    _assert_equal(_weights(done.folder), _weights(result.folder))
    timeless = [
        [{key: value for key, value in row.items() if "second" not in key} for row in folder.rows()]
        for folder in (done.folder, result.folder)
    ]
    assert timeless[0] == timeless[1]
    assert result.best == done.best


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_run_to_resume(
    number: signal.Signals, done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    class Press(Silence):
        calls = 0

        def advance(self, *args: object, **kwargs: object) -> None:
            self.calls += 1
            if self.calls == 5:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = train(tiny(), tmp_path / "run", data=birds, progress=Press())
    assert not result.finished
    assert result.folder.pointer("latest") == "joint-1-partial"
    assert signal.getsignal(number) is before
    assert train(None, tmp_path / "run", resume=True, data=birds).finished
    _assert_equal(_weights(done.folder), _weights(result.folder))


def test_a_finished_run_is_finished(done: Result, birds: Splits) -> None:
    before = _weights(done.folder)
    again = train(None, done.folder.path, resume=True, data=birds)
    assert again.finished
    assert again.best == done.best
    _assert_equal(before, _weights(done.folder))


def test_an_existing_run_is_not_overwritten(done: Result, tiny: Tiny, birds: Splits) -> None:
    with pytest.raises(RunFolderError, match=r"already holds a run.*resume"):
        train(tiny(), done.folder.path, data=birds)
    with pytest.raises(RunFolderError, match="no run folder"):
        train(tiny(), done.folder.path / "other", resume=True, data=birds)


def test_other_settings_are_named_unless_allowed(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    path = tmp_path / "run"
    stop = threading.Event()
    train(tiny(), path, data=birds, stop=stop, progress=_StopAfter(stop, 2))
    changed = tiny("training.losses.l1=0.5", "training.workers=1")
    with pytest.raises(SettingsError, match=r"losses\.l1 \(0\.0001, now 0\.5\)") as caught:
        train(changed, path, resume=True, data=birds)
    assert "workers" not in str(caught.value), "workers change nothing"
    assert RunFolder.open(path).settings == tiny()
    result = train(changed, path, resume=True, allow_changes=True, data=birds)
    assert result.finished
    assert RunFolder.open(path).settings == changed


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    train(tiny(), path, data=birds)
    folder = RunFolder.open(path)
    file = folder.checkpoints / "last_layer-2-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut short.*others in this run: .*project-2"):
        folder.load_model("latest")
    result = train(None, path, resume=True, data=birds)
    assert result.finished
    log = (path / "log.txt").read_text()
    assert "last_layer-2-1.safetensors is cut short or damaged" in log
    assert "resumed from checkpoint last_layer-2-0" in log
    _assert_equal(_weights(done.folder), _weights(folder))
    for name in folder.names():
        (folder.checkpoints / f"{name}.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        train(None, path, resume=True, data=birds)


def test_plain_last_layer_images_learn_from_stored_activations(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    plain = ["training.last_layer_images=plain", "training.optimizer.last_layer.last_layer=0.01"]
    result = train(tiny(*plain), tmp_path / "run", data=birds)
    assert result.finished
    names = ("project-2", "last_layer-2-1")
    before, after = (_weights(result.folder, name) for name in names)
    moved = [
        name
        for name in before
        if name.startswith("model/") and not torch.equal(before[name], after[name])
    ]
    assert moved == ["model/last_layer.weight"]
    rows = [row for row in result.folder.rows() if row.get("stage") == "last_layer"]
    losses = [row["cross_entropy"] for row in rows if row["kind"] == "epoch"]
    assert losses[1] < losses[0]


def test_a_linear_head_teaches_the_backbone_and_goes(
    tiny: Tiny, scratch: tuple[str, ...], birds: Splits, tmp_path: Path
) -> None:
    result = train(tiny(*scratch), tmp_path / "run", data=birds)
    warm, joint = (_weights(result.folder, name) for name in ("warm-0", "joint-2"))
    assert warm["head/weight"].shape == (3, 192)
    assert torch.equal(warm["head/weight"], joint["head/weight"])
    first = next(row for row in result.folder.rows() if row["kind"] == "epoch")
    assert first["loss"] == first["cross_entropy"]
    assert "cluster" not in first
    model = result.folder.load_model("latest").model
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

    def perturb(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> Tensor | None:
        assert len(images) == len(labels)
        assert torch.equal(labels, birds.train.labels[index])
        seen.append(len(images))
        return torch.zeros_like(images) if len(seen) > 3 else None

    result = train(tiny(), tmp_path / "run", data=birds, perturb=perturb)
    assert sum(seen) == 5 * len(birds.train)
    # Black images cannot be told from each other.
    last = [row for row in result.folder.rows() if row["kind"] == "epoch"][-1]
    assert last["accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_still_projects_in_float32(
    precision: str, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    result = train(tiny(f"training.precision={precision}"), tmp_path / "run", data=birds)
    tensors = _weights(result.folder)
    assert tensors["model/prototype_layer.prototypes"].dtype == torch.float32
    rows = json.loads((result.folder.path / "prototypes" / "prototypes.json").read_text())
    model = result.folder.load_model("latest").model
    with torch.no_grad():
        distances = model(next(iter(Batches(birds.project, 24))).images).distances
    assert all(distances[row["image_index"], row["prototype"]] == 0 for row in rows)


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
    rows = json.loads((result.folder.path / "prototypes" / "prototypes.json").read_text())
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


def test_a_run_may_start_from_the_network_of_another(
    done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    file = done.folder.file("project-2")
    settings = tiny(f"model.weights={file}", "training.schedule.warm_epochs=0")
    model = build_model(settings.model, settings.data, num_classes=3)
    tensors = _weights(done.folder, "project-2")
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[f"model/{name}"])
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


def test_class_weights_change_the_loss(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    weights = torch.tensor([1.0, 100.0, 1.0])
    expected: list[Tensor] = []

    def perturb(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> None:
        with torch.no_grad():
            logits = model(images).logits
        expected.append(nn.functional.cross_entropy(logits, labels, weights))

    weighted = tiny("training.losses.class_weights=[1, 100, 1]", "training.batch_size=24")
    result = train(weighted, tmp_path / "run", data=birds, perturb=perturb)
    terms = [row["cross_entropy"] for row in result.folder.rows() if row["kind"] == "epoch"]
    torch.testing.assert_close(terms, [float(term) for term in expected])
    with pytest.raises(SettingsError, match="2 numbers for 3 classes"):
        train(tiny("training.losses.class_weights=[1, 2]"), tmp_path / "other", data=birds)


def test_tensorboard_files_are_written(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    stop = threading.Event()
    settings = tiny("training.tensorboard=true")
    train(settings, tmp_path / "run", data=birds, stop=stop, progress=_StopAfter(stop, 9))
    train(None, tmp_path / "run", resume=True, data=birds)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_time_between_checkpoints_is_respected(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    names: list[str] = []

    class Watch(Silence):
        def advance(self, *args: object, **kwargs: object) -> None:
            names.extend(path.name for path in (tmp_path / "run").rglob("*partial*"))
            time.sleep(0.01)

    train(tiny("training.checkpoint_seconds=0"), tmp_path / "run", data=birds, progress=Watch())
    assert "joint-1-partial.safetensors" in names
    assert not list((tmp_path / "run").rglob("*partial*")), "removed when the epoch is complete"
