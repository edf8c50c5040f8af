"""The page, from `audit.json` files written by hand: numbers, verdicts, and what is missing."""

import json

import pytest

from protofast.reproduce import Grid, load_plan
from protofast.reproduce.claims import EXPERIMENTS
from protofast.reproduce.numbers import gather, outcomes, short, spread
from protofast.reproduce.page import page_text

PLAN = """
name = "birds2"
title = "Two seeds of birds"
recipe = "demo"
seeds = [0, 1]
notes = ["Birds are drawn."]
[models.standard]
[models.adversarial]
parts = ["adversarial"]
set = ["training.adversarial.rise=3"]
[models.jpeg]
parts = ["jpeg"]
[[audits]]
name = "head-on-stomach"
models = ["standard", "adversarial"]
audits = ["head_on_stomach"]
[[audits]]
name = "jpeg"
models = ["jpeg"]
audits = ["jpeg"]
[remarks]
hos-adversarial = "The network is too small to learn from attacked images."
"""


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    return Grid(load_plan(tmp_path / "plan.toml"), tmp_path)


def put(grid, name, seed, entries, accuracies=()):
    """Write what an audit of `name` would have: {(model, audit, protocol): {key: value}}.

    `accuracies` are those on all test images, by model; 0.5 for others.
    """
    (plan,) = [each for each in grid.plan.audits if each.name == name]
    settings = {
        (audit.name, audit.settings.protocol): audit.settings.model_dump(
            mode="json", exclude={"protocol"}
        )
        for audit in plan.build()
    }
    everything = {(model, *which): {} for which in settings for model in plan.models}
    audits = [
        {
            "model": plan.models.index(model),
            "audit": audit,
            "title": audit,
            "protocol": protocol,
            "settings": settings[audit, protocol],
            "seed": seed,
            "numbers": [
                {"key": key, "label": key, "value": value, "unit": "%", "n": 50}
                for key, value in numbers.items()
            ],
            "rows": 53,
            "skipped": {"flat | map": 3} if numbers else {},
        }
        for (model, audit, protocol), numbers in {**everything, **entries}.items()
    ]
    models = [{"name": f"{model}-{seed}", "prototypes": 10, "classes": 5} for model in plan.models]
    for model, described in zip(plan.models, models, strict=True):
        described["accuracy"] = dict(accuracies).get(model, 0.5)
    said = {"seed": seed, "data": {"description": "birds", "images": 53}, "models": models}
    folder = grid.folder / "audits" / f"{name}-{seed}"
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps({**said, "audits": audits}))


def success(standard, adversarial, protocol="paper"):
    return {
        ("standard", "head_on_stomach", protocol): {"success_rate": standard},
        ("adversarial", "head_on_stomach", protocol): {"success_rate": adversarial},
    }


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_nothing_done_is_said_and_is_a_page_all_the_same(grid):
    text = page_text([grid])
    (row,) = lines(text, "| Two seeds of birds |")
    assert row.endswith("| `protofast reproduce PLAN.toml` | - | - | 0, 1 | 0 of 10 |")
    assert "| birds2 | standard | - | missing | missing | missing | - |" in text
    assert "| birds2 | the attack succeeds on most images of the standard model | - | not" in text
    assert text.count("| missing | missing |") >= 5
    for experiment in EXPERIMENTS:
        assert f"## {experiment.title}\n" in text
        assert all(command in text for command in experiment.commands)


def test_what_was_changed_about_a_model_is_said(grid):
    text = page_text([grid])
    assert "| birds2 | standard | - | - | - |" in text
    assert "| birds2 | adversarial | - | `adversarial` | `training.adversarial.rise=3` |" in text
    assert "*birds2:* Birds are drawn." in text


