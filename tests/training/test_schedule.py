"""Stages and learning rates against those of ProtoPNet's released main.py and settings.py."""

from collections.abc import Callable

import pytest

from protofast.data import Splits
from protofast.errors import SettingsError
from protofast.training import Settings, build_model, load_settings
from protofast.training.optimizers import build_optimizers
from protofast.training.schedule import PlanStep, find_place, joint_factor, plan, warm_factor


def _paper(*overrides: str) -> Settings:
    return load_settings("paper", overrides)


def test_the_paper_projects_after_epochs_10_20_30() -> None:
    steps = plan(_paper("training.schedule.epochs=40").training.schedule)
    assert [step.epoch for step in steps if step.stage == "warm"] == [0, 1, 2, 3, 4]
    assert [step.epoch for step in steps if step.stage == "joint"] == list(range(5, 40))
    assert [step.epoch for step in steps if step.stage == "project"] == [10, 20, 30]
    at = next(step.step for step in steps if step.stage == "project")
    assert steps[at - 1].name == "joint-10"
    assert {step.stage for step in steps[at + 1 : at + 21]} == {"last_layer"}
    assert steps[at + 21].name == "joint-11"
    assert [step.step for step in steps] == list(range(len(steps)))
    assert [step.name for step in steps if step.last][:4] == [
        "warm-4",
        "joint-10",
        "project-10",
        "last_layer-10-19",
    ]
    assert len({step.name for step in steps}) == len(steps)


def test_hoffmann_has_5_warm_and_6_joint_epochs_one_projection_20_of_the_last_layer() -> None:
    settings = load_settings("hoffmann")
    stages = [step.stage for step in plan(settings.training.schedule)]
    assert stages == ["warm"] * 5 + ["joint"] * 6 + ["project"] + ["last_layer"] * 20
    assert settings.training.augmentation.distortion > 0
    assert settings.model.depth == 256
    assert settings.training.batch_size == 80, "inherited from the paper's recipe"


def test_joint_rates_hold_for_4_epochs_and_then_fall_every_5() -> None:
    training = _paper().training
    factors = {
        epoch: joint_factor(
            epoch - 5, 0.0, optimizer=training.optimizer, schedule=training.schedule
        )
        for epoch in range(5, 24)
    }
    assert [factors[epoch] for epoch in range(5, 9)] == [1.0] * 4
    assert [factors[epoch] for epoch in range(9, 14)] == pytest.approx([0.1] * 5)
    assert [factors[epoch] for epoch in range(14, 19)] == pytest.approx([0.01] * 5)
    assert [factors[epoch] for epoch in range(19, 24)] == pytest.approx([0.001] * 5)


def test_cosine_falls_from_1_to_0_within_epochs() -> None:
    settings = _paper("training.optimizer.joint_decay=cosine", "training.schedule.epochs=9")
    training = settings.training
    factors = [
        joint_factor(k, part, optimizer=training.optimizer, schedule=training.schedule)
        for k in range(4)
        for part in (0.0, 0.5)
    ]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert factors[4] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.1


def test_one_cycle_rises_over_a_fifth_and_falls_to_0() -> None:
    settings = _paper("training.optimizer.warm_decay=one_cycle", "training.schedule.warm_epochs=5")
    training = settings.training
    factors = [
        warm_factor(k, part, optimizer=training.optimizer, schedule=training.schedule)
        for k in range(5)
        for part in (0.0, 0.5)
    ]
    assert factors[:3] == [0.0, 0.5, 1.0]
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert 0 < factors[-1] < 0.05
    paper = _paper().training
    constant = warm_factor(3, 0.7, optimizer=paper.optimizer, schedule=paper.schedule)
    assert constant == 1.0


def test_a_last_projection_is_added_once_where_asked_for() -> None:
    for epochs in (11, 13):  # with and without a projection after the last epoch anyway
        schedule = _paper(
            f"training.schedule.epochs={epochs}", "training.schedule.project_last=true"
        ).training.schedule
        steps = plan(schedule)
        assert steps[-1].stage == "last_layer"
        assert [step.epoch for step in steps if step.stage == "project"][-1] == epochs - 1
        assert len({step.name for step in steps}) == len(steps)


def test_never_projecting_is_a_plan_too() -> None:
    schedule = _paper(
        "training.schedule.project_every=0", "training.schedule.epochs=30"
    ).training.schedule
    assert {step.stage for step in plan(schedule)} == {"warm", "joint"}


def test_optimiser_groups_have_the_papers_rates(
    tiny: Callable[..., Settings], birds: Splits
) -> None:
    settings = tiny()
    model = build_model(settings.model, settings.data, num_classes=3)
    optimizers = build_optimizers(model, _paper().training.optimizer)
    found = {
        stage: [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        for stage, optimizer in optimizers.items()
    }
    assert found == {
        "warm": [(3e-3, 1e-3), (3e-3, 0)],  # add_on, prototypes
        "joint": [(1e-4, 1e-3), (3e-3, 1e-3), (3e-3, 0)],  # backbone, add_on, prototypes
        "last_layer": [(1e-4, 0)],
    }
    assert optimizers["warm"].param_groups[1]["params"] == [model.prototypes]
    assert optimizers["last_layer"].param_groups[0]["params"] == [model.last_layer.weight]


def test_a_run_finds_its_place_in_another_plan() -> None:
    def steps(*overrides: str) -> list[PlanStep]:
        schedule = ("epochs=6", "warm_epochs=1", "project_from=2", "last_layer_epochs=2")
        settings = _paper(*(f"training.schedule.{each}" for each in (*schedule, *overrides)))
        return plan(settings.training.schedule)

    def name(at: int) -> str:
        return [*(step.name for step in changed), "the end"][at]

    old = steps("project_every=2")
    for step in old:  # the same plan
        assert find_place(old, step.key, under_way=True) == step.step
        assert find_place(old, step.key, under_way=False) == step.step + 1
    assert find_place(old, None, under_way=False) == 0
    changed = steps("project_every=3", "last_layer_epochs=1")
    after = {
        step.name: name(find_place(changed, step.key, under_way=False))
        for step in old
        if step.epoch >= 2
    }
    assert after == {
        "joint-2": "joint-3",
        "project-2": "joint-3",
        "last_layer-2-0": "joint-3",
        "last_layer-2-1": "joint-3",
        "joint-3": "project-3",  # which the old plan did not have
        "joint-4": "joint-5",
        "project-4": "joint-5",
        "last_layer-4-0": "joint-5",
        "last_layer-4-1": "joint-5",
        "joint-5": "the end",
    }
    changed = steps("project_every=2", "warm_epochs=3")
    for key, under_way in (
        (["joint", 2, 1], False),  # warm now
        (["joint", 4, 3], True),  # another place in the decay
        (["last_layer", 2, 5], True),
        (["joint", 9, 8], False),
    ):
        with pytest.raises(SettingsError, match=r"the new training\.schedule has no .* [249],"):
            find_place(changed, key, under_way=under_way)
