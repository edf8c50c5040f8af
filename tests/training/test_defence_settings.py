"""Adversarial training, the alignment loss and masking: parts that go over any recipe."""

from pathlib import Path

import pytest
from small_runs import Tiny

from protofast.attacks import FastAdversarial
from protofast.data import Splits
from protofast.errors import SettingsError
from protofast.training import build_model, load_settings, recipe_parts, recipes, train
from protofast.training.defences import AdversarialSettings, AlignmentSettings, MaskingSettings


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