def test_where_images_lie_is_nobodys_business(tmp_path):
    text = PLAN.replace("seeds = [0, 1]", 'seeds = [0]\nset = ["data.root=mine", "data.size=64"]')
    mine = 'parts = ["parts/mine.toml"]\nset = ["model.weights=nets/net.pth"]'
    (tmp_path / "plan.toml").write_text(text.replace('parts = ["jpeg"]', mine))
    page = page_text([Grid(load_plan(tmp_path / "plan.toml"), tmp_path / "grid")])
    assert "| birds2 | jpeg | - | `mine.toml` | `data.size=64`, `model.weights=net.pth` |" in page
    assert str(tmp_path) not in page


def test_of_two_settings_of_one_key_the_one_that_counts_is_told(tmp_path):
    text = PLAN.replace("seeds = [0, 1]", 'seeds = [0]\nset = ["data.size=64", "model.depth=8"]')
    text = text.replace('parts = ["jpeg"]', 'parts = ["jpeg"]\nset = ["data.size=96"]')
    (tmp_path / "plan.toml").write_text(text)
    grid = Grid(load_plan(tmp_path / "plan.toml"), tmp_path / "grid")
    assert grid.plan.settings("jpeg", 0).data.size == 96
    page = page_text([grid])
    assert "| birds2 | jpeg | - | `jpeg` | `data.size=96`, `model.depth=8` |" in page
    assert "| birds2 | standard | - | - | `data.size=64`, `model.depth=8` |" in page


def test_published_numbers_stand_beside_ours(grid):
    put(grid, "head-on-stomach", 0, success(98.0, 30.0, "released"))
    put(grid, "head-on-stomach", 1, success(96.0, 34.0, "released"))
    text = page_text([grid])
    assert "| ResNet-18, standard | 75.8 | 0.0 | 99.5 |" in text
    (row,) = lines(text, "| birds2 | standard | `released` |")
    assert row == "| birds2 | standard | `released` | 97.0 (96.0 to 98.0) | - | - | 50 + 50 |"
    assert "images 200" in text
    assert "epsilon 0.03137" in text


def test_directions_are_judged_seed_by_seed_and_protocol_by_protocol(grid):
    put(grid, "head-on-stomach", 0, {**success(98.0, 30.0), **success(90.0, 80.0, "released")})
    put(grid, "head-on-stomach", 1, {**success(96.0, 60.0), **success(40.0, 39.0, "released")})
    text = page_text([grid])
    most, half = "| birds2 | the attack succeeds on most", "| birds2 | it succeeds on at most half"
    paper, released = lines(text, most)
    assert "| `paper` | yes (2 seeds) | standard: 97.0 % |" in paper
    assert "| `released` | **in 1 of 2 seeds** | standard: 65.0 % |" in released
    paper, released = lines(text, half)
    assert "| **in 1 of 2 seeds** | standard: 97.0 %; adversarial: 45.0 % |" in paper
    assert "| **no** (2 seeds) | standard: 65.0 %; adversarial: 59.5 % |" in released
    assert "too small to learn from attacked images" in text


def test_where_nothing_succeeds_there_is_nothing_to_lower(grid):
    put(grid, "head-on-stomach", 0, {**success(0.0, 0.0), **success(0.0, 0.0, "released")})
    put(grid, "head-on-stomach", 1, {**success(0.0, 0.0), **success(40.0, 2.0, "released")})
    paper, released = lines(page_text([grid]), "| birds2 | it succeeds on at most half")
    assert "| `paper` | nothing to lower (2 seeds) | standard: 0 %; adversarial: 0 % |" in paper
    assert "| `released` | **in 1 of 2 seeds**, nothing to lower in 1 |" in released
    (experiment,) = [each for each in EXPERIMENTS if "Table 3 and appendix" in each.title]
    assert experiment.directions[1].holds(0, 2) is False, "it rose"


def test_a_remark_is_silent_where_the_direction_holds(grid):
    put(grid, "head-on-stomach", 0, success(98.0, 30.0))
    text = page_text([grid])
    assert "too small to learn" not in text
    assert "| yes (1 seed) |" in text


