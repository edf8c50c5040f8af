"""Whole runs with adversarial training, the alignment loss and masking."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import (
    Perturbing,
    Tiny,
    assert_same_end,
    different,
    perturb_by,
    train_for,
    train_in_pieces,
)
from threads import one_thread
from torch import Tensor

from protofast.attacks import FastAdversarial
from protofast.data import Splits
from protofast.errors import SettingsError
from protofast.training import Result, RunFolder, train
from protofast.training.defences import AdversarialSettings, AlignmentSettings
from protofast.training.perturb import check_perturb

DEFENDED = (
    "training.adversarial.method=fgsm",
    "training.adversarial.rise=2",
    "training.alignment.weight=3",
    "training.alignment.quantile=random",
    "training.alignment.difference=l1",
    "training.alignment.weigh_by_mask=true",
    "training.alignment.fraction=0.6",
    "training.masking.probability=0.5",
    "training.jpeg.probability=0.5",
)
"""Every defence at once, with settings that draw random numbers."""


@pytest.fixture(scope="module")
def defended(tiny: Tiny, birds: Splits, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with every defence."""
    path = tmp_path_factory.mktemp("defended") / "run"
    with one_thread():
        return train(tiny(*DEFENDED), path, data=birds, perturb=FastAdversarial(seed=7)).folder


def test_a_defended_run_goes_on_bit_for_bit(
    defended: RunFolder, birds: Splits, tmp_path: Path
) -> None:
    result, starts = train_in_pieces(
        4,
        defended.settings,
        tmp_path / "run",
        data=birds,
        perturb=lambda: FastAdversarial(seed=7),
    )
    assert starts > 5
    assert_same_end(defended, result.folder)


def test_alignment_is_told_where_it_is_computed(defended: RunFolder) -> None:
    rows = [row for row in defended.rows() if row["kind"] == "epoch"]
    assert [row["stage"] for row in rows if "alignment" in row] == ["warm", "joint", "joint"]
    for row in rows:
        total = row["cross_entropy"] + 0.8 * row["cluster"] - 0.08 * row["separation"]
        total += 1e-4 * row["l1"] + 3 * row.get("alignment", 0.0)
        assert row["loss"] == pytest.approx(total)
        assert row.get("alignment", 1.0) > 0


