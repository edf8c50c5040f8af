"""Plans: those that come with protofast are sound, and mistakes in others are named."""

from pathlib import Path

import pytest

from protofast.errors import SettingsError
from protofast.reproduce import Grid, Plan, load_plan, plans
from protofast.reproduce.claims import ALL_IMAGES, EXPERIMENTS

PHOTOGRAPHS = ["data.root=/photographs"]
DATA = {"birds": [], "cub80": PHOTOGRAPHS, "cub80-jpeg": PHOTOGRAPHS}
PART = {"cub80-jpeg": "jpeg"}  # plans of one audit alone
SOUND = """
name = "own"
title = "My images"
recipe = "demo"
seeds = [3]
[models.standard]
[[audits]]
name = "accuracy"
models = ["standard"]
audits = ["robust_accuracy"]
"""


@pytest.mark.parametrize("name", plans())
def test_plans_that_come_along_can_be_carried_out(name):
    plan = load_plan(name)
    assert plan.name == name
    plan.check(DATA[name])


@pytest.mark.parametrize("name", plans())
def test_plans_that_come_along_measure_every_direction(name):
    """Each number that a direction needs is of a model that the audit in question looks at."""
    plan = load_plan(name)
    for experiment in EXPERIMENTS:
        for direction in experiment.directions:
            if direction.audit != PART.get(name, direction.audit):
                continue
            looked_at = {
                model
                for audit in plan.audits
                if direction.audit in (*audit.audits, ALL_IMAGES)
                for model in audit.models
            }
            sides = direction.sides_among(looked_at)
            assert "longer" in looked_at or not direction.of_defence, direction.key
            assert {model for model, _ in sides} <= looked_at, direction.key


def test_both_papers_protocols_are_run():
    for audit in load_plan("birds").audits:
        protocols = {each.settings.protocol for each in audit.build()}
        assert protocols >= {"paper", "released"}
    (attack,) = [each for each in load_plan("birds").audits if each.name == "head-on-stomach"]
    assert {each.settings.protocol for each in attack.build()} == {"paper", "released", "targeted"}
    assert {each.settings.images for each in attack.build()} == {attack.images}


def test_each_model_is_trained_before_it_is_audited_and_once_for_each_seed():
    plan = load_plan("birds")
    cells = list(Grid(plan, "anywhere").cells())
    trained = [(cell.name, cell.seed) for cell in cells if cell.work == "train"]
    assert sorted(trained) == sorted((model, seed) for model in plan.models for seed in plan.seeds)
    assert len({cell.path for cell in cells}) == len(cells)
    done = set()
    for cell in cells:
        if cell.work == "train":
            done.add((cell.name, cell.seed))
        else:
            (audit,) = [each for each in plan.audits if each.name == cell.name]
            assert {(model, cell.seed) for model in audit.models} <= done
    # One seed after the other, so that a grid that is cut short has whole seeds to show.
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_models_differ_by_their_parts_settings_and_seeds_alone(tmp_path):
    text = SOUND.replace("[models.standard]", '[models.standard]\nset = ["model.depth=32"]')
    text += '[models.aligned]\nparts = ["aligned"]\n'
    plan = _plan(tmp_path, text.replace("seeds = [3]", 'seeds = [3, 4]\nset = ["data.size=64"]'))
    standard, aligned = plan.settings("standard", 3), plan.settings("aligned", 4)
    assert (standard.model.depth, aligned.model.depth) == (32, 64)
    assert (standard.training.seed, aligned.training.seed) == (3, 4)
    assert (standard.training.alignment.weight, aligned.training.alignment.weight) == (0, 10)
    assert standard.data == aligned.data
    assert standard.data.size == 64


def test_each_defence_of_the_misalignment_benchmark_is_tried_alone_and_with_the_other():
    for name in ("birds", "cub80"):
        plan = load_plan(name)
        training = {
            model: plan.settings(model, 0, DATA[name]).training
            for model in ("longer", "masking", "alignment", "aligned")
        }
        found = {
            model: (each.masking.probability, each.alignment.weight)
            for model, each in training.items()
        }
        assert found == {
            "longer": (0, 0),
            "masking": (0.5, 0),
            "alignment": (0, 10),
            "aligned": (0.5, 10),
        }
        both = training["aligned"]
        off = {"probability": 0.0}
        assert training["alignment"] == both.model_copy(
            update={"masking": both.masking.model_copy(update=off)}
        )
        assert training["masking"] == both.model_copy(
            update={"alignment": training["longer"].alignment}
        )