def test_a_number_without_a_value_is_no_number(grid):
    put(grid, "head-on-stomach", 0, success(None, 10.0))
    text = page_text([grid])
    (row,) = lines(text, "| birds2 | adversarial | `paper`")
    assert "10.0" in row
    assert lines(text, "| birds2 | standard | - | missing")
    assert lines(text, "| birds2 | it succeeds on at most half as many")[0].endswith("| - |")


def test_images_without_a_number_are_counted_over_seeds_and_cannot_end_a_table(grid):
    put(grid, "head-on-stomach", 0, success(98.0, 30.0))
    put(grid, "head-on-stomach", 1, success(98.0, 30.0))
    text = page_text([grid])
    assert "| birds2 | standard | head_on_stomach | `paper` | flat \\| map: 6 |" in text


def test_models_that_a_plan_lacks_are_not_called_missing(grid):
    put(grid, "jpeg", 0, {("jpeg", "jpeg", "paper"): {"similarity_change_relative": -20.0}})
    text = page_text([grid])
    assert "jpeg-augmented: " not in text
    assert not lines(text, "| birds2 | jpeg-augmented")
    assert not lines(text, "| birds2 | alignment and masking")
    (fell,) = lines(text, "| birds2 | without the artefacts the top prototype")
    assert "yes (1 seed) | jpeg: -20.0 %" in fell
    assert "images all" in text


def test_models_that_were_audited_with_other_settings_are_told_apart(tmp_path):
    text = PLAN.replace('models = ["jpeg"]', 'models = ["standard", "jpeg"]')
    (tmp_path / "plan.toml").write_text(text)
    grid = Grid(load_plan(tmp_path / "plan.toml"), tmp_path)
    for seed in (0, 1):
        put(grid, "jpeg", seed, {("jpeg", "jpeg", "released"): {"rank_correlation": 0.5}})
        file = grid.folder / "audits" / f"jpeg-{seed}" / "audit.json"
        said = json.loads(file.read_text())
        for entry in said["audits"]:
            classes = ("half", 7) if entry["model"] == 1 else ("odd", seed)
            filled = dict(zip(("classes", "classes_seed"), classes, strict=True))
            entry["settings"] |= filled
            entry["left_open"] = [*filled]
        file.write_text(json.dumps(said))
    page = page_text([grid])
    assert "| birds2 | jpeg | `released` | standard | classes odd, classes_seed 0 / 1," in page
    assert "| birds2 | jpeg | `released` | jpeg | classes half, classes_seed 7," in page


def test_grids_stand_side_by_side(grid, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "plan.toml").write_text(PLAN.replace("birds2", "photographs"))
    beside = Grid.open(other)
    put(grid, "head-on-stomach", 0, success(98.0, 30.0))
    put(beside, "head-on-stomach", 0, success(88.0, 20.0))
    text = page_text([grid, beside])
    assert lines(text, "| birds2 | standard | `paper` | 98.0")
    assert lines(text, "| photographs | standard | `paper` | 88.0")


def test_augmentation_is_judged_by_the_gap_it_closes(grid):
    (experiment,) = [each for each in EXPERIMENTS if "Table 4" in each.title]
    (direction,) = experiment.directions
    assert direction.holds(80, 50, 75, 76)
    assert not direction.holds(80, 50, 80, 60)
    assert not direction.holds(80, 80, 80, 79)
    results = gather(grid)
    assert outcomes(direction, results) == []


LONGER = """
name = "birds3"
title = "Birds that went on learning"
recipe = "demo"
seeds = [0]
[models.standard]
[models.longer]
start = "standard"
[models.adversarial]
start = "standard"
parts = ["adversarial"]
[models.aligned]
start = "standard"
parts = ["aligned"]
[[audits]]
name = "head-on-stomach"
models = ["standard", "longer", "adversarial"]
audits = ["head_on_stomach"]
[[audits]]
name = "misalignment"
models = ["standard", "longer", "aligned"]
audits = ["spatial_misalignment", "robust_accuracy"]
"""


@pytest.fixture
def longer(tmp_path):
    (tmp_path / "plan.toml").write_text(LONGER)
    return Grid(load_plan(tmp_path / "plan.toml"), tmp_path)