@pytest.mark.parametrize("own", [{"epsilon": 4 / 255}, {"step_size": 4 / 255}])
def test_an_attack_that_is_not_the_settings_is_refused(
    own: dict[str, float], tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    (key,) = own
    perturb = FastAdversarial(**own)  # type: ignore[arg-type]
    message = rf"training\.adversarial\.{key} is 0\.03\d+, but perturb has {key} 0\.0156"
    with pytest.raises(SettingsError, match=message):
        train(tiny(*DEFENDED), tmp_path / "run", data=birds, perturb=perturb)
    assert not (tmp_path / "run").exists()
    asked = f"training.adversarial.{key}={own[key]}"
    check_perturb(tiny(*DEFENDED, asked).training.adversarial, perturb)
    check_perturb(tiny().training.adversarial, perturb)  # not asked for


@pytest.mark.parametrize(
    "wrong", [lambda images: images[:1], lambda images: images[:, :1], lambda images: images.half()]
)
def test_images_that_were_perturbed_into_something_else_are_refused(
    wrong: Callable[[Tensor], Tensor], tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    perturb = perturb_by(lambda batch: wrong(batch.images))
    message = r"must return images as it got them, \[8, 3, 32, 32\] of torch.float32, or None; got"
    with pytest.raises(ValueError, match=message):
        train(tiny(), tmp_path / "run", data=birds, perturb=perturb)


def test_an_attack_with_a_radius_of_another_kind_is_the_users_business() -> None:
    class PerChannel:
        epsilon = torch.tensor([0.1, 0.2, 0.1])
        step_size = "small"

        def __call__(self, *args: object, **known: object) -> None:
            return None

    check_perturb(AdversarialSettings(method="fgsm"), PerChannel())


@pytest.mark.parametrize(
    ("fraction", "images", "compared"),
    [(1.0, 9, 9), (0.4, 9, 4), (0.7, 10, 7), (0.07, 100, 7), (1e-12, 8, 1), (0.5, 1, 1)],
)
def test_a_fraction_of_a_batch_is_rounded_up(fraction: float, images: int, compared: int) -> None:
    assert AlignmentSettings(weight=1, fraction=fraction).compared(images) == compared


def test_every_defence_changes_the_network(
    defended: RunFolder, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    short = ("training.schedule.epochs=1", "training.schedule.warm_epochs=0")
    plain = train(tiny(*short), tmp_path / "plain", data=birds).folder
    for number, override in enumerate((DEFENDED[2], DEFENDED[7], DEFENDED[8])):
        other = train(tiny(*short, override), tmp_path / str(number), data=birds).folder
        assert different(plain, other)
    perturb = FastAdversarial()
    other = train(tiny(*short), tmp_path / "fgsm", data=birds, perturb=perturb).folder
    assert different(plain, other)


def test_a_weight_of_zero_is_no_alignment_to_the_last_bit(
    done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    off = ("training.alignment.weight=0", *DEFENDED[3:7], "training.masking.fills=['mean']")
    other = train(tiny(*off), tmp_path / "other", data=birds).folder
    assert_same_end(done.folder, other)


def test_runs_from_before_the_defences_are_taken_up(
    done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    path = tmp_path / "old"
    folder = train_for(5, tiny(), path, data=birds).folder
    text = (path / "settings.toml").read_text()
    for table in ("masking", "adversarial", "alignment", "jpeg"):
        head, found, tail = text.partition(f"[training.{table}]\n")
        assert found
        text = head + tail[tail.find("\n[") + 1 :] if "\n[" in tail else head
    (path / "settings.toml").write_text(text)
    assert "alignment" not in text
    name = folder.pointer("latest")
    assert name is not None
    _, tensors, facts = folder.read(name)
    tensors["sums.values"] = tensors["sums.values"][:7].clone()
    folder.write(name, tensors, facts)
    assert train(None, path, resume=True, data=birds).finished
    assert_same_end(done.folder, folder)


def test_under_a_linear_head_adversarial_training_attacks_that_head(
    tiny: Tiny, scratch: tuple[str, ...], birds: Splits, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool]] = []
    attack = FastAdversarial()

    def watch(batch: Perturbing) -> Tensor:
        adversarial = attack(
            batch.model, batch.images, batch.labels, index=batch.index, epoch=batch.epoch
        )
        with torch.no_grad():
            prototypes = batch.model(batch.images).distances.shape[1]
        seen.append((prototypes, bool((adversarial != batch.images).any())))
        return adversarial

    settings = tiny(
        *scratch,
        "training.last_layer_images=augmented",
        "training.adversarial.method=fgsm",
        "training.alignment.weight=1",
    )
    folder = train(settings, tmp_path / "run", data=birds, perturb=perturb_by(watch)).folder
    assert seen == [(0, True)] * 3 + [(6, True)] * 12
    rows = [row for row in folder.rows() if row["kind"] == "epoch"]
    assert [row["stage"] for row in rows if "alignment" in row] == ["joint", "joint"]


def test_each_pass_over_the_images_has_a_number_of_its_own(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(batch: Perturbing) -> None:
        assert torch.equal(batch.labels, birds.train.labels[batch.index])
        seen.extend((batch.epoch, int(position)) for position in batch.index)

    settings = tiny("training.schedule.passes=2", "training.schedule.last_layer_epochs=1")
    train(settings, tmp_path / "run", data=birds, perturb=perturb_by(watch))
    assert len(seen) == len(set(seen)) == 7 * len(birds.train)


def test_the_perturbation_rises_over_the_first_epochs(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    seen: list[float] = []
    perturb = perturb_by(lambda batch: seen.append(round(batch.strength * 6, 9)))
    settings = tiny("training.adversarial.rise=2", "training.schedule.last_layer_epochs=1")
    train(settings, tmp_path / "run", data=birds, perturb=perturb)
    assert seen == [0, 1, 2, 3, 4, 5, *[6] * 6], "three batches an epoch"
    seen.clear()
    short = ("training.schedule.epochs=1", "training.schedule.last_layer_epochs=0")
    train(tiny(*short), tmp_path / "flat", data=birds, perturb=perturb)
    assert seen == [6] * 3
