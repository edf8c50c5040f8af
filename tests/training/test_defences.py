"""Adversarial training, the alignment loss and masking: in the loop, and over any recipe."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protofast.alignment import alignment_step
from protofast.attacks import FastAdversarial
from protofast.data import Batch, Splits
from protofast.errors import SettingsError
from protofast.models import ProtoPNet, build_backbone
from protofast.training import (
    RunFolder,
    Settings,
    build_model,
    load_settings,
    recipe_parts,
    recipes,
    train,
)
from protofast.training.aligned_pass import AlignedPass
from protofast.training.defences import AdversarialSettings, AlignmentSettings, MaskingSettings
from protofast.training.perturb import check_perturb
from protofast.training.progress import Silence

Tiny = Callable[..., Settings]
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


class Rows(list[dict[str, object]]):
    """Rows of a run without what tells the time."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(
            {key: value for key, value in row.items() if "second" not in key}
            for row in folder.rows()
        )


def _weights(folder: RunFolder, which: str = "latest") -> dict[str, Tensor]:
    return folder.read(which)[1]


def _different(one: RunFolder, other: RunFolder) -> list[str]:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


class _StopAfter(Silence):
    def __init__(self, event: threading.Event, calls: int) -> None:
        self.event, self.calls = event, calls

    def advance(self, *args: object, **kwargs: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.event.set()


# ----- composition -----


@pytest.mark.parametrize("recipe", sorted({*recipes()} - {"demo_defended"}))  # it has them
def test_parts_go_over_any_recipe_together_and_one_by_one(recipe: str) -> None:
    plain = load_settings(recipe)
    for part in recipe_parts():
        assert load_settings(recipe, parts=[part]) != plain, "a part says something"
    both = load_settings(recipe, parts=["adversarial", "aligned", "jpeg_augmented"])
    assert both.model == plain.model
    assert both.data == plain.data
    assert both.training.adversarial.method == "fgsm"
    assert both.training.alignment.weight == 10
    assert both.training.masking.probability == 0.5
    assert both.training.jpeg.probability == 0.5
    assert both.training.schedule == plain.training.schedule


def test_parts_say_what_the_papers_say() -> None:
    adversarial = load_settings("paper", parts=["adversarial"]).training.adversarial
    assert adversarial == AdversarialSettings(method="fgsm", epsilon=8 / 255, step_size=10 / 255)
    aligned = load_settings("paper", parts=["aligned"]).training
    assert aligned.alignment == AlignmentSettings(
        weight=10.0, quantile=0.9, update_statistics=False
    )
    assert aligned.masking == MaskingSettings(probability=0.5)
    assert load_settings("paper", parts=["masking"]).training.masking == aligned.masking
    assert load_settings("paper").training.masking.probability == 0


def test_the_last_part_has_the_last_word_and_overrides_come_after(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[training.adversarial]\nepsilon = "4/255"\n[training]\nseed = 4\n')
    first = load_settings("demo", parts=["adversarial", mine]).training
    assert first.adversarial.epsilon == 4 / 255
    assert first.seed == 4
    finer = load_settings("demo", ["training.adversarial.step_size=2.5/255"], parts=[mine])
    assert finer.training.adversarial.step_size == 2.5 / 255
    second = load_settings("demo", parts=[mine, "adversarial"]).training
    assert second.adversarial.epsilon == 8 / 255
    said = load_settings("demo", ["training.adversarial.epsilon=2/255"], parts=[mine]).training
    assert said.adversarial.epsilon == 2 / 255
    assert said.adversarial.method == "none"


def test_a_file_may_start_from_a_recipe_and_parts(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('recipe = ["demo", "adversarial", "masking"]\n[model]\ndepth = 12\n')
    settings = load_settings(mine)
    expected = load_settings("demo", ["model.depth=12"], parts=["adversarial", "masking"])
    assert settings == expected


@pytest.mark.parametrize(
    ("recipe", "parts", "message"),
    [
        (
            "demo",
            ["adverserial"],
            r"unknown part 'adverserial'; did you mean adversarial\?; parts",
        ),
        ("adversarial", [], "'adversarial' is a part, .*RECIPE --with adversarial; recipes are"),
        ("demo", ["paper"], "'paper' is a whole recipe, not a part; parts are adversarial, "),
        ("demo", ["no/such.toml"], "no settings file no/such.toml; give one, or one of the parts"),
    ],
)
def test_unknown_parts_are_named(recipe: str, parts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(recipe, parts=parts)


@pytest.mark.parametrize("said", ['["demo", 3]', "3", '{ name = "demo" }'])
def test_a_recipe_that_is_no_name_is_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"recipe = {said}\n")
    with pytest.raises(SettingsError, match=r"mine\.toml: recipe must be the name of a recipe, or"):
        load_settings(tmp_path / "mine.toml")


WRONG = {
    "training.adversarial.method=pgd": "adversarial.method = 'pgd' is not allowed: must be one of",
    "training.adversarial.epsilon=8": "adversarial.epsilon = 8 is not allowed",
    "training.adversarial.epsilon=8/0": "adversarial.epsilon = '8/0' is not allowed",
    "training.adversarial.epsilon=nan/1": "adversarial.epsilon = nan is not allowed",
    "training.adversarial.epsilon=a/b": "adversarial.epsilon = 'a/b' is not allowed",
    "training.adversarial.epsilon=0": "adversarial.epsilon = 0 is not allowed",
    "training.alignment.weight=-1": "alignment.weight = -1 is not allowed",
    "training.alignment.quantile=1.0": "must be a number from 0 to below 1, or 'random'",
    "training.alignment.quantile=often": "must be a number from 0 to below 1, or 'random'",
    "training.alignment.fraction=0.0": "alignment.fraction = 0.0 is not allowed",
    "training.alignment.lambda=1": "unknown setting training.alignment.lambda",
    "training.masking.fills=['black']": "masking.fills: fills must be some of mean, noise, noisy",
    "training.masking.rectangles=[0, 2]": "masking.rectangles: rectangles must be the least",
    "training.masking.size=[0.5, 0.2]": "masking.size: size must be the least and the largest",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_values_are_refused(override: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings("demo", [override])
    assert WRONG[override] in str(caught.value)
    assert f"--set {override}" in str(caught.value)


def test_adversarial_training_needs_images_that_can_be_perturbed(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="plain images cannot be perturbed"):
        load_settings("demo", ["training.adversarial.method=fgsm"])
    with pytest.raises(SettingsError, match=r"fgsm needs a function.*FastAdversarial"):
        train(tiny("training.adversarial.method=fgsm"), tmp_path / "run", data=birds)
    assert not (tmp_path / "run").exists()


def test_settings_that_go_on_from_a_run_are_not_trained_without(
    birds: Splits, tmp_path: Path
) -> None:
    for recipe, overrides in (("demo_defended", ()), ("demo", ("model.weights=run",))):
        settings = load_settings(recipe, overrides)
        perturb = FastAdversarial(epsilon=4 / 255, step_size=5 / 255)
        with pytest.raises(SettingsError, match=r"say from which with --from RUN, or start from"):
            train(settings, tmp_path / "run", data=birds, perturb=perturb)
        assert not (tmp_path / "run").exists()
    settings = load_settings("demo_defended", ["model.weights=none"])
    assert build_model(settings.model, settings.data, num_classes=3).num_classes == 3


def test_the_demos_defended_model_has_the_parts_of_its_name() -> None:
    plain, defended = load_settings("demo"), load_settings("demo_defended")
    assert defended.data == plain.data
    fit = plain.model.model_copy(update={"prototype_init": "uniform", "weights": "run"})
    assert defended.model == fit, "it starts from the standard model's network"
    assert defended.training.adversarial.method == "fgsm"
    assert defended.training.alignment.weight > 0
    assert defended.training.masking.probability > 0


# ----- whole runs -----


@pytest.fixture(scope="module")
def defended(tiny: Tiny, birds: Splits, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with every defence."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("defended") / "run"
    settings = tiny(*DEFENDED)
    return train(settings, path, data=birds, perturb=FastAdversarial(seed=7)).folder


def test_a_defended_run_goes_on_bit_for_bit(
    defended: RunFolder, birds: Splits, tmp_path: Path
) -> None:
    starts, finished = 0, False
    while not finished:
        stop = threading.Event()
        finished = train(
            defended.settings,
            tmp_path / "run",
            resume=starts > 0,
            data=birds,
            perturb=FastAdversarial(seed=7),
            stop=stop,
            progress=_StopAfter(stop, 4),
        ).finished
        starts += 1
        assert starts < 50
    assert starts > 5
    other = RunFolder.open(tmp_path / "run")
    assert _different(defended, other) == []
    assert Rows(defended) == Rows(other)


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
    def perturb(model: nn.Module, images: Tensor, labels: Tensor, **known: object) -> Tensor:
        return wrong(images)

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
        assert _different(plain, other)
    perturb = FastAdversarial()
    other = train(tiny(*short), tmp_path / "fgsm", data=birds, perturb=perturb).folder
    assert _different(plain, other)


def test_a_weight_of_zero_is_no_alignment_to_the_last_bit(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    plain = train(tiny(), tmp_path / "plain", data=birds).folder
    off = ("training.alignment.weight=0", *DEFENDED[3:7], "training.masking.fills=['mean']")
    other = train(tiny(*off), tmp_path / "other", data=birds).folder
    assert _different(plain, other) == []
    assert Rows(plain) == Rows(other)


def test_runs_from_before_the_defences_are_taken_up(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    whole = train(tiny(), tmp_path / "whole", data=birds).folder
    stop = threading.Event()
    path = tmp_path / "old"
    train(tiny(), path, data=birds, stop=stop, progress=_StopAfter(stop, 5))
    folder = RunFolder.open(path)
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
    assert _different(whole, folder) == []
    assert Rows(whole) == Rows(folder)


def test_under_a_linear_head_adversarial_training_attacks_that_head(
    tiny: Tiny, scratch: tuple[str, ...], birds: Splits, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool]] = []
    attack = FastAdversarial()

    def perturb(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> Tensor:
        adversarial = attack(model, images, labels, index=index, epoch=epoch)
        with torch.no_grad():
            prototypes = model(images).distances.shape[1]
        seen.append((prototypes, bool((adversarial != images).any())))
        return adversarial

    settings = tiny(
        *scratch,
        "training.last_layer_images=augmented",
        "training.adversarial.method=fgsm",
        "training.alignment.weight=1",
    )
    folder = train(settings, tmp_path / "run", data=birds, perturb=perturb).folder
    assert seen == [(0, True)] * 3 + [(6, True)] * 12
    rows = [row for row in folder.rows() if row["kind"] == "epoch"]
    assert [row["stage"] for row in rows if "alignment" in row] == ["joint", "joint"]


def test_each_pass_over_the_images_has_a_number_of_its_own(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def perturb(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> None:
        assert torch.equal(labels, birds.train.labels[index])
        seen.extend((epoch, int(position)) for position in index)

    settings = tiny("training.schedule.passes=2", "training.schedule.last_layer_epochs=1")
    train(settings, tmp_path / "run", data=birds, perturb=perturb)
    assert len(seen) == len(set(seen)) == 7 * len(birds.train)


def test_the_perturbation_rises_over_the_first_epochs(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    seen: list[float] = []

    def perturb(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> None:
        seen.append(round(strength * 6, 9))

    settings = tiny("training.adversarial.rise=2", "training.schedule.last_layer_epochs=1")
    train(settings, tmp_path / "run", data=birds, perturb=perturb)
    assert seen == [0, 1, 2, 3, 4, 5, *[6] * 6], "three batches an epoch"
    seen.clear()
    short = ("training.schedule.epochs=1", "training.schedule.last_layer_epochs=0")
    train(tiny(*short), tmp_path / "flat", data=birds, perturb=perturb)
    assert seen == [6] * 3


# ----- the aligned pass -----


@pytest.fixture
def model() -> ProtoPNet:
    torch.manual_seed(0)
    return ProtoPNet(
        build_backbone("small"),
        num_classes=3,
        prototype_class=[2, 0, 1, 0, 2, 2],
        depth=8,
        input_size=(32, 32),
    )


def _batch(count: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    return Batch(torch.rand(count, 3, 32, 32, generator=generator), labels, torch.arange(count) + 5)


def test_gradients_reach_the_backbone_through_the_second_pass_alone(model: ProtoPNet) -> None:
    aligned, batch = AlignedPass(model, AlignmentSettings(weight=1), seed=0), _batch()
    index = aligned.prototypes(batch, epoch=0)
    aligned(batch.images, index, 0.9).alignment.backward()
    found = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        first = model.features(batch.images)
    alignment_step(model, batch.images, index, features=first).loss.backward()
    reached = 0
    for name, value in model.named_parameters():
        if value.grad is None:
            assert found[name] is None, name
        else:
            assert torch.equal(found[name], value.grad), name
            reached += name.startswith("backbone") and bool(value.grad.any())
    assert reached > 4
    model.zero_grad()
    both = AlignedPass(model, AlignmentSettings(weight=1, detach_target=False), seed=0)
    both(batch.images, index, 0.9).alignment.backward()
    weight = model.backbone.get_parameter(next(iter(dict(model.backbone.named_parameters()))))
    assert not torch.equal(weight.grad, found["backbone." + _first_name(model)])


def _first_name(model: ProtoPNet) -> str:
    return next(iter(dict(model.backbone.named_parameters())))


def test_the_output_is_the_networks_own_and_its_features_are_used_again(model: ProtoPNet) -> None:
    batch = _batch()
    expected = model(batch.images)
    aligned, sizes = AlignedPass(model, AlignmentSettings(weight=1, fraction=0.4), seed=0), []
    model.backbone.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    passed = aligned(batch.images, aligned.prototypes(batch, epoch=0), 0.9)
    for ours, own in zip(passed.output, expected, strict=True):
        assert torch.equal(ours, own)
    assert sizes == [9, 4], "one pass over all images, one over 0.4 of them, rounded up"


def test_each_image_is_compared_in_a_prototype_of_its_class(model: ProtoPNet) -> None:
    aligned, batch = AlignedPass(model, AlignmentSettings(weight=1), seed=3), _batch(300)
    chosen = [aligned.prototypes(batch, epoch=epoch)[:, 0] for epoch in range(20)]
    assert all(torch.equal(model.prototype_class[some], batch.labels) for some in chosen)
    counts = torch.bincount(torch.cat(chosen), minlength=6).double() / 2000
    expected = torch.tensor([1 / 3, 1 / 2, 1, 1 / 2, 1 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.04)
    turned = Batch(*(part.flip(0) for part in batch))
    assert torch.equal(aligned.prototypes(turned, epoch=4)[:, 0].flip(0), chosen[4])
    other = AlignedPass(model, AlignmentSettings(weight=1), seed=4)
    assert not torch.equal(other.prototypes(batch, epoch=4)[:, 0], chosen[4])


def test_the_random_quantile_is_drawn_for_each_batch(model: ProtoPNet) -> None:
    aligned = AlignedPass(model, AlignmentSettings(weight=1, quantile="random"), seed=0)
    drawn = torch.tensor([aligned.quantile(epoch=1, batch=batch) for batch in range(500)])
    assert drawn.min() >= 0.5
    assert drawn.max() < 0.98
    assert float(drawn.mean()) == pytest.approx(0.74, abs=0.02)
    assert len(drawn.unique()) > 490
    assert aligned.quantile(epoch=1, batch=3) == pytest.approx(float(drawn[3]))
    fixed = AlignedPass(model, AlignmentSettings(weight=1), seed=0)
    assert fixed.quantile(epoch=1, batch=3) == 0.9


def test_statistics_of_the_second_pass_count_only_if_asked_for(model: ProtoPNet) -> None:
    batch = _batch()
    counts = []
    for update in (True, False):
        settings = AlignmentSettings(weight=1, update_statistics=update)
        aligned = AlignedPass(model.train(), settings, seed=0)
        norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
        assert norm.num_batches_tracked is not None
        before = int(norm.num_batches_tracked)
        aligned(batch.images, aligned.prototypes(batch, epoch=0), 0.9)
        counts.append(int(norm.num_batches_tracked) - before)
    assert counts == [2, 1]


def test_a_class_without_prototypes_cannot_be_aligned(
    model: ProtoPNet, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    model.prune(torch.tensor([0, 1, 3]))
    with pytest.raises(SettingsError, match=r"class 1 has none; set training\.alignment\.weight"):
        AlignedPass(model, AlignmentSettings(weight=1), seed=0)
    with pytest.raises(SettingsError, match="class 1 has none"):
        train(tiny("training.alignment.weight=1"), tmp_path / "run", data=birds, model=model)
    assert not (tmp_path / "run").exists()


# ----- the images of adversarial training -----


def test_adversarial_images_stay_in_the_ball_and_raise_the_loss(model: ProtoPNet) -> None:
    batch, attack = _batch(12), FastAdversarial(epsilon=4 / 255, step_size=5 / 255, seed=2)
    model.train()
    model.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    found = attack(model, batch.images, batch.labels, index=batch.index, epoch=0)
    assert not found.requires_grad
    assert float((found - batch.images).abs().max()) <= 4 / 255 + 1e-7
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(value.requires_grad for value in model.backbone.parameters())
    assert all(value.requires_grad for value in model.add_on.parameters())
    assert all(value.grad is None for value in model.parameters())
    model.eval()
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(model(images).logits, batch.labels)
            for images in (batch.images, found)
        ]
    assert losses[1] > losses[0]


def test_a_weaker_perturbation_stays_in_a_smaller_ball(model: ProtoPNet) -> None:
    batch, attack = _batch(6), FastAdversarial()
    keys = {"index": batch.index, "epoch": 0}
    weak = attack(model, batch.images, batch.labels, strength=0.25, **keys)
    assert 1 / 255 < float((weak - batch.images).abs().max()) <= 2 / 255 + 1e-7
    none = attack(model, batch.images, batch.labels, strength=0.0, **keys)
    assert torch.equal(none, batch.images)


def test_adversarial_noise_belongs_to_seed_epoch_and_image(model: ProtoPNet) -> None:
    model.eval()
    batch, attack = _batch(8), FastAdversarial(seed=2)

    def found(attack: FastAdversarial, some: slice, epoch: int = 0) -> Tensor:
        images, labels, index = (part[some] for part in batch)
        return attack(model, images, labels, index=index, epoch=epoch)

    whole = found(attack, slice(0, 8))
    torch.testing.assert_close(whole[3:5], found(attack, slice(3, 5)), rtol=0, atol=1e-6)
    assert not torch.equal(whole, found(attack, slice(0, 8), epoch=1))
    assert not torch.equal(whole, found(FastAdversarial(seed=3), slice(0, 8)))