def test_a_defence_is_compared_with_as_many_epochs_without_it(longer):
    rates = {"standard": 96.0, "longer": 50.0, "adversarial": 40.0}
    entries = {
        (model, "head_on_stomach", "paper"): {"success_rate": rate} for model, rate in rates.items()
    }
    put(longer, "head-on-stomach", 0, entries)
    text = page_text([longer])
    (most,) = lines(text, "| birds3 | the attack succeeds on most")
    assert "| `paper` | yes (1 seed) | standard: 96.0 % |" in most
    (half,) = lines(text, "| birds3 | it succeeds on at most half")
    assert "| `paper` | **no** (1 seed) | longer: 50.0 %; adversarial: 40.0 % |" in half


def test_accuracy_is_that_on_all_test_images_not_of_an_audits_subset(longer):
    entries = {
        (model, "robust_accuracy", "paper"): {"clean_accuracy": rate}
        for model, rate in (("standard", 90.0), ("longer", 90.0), ("aligned", 10.0))
    }
    accuracies = {"standard": 0.99, "longer": 0.95, "aligned": 0.93}
    put(longer, "misalignment", 0, entries, accuracies)
    (row,) = lines(page_text([longer]), "| birds3 | and accuracy on all test images")
    assert row.endswith("| - | yes (1 seed) | longer: 95.0 %; aligned: 93.0 % |")


def test_alignment_and_masking_have_a_table(longer):
    numbers = {"location_change": 20.0, "activation_change": 30.0}
    put(longer, "misalignment", 0, {("aligned", "spatial_misalignment", "released"): numbers})
    (experiment,) = [each for each in EXPERIMENTS if "alignment loss and masking" in each.title]
    text = page_text([longer])
    section = text[text.index(f"## {experiment.title}") :].split("\n## ")[0]
    assert "--with masking" in section
    assert "| birds3 | aligned | `released` | 20.0 | 30.0 | - | - | - | 50 |" in section
    assert "| birds3 | longer | - | missing" in section
    assert "--set training.masking.probability=0  # loss alone" in section
    assert "| birds3 | masking" not in section
    assert "| birds3 | alignment" not in section


@pytest.mark.parametrize("name", ["birds", "cub80"])
def test_masking_and_the_loss_alone_have_rows_of_their_own(name, tmp_path):
    """A grid that was run before they were planned keeps its numbers; these are missing."""
    grid = Grid(load_plan(name), tmp_path)
    numbers = {"location_change": 20.0, "activation_change": 30.0}
    put(grid, "misalignment", 0, {("aligned", "spatial_misalignment", "paper"): numbers})
    text = page_text([grid])
    section = text[text.index("## Sacha et al., alignment loss") :].split("\n## ")[0]
    assert f"| {name} | aligned | `paper` | 20.0 | 30.0 | - | - | - | 50 |" in section
    for model in ("masking", "alignment"):
        assert f"| {name} | {model} | - | missing | missing | missing |" in section
        assert f"| train {model} | missing |" in text
    put(grid, "misalignment-apart", 0, {("masking", "spatial_misalignment", "paper"): numbers})
    assert f"| {name} | masking | `paper` | 20.0 | 30.0 | - | - | - | 50 |" in page_text([grid])


def test_published_numbers_keep_their_decimals(grid):
    text = page_text([grid])
    assert "| VGG-19 | 81.08 | 49.60 |" in text
    assert "| ResNet-18 | 74.70 | 76.32 |" in text
    assert "| -2.55 | -56.0 |" in text
    assert "24.0 ± 1.7" in text


def test_numbers_are_short():
    assert [short(value) for value in (0.03123, 7.254, 97.5, -12.04, 100.0, 0.0)] == [
        "0.0312",
        "7.25",
        "97.5",
        "-12.0",
        "100.0",
        "0",
    ]
    assert spread({}) == "-"
    assert spread({1: 5.0}) == "5"
    assert spread({0: 10.0, 1: 20.0, 2: 12.0}) == "14.0 (10.0 to 20.0)"
