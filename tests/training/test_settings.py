"""Settings: recipes, files, overrides, and errors that name the place."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from protofast.data import Augmentation
from protofast.errors import SettingsError
from protofast.training import Settings, differences, load_settings, recipes
from protofast.training.settings import AugmentationSettings
from protofast.training.settings_file import settings_text


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_reads_back_equal(name: str, tmp_path: Path) -> None:
    settings = load_settings(name)
    path = tmp_path / "settings.toml"
    path.write_text(settings_text(settings))
    assert load_settings(path) == settings


def test_the_recipes_of_the_issue_are_there() -> None:
    assert {"paper", "hoffmann", "demo", "cub80"} <= set(recipes())


def test_ugly_values_read_back_equal(tmp_path: Path) -> None:
    settings = load_settings(
        "paper",
        [
            'data.root=C:\\birds "and" bees\n√',
            "data.size=[112, 96]",
            'data.classes=["a.b", "c = d"]',
            "training.losses.class_weights=[0.1, 2, 1e-9]",
            "training.losses.l1=1e-30",
            "training.seed=-3",
        ],
    )
    path = tmp_path / "s.toml"
    path.write_text(settings_text(settings))
    assert load_settings(path) == settings
    assert settings.data.image_size == (112, 96)
    assert settings.training.losses.class_weights == (0.1, 2.0, 1e-9)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().training.seed = 1  # type: ignore[misc]


def test_the_defaults_are_the_papers() -> None:
    paper = load_settings("paper")
    assert paper.training == Settings().training
    assert paper.model == Settings().model


def test_augmentation_has_the_fields_of_the_data_package() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Augmentation)}
    assert set(AugmentationSettings.model_fields) == set(fields)
    assert AugmentationSettings().build() == Augmentation.paper()


def test_a_rate_that_is_left_out_is_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[training.optimizer]\nwarm = { add_on = 1e-2 }\n")
    rates = load_settings(path, ["training.optimizer.joint.backbone=3e-5"]).training.optimizer
    assert rates.warm.model_dump() == {
        "backbone": 0.0,
        "add_on": 1e-2,
        "prototypes": 3e-3,
        "last_layer": 0.0,
    }
    assert rates.joint.model_dump() == {
        "backbone": 3e-5,
        "add_on": 3e-3,
        "prototypes": 3e-3,
        "last_layer": 0.0,
    }
    assert rates.last_layer.last_layer == 1e-4


@pytest.mark.parametrize(
    ("recipe", "warm", "joint", "last_layer"),
    [
        ("paper", (0, 3e-3, 3e-3, 0), (1e-4, 3e-3, 3e-3, 0), (0, 0, 0, 1e-4)),
        ("hoffmann", (0, 3e-3, 3e-3, 0), (1e-4, 3e-3, 3e-3, 0), (0, 0, 0, 1e-4)),
        ("demo", (4e-3, 0, 0, 0), (3e-4, 3e-3, 3e-3, 0), (0, 0, 0, 1e-3)),
        ("cub80", (4e-3, 0, 0, 0), (3e-4, 3e-3, 3e-3, 0), (0, 0, 0, 1e-3)),
    ],
)
def test_the_rates_of_every_recipe(
    recipe: str,
    warm: tuple[float, ...],
    joint: tuple[float, ...],
    last_layer: tuple[float, ...],
) -> None:
    optimizer = load_settings(recipe).training.optimizer
    for stage, rates in (("warm", warm), ("joint", joint), ("last_layer", last_layer)):
        assert tuple(getattr(optimizer, stage).model_dump().values()) == rates


def test_a_file_starts_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "hoffmann"\n[training]\nbatch_size = 7\n')
    settings = load_settings(path, ["model.depth=12"])
    assert settings.training.batch_size == 7
    assert settings.model.depth == 12
    assert settings.model.backbone == load_settings("hoffmann").model.backbone


def test_an_override_without_a_value_takes_the_key_away() -> None:
    assert load_settings("paper").data.crop is True
    assert load_settings("paper", ["data.crop="]).data.crop is None


OVERRIDES = {
    "training.batchsize=3": "unknown setting training.batchsize; did you mean training.batch_size?",
    "batch_size=3": "unknown setting batch_size; did you mean training.batch_size?",
    "modell.depth=3": "unknown setting modell; did you mean model?",
    "training.precision=fp8": "training.precision = 'fp8' is not allowed: must be one of '32-true',"
    " 'bf16-mixed', '16-mixed'",
    "training.batch_size=0": "training.batch_size = 0 is not allowed: must be greater than or",
    "training.batch_size=many": "training.batch_size = 'many' is not allowed: must be a valid int",
    "training.batch_size=2.5": "training.batch_size = 2.5 is not allowed",
    "training.seed=true": "training.seed = True is not allowed",
    "training.losses.l1=nan": "training.losses.l1 = nan is not allowed",
    "data.size=[1,2,3]": "data.size = [1, 2, 3] is not allowed: must be a number of pixels, or",
    "data.size=3": "data.size: images must be at least 16 pixels",
    "training.losses.class_weights=some": "must be 'none', 'balanced', or a list",
    "training.losses.class_weights=[1, 0]": "a list with a number above 0 per class",
    "training.losses.class_weights=[1, -2.5]": "a list with a number above 0 per class",
    "training.augmentation.rotation=90": "training.augmentation.rotation: rotation must be in 0",
    "model.metric=cosine": "model.similarity: model.metric cosine allows similarity linear only",
    "data.train_per_class=3": "data.train_per_class: belongs to data.kind birds, not cub",
    "data.root=": "data.root: data.kind cub needs the folder of the data set",
    "training.schedule=3": "training.schedule is a table; set one of its keys",
    "training.seed.x=3": "training.seed has no keys of its own",
    "training.schedule.epochs.x=3": "training.schedule.epochs has no keys of its own",
    "training.schedule.warm_epochs=2000": "there cannot be more warm epochs than epochs",
    "nonsense": "expected key=value",
    "=3": "expected key=value",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_wrong_override_is_named_in_one_line(override: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings("paper", ["training.workers=1", override])
    message = str(caught.value)
    assert OVERRIDES[override] in message
    assert "\n" not in message
    if override != "model.metric=cosine":  # what is wrong there is the recipe's similarity
        assert f"--set {override}" in message


def test_a_wrong_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "paper"\n\n[training]\nseed = 1\n  batch_sise = 4\n')
    with pytest.raises(SettingsError, match=r"did you mean training\.batch_size") as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}:5: ")
    path.write_text('recipe = "paper"\n[training.optimizer]\nwarm = { add_on = 1, oops = 2 }\n')
    with pytest.raises(
        SettingsError, match=r"unknown setting training\.optimizer.warm.oops"
    ) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_the_last_place_that_set_a_value_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "paper"\n[training]\nbatch_size = 0\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}:3: training.batch_size = 0")
    with pytest.raises(SettingsError, match=r"^--set training.batch_size=-1"):
        load_settings(path, ["training.batch_size=-1"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown recipe 'papr'; did you mean paper"):
        load_settings("papr")
    with pytest.raises(SettingsError, match="no settings file"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="is a folder"):
        load_settings(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("[training\nseed = 1\n")
    with pytest.raises(SettingsError, match=r"not valid TOML.*line 1"):
        load_settings(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not a text file"):
        load_settings(broken)
    loop = tmp_path / "loop.toml"
    loop.write_text(f'recipe = "{loop}"\n')
    with pytest.raises(SettingsError, match="starts from itself"):
        load_settings(loop)


def test_differences_name_keys_and_values() -> None:
    one = load_settings("paper")
    other = load_settings("paper", ["training.seed=5", "training.optimizer.warm.add_on=0.1"])
    assert differences(one, one) == []
    assert differences(one, other) == [
        "training.seed (0, now 5)",
        "training.optimizer.warm.add_on (0.003, now 0.1)",
    ]