def test_paths_count_from_the_plans_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "recipes").mkdir(parents=True)
    (home / "recipes" / "mine.toml").write_text('recipe = "demo"\n[model]\ndepth = 12\n')
    (home / "recipes" / "part.toml").write_text("[training]\nbatch_size = 7\n")
    birds = "data.classes=", "data.train_per_class=", "data.test_per_class="
    said = ["data.kind=folders", *birds, 'data.root="photos of birds"', "data.groups=~/g.csv"]
    text = SOUND.replace('"demo"', '"recipes/mine.toml"').replace(
        "[models.standard]", f"set = {said}\n[models.standard]\nparts = ['recipes/part.toml']"
    )
    file = home / "plan.toml"
    file.write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", "/home/somebody")
    for path in (file, "../home/plan.toml"):
        plan = load_plan(path)
        plan.check()
        settings = plan.settings("standard", 3)
        assert Path(settings.data.root).resolve() == home / "photos of birds"
        assert settings.data.groups == "/home/somebody/g.csv"
        assert (settings.model.depth, settings.training.batch_size) == (12, 7)
    elsewhere = ["data.root=/others", "data.kind=folders"]
    assert plan.settings("standard", 3, elsewhere).data.root == "/others"
    monkeypatch.chdir(tmp_path)
    assert load_plan("cub80").settings("standard", 0).data.root == str(tmp_path / "cub80")


def test_weights_are_a_path_like_others(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for said, meant in (
        ("net.pth", str(tmp_path / "net.pth")),
        ("'my nets/net.pth'", str(tmp_path / "my nets" / "net.pth")),
        ("/nets/net.pth", "/nets/net.pth"),
        ("none", "none"),
        ("imagenet", "imagenet"),
    ):
        text = SOUND.replace("seeds = [3]", f'seeds = [3]\nset = ["model.weights={said}"]')
        plan = _plan(tmp_path, text)
        assert plan.settings("standard", 3).model.weights == meant
        started = plan.settings("standard", 3, weights=tmp_path / "start.safetensors")
        assert started.model.weights == str(tmp_path / "start.safetensors")


def test_the_plan_that_the_documentation_shows_is_sound(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    plan = _plan(tmp_path, page.split("```toml\n")[1].split("```")[0])
    root = plan.settings("aligned", 1).data.root
    assert root == str(tmp_path / "my_images")


def _plan(tmp_path, text) -> Plan:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    plan = load_plan(file)
    plan.check()
    return plan


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('name = "own"\n', "", r"name: Field required"),
        ('name = "own"', 'name = "../own"', "name: String should match pattern"),
        ("seeds = [3]", "seeds = []", "seeds: .*at least 1"),
        ("seeds = [3]", "seeds = [3, 3]", "seeds must be different"),
        ("seeds = [3]", "sedes = [3]", "seeds: Field required|sedes: Extra inputs"),
        (
            'models = ["standard"]',
            'models = ["plain"]',
            "model plain; there are standard",
        ),
        (
            "[[audits]]",
            '[[audits]]\nname="twice"\nmodels=["standard"]\naudits=["robust_accuracy"]\n[[audits]]',
            "both measure robust_accuracy of standard under paper",
        ),
        ("[models.standard]", '[models.standard]\nstart = "plain"', "cannot start from plain"),
        ("[models.standard]", '[models.standard]\nstart = "standard"', "start from standard"),
        ('recipe = "demo"', 'recipe = "dmeo"', "dmeo'; did you mean demo"),
        ('recipe = "demo"', 'recipe = "dmeo.toml"', "no settings file .*/dmeo.toml"),
        ('recipe = "demo"', 'recipe = "demo_defended"', "another run; say from which"),
        ("[models.standard]", '[models.standard]\nparts = ["algined"]', "algined"),
        ("[models.standard]", '[models.standard]\nset = ["model.dpeth=3"]', "model.dpeth"),
        ('["robust_accuracy"]', '["robust"]', "robust: no such audit"),
        ('["robust_accuracy"]', '["robust_accuracy"]\nset = ["robust_accuracy.stpes=1"]', "stpes"),
        ('["robust_accuracy"]', '["robust_accuracy"]\nset = ["jpeg.top=1"]', "must begin with"),
        ('["robust_accuracy"]', '["robust_accuracy"]\nprotocols = ["targeted"]', "knows none of"),
        ('["robust_accuracy"]', '["robust_accuracy"]\nprotocols = ["papers"]', "protocols.0"),
        (
            "seeds = [3]",
            "seeds = [3]\nremarks = {hos = 'why'}",
            "hos is none; there are hos-st",
        ),
        ("seeds = [3]", "seeds = [3", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, before, after, message):
    assert SOUND.count(before) == 1
    with pytest.raises(SettingsError, match=message):
        _plan(tmp_path, SOUND.replace(before, after))


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"no plan .*; give a TOML file, or one of birds"):
        load_plan(tmp_path / "missing.toml")
