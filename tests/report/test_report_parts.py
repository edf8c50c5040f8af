import math
import os
import subprocess
from pathlib import Path

import pytest

from protofast.report import words
from protofast.report.charts import charts, nice_epochs, nice_ticks, timeline
from protofast.report.confusion import confusion_view
from protofast.report.files import Confusion, Json, RunFiles
from protofast.report.pictures import Pictures
from protofast.report.predictions import prediction_views


def _epoch(stage: str, **numbers: float) -> Json:
    return {"kind": "epoch", "stage": stage, **numbers}


def test_curves_follow_the_lines_of_the_run() -> None:
    metrics = [
        _epoch("warm", loss=3.0, accuracy=0.2),
        _epoch("joint", loss=2.0, accuracy=0.5),
        {"kind": "test", "accuracy": 0.4},
        {"kind": "projection", "stage": "project"},
        {"kind": "test", "accuracy": 0.3},
        _epoch("last_layer", loss=1.0, accuracy=0.6),
        {"kind": "test", "accuracy": 0.55},
    ]
    line = timeline(metrics)
    assert line.bands == [("warm", 0, 1), ("joint", 1, 2), ("last_layer", 2, 3)]
    assert line.projections == [2]
    accuracy, loss = charts(metrics)
    assert accuracy.rows == [
        ["1", "warm", f"20.0{words.THIN}%", words.DASH],
        ["2", "joint", f"50.0{words.THIN}%", f"30.0{words.THIN}%"],
        ["3", "last layer", f"60.0{words.THIN}%", f"55.0{words.THIN}%"],
    ]
    assert "train from 3 to 1 in 3 epochs" in loss.description
    assert "<path" in loss.svg


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 1e9], [-3.0, 4.0]])
def test_any_finite_curve_can_be_drawn(values: list[float]) -> None:
    drawn = charts([_epoch("<b>", loss=value) for value in values])
    assert len(drawn) == 1
    assert "nan" not in drawn[0].svg
    assert "<b>" not in drawn[0].svg


def test_values_that_are_no_numbers_leave_gaps() -> None:
    rows = [_epoch("joint", loss=value) for value in (1.0, math.nan, math.inf, 0.5)]
    rows += [{"kind": "epoch", "stage": "joint", "loss": "high"}]
    (chart,) = charts(rows)
    assert [row[2] for row in chart.rows] == ["1", words.DASH, words.DASH, "0.5", words.DASH]
    assert charts([]) == []
    assert charts([{"kind": "epoch"}]) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.9), (-7, 1234), (3, 3), (0, 1e-7)])
def test_ticks_are_few_round_and_around_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    for epochs in (1, 2, 9, 40, 1200):
        assert len(nice_epochs(epochs)) <= 5


def test_confusions_are_counted_and_ranked() -> None:
    view = confusion_view(
        Confusion(["a", "b", "c"], [[5, 2, 0], [0, 0, 0], [3, 1, 6]]), ["A", "B", "C"]
    )
    assert [row.accuracy for row in view.rows] == [5 / 7, None, 0.6]
    assert [(pair.true, pair.predicted, pair.images) for pair in view.pairs] == [
        ("C", "A", 3),
        ("A", "B", 2),
        ("C", "B", 1),
    ]
    assert (view.images, view.right) == (17, 11)
    assert view.rows[2].worst == "A"
    assert view.rows[1].worst is None
    assert view.as_table
    many = [str(number) for number in range(200)]
    assert not confusion_view(Confusion(many, [[1] * 200] * 200), many).as_table


def test_the_steps_of_a_logit_follow_each_other(tmp_path: Path) -> None:
    def term(contribution: float) -> Json:
        return {
            "prototype": 0,
            "similarity": 1.0,
            "weight": contribution,
            "contribution": contribution,
            "box": [0, 0, 2, 2],
            "heatmap": None,
        }

    part = {
        "class": 0,
        "logit": -1.0,
        "probability": 0.5,
        "shown": [term(4.0), term(2.0)],
        "own": {"prototypes": 1, "contribution": 1.0},
        "others": {"prototypes": 3, "contribution": -8.0},
    }
    image = {"size": [4, 4], "label": 0, "file": "x.jpg", "name": "x"}
    run = RunFiles(tmp_path, explanations={"images": {"test-0": image}})
    summary = {
        "prototypes": [{"source": None, "class": 0}],
        "predictions": [
            {"image": "test-0", "label": 0, "predicted": 0, "right": True, "classes": [part]}
        ],
    }
    (view,) = prediction_views(summary, ["only"], Pictures(run, ["only"]))
    shown = view.classes[0]
    assert shown.zero == 12.5  # the range is -1 ... 7
    bars = [term.bar for term in shown.terms] + [shown.own.bar, shown.others.bar, shown.total]
    assert [(bar.start, bar.length, bar.negative) for bar in bars] == [
        (12.5, 50.0, False),
        (62.5, 25.0, False),
        (87.5, 12.5, False),
        (0.0, 100.0, True),
        (0.0, 12.5, True),
    ]


def test_a_folder_in_a_command_is_the_folder(tmp_path: Path) -> None:
    strange = [
        "plain",
        "two  spaces",
        "a'b",
        "tab\there",
        "line\nbreak",
        "\u202eback",
        "\udcff.\\ '",
    ]
    for name in strange:
        path = tmp_path / name
        path.mkdir()
        typed = words.shell(path)
        typed.encode("utf-8")
        assert not set("\t\n\u202e") & set(typed)
        answer = subprocess.run(["bash", "-c", f"cd {typed} && pwd -P"], capture_output=True)
        assert answer.stdout == os.fsencode(path.resolve()) + b"\n"
    assert words.shell("plain") == "plain"


def test_numbers_and_names_read_well() -> None:
    assert words.number(-0.001) == "0.00"
    assert words.number(-1.5, 1) == f"{words.MINUS}1.5"
    assert words.number(math.nan) == words.DASH
    assert words.short(12345.6) == "12346"
    assert words.short(0.00001) == f"1.0 {words.TIMES} 10^{words.MINUS}5"
    assert words.percent(0.5, 0) == f"50{words.THIN}%"
    assert words.count(1, "class", "classes") == "1 class"
    assert words.count(2399, "image") == "2,399 images"
    assert words.name("  a\n\tb\u202e ") == "a b"
    assert words.name("\x00") == "(no name)"
    assert words.class_names(["001.Black_footed_Albatross", "002.X"]) == [
        "Black footed Albatross",
        "X",
    ]
    assert words.class_names(["1_a", "2_a"]) == ["1_a", "2_a"]  # would be the same without numbers
    assert words.class_names(["2019", "2020"]) == ["2019", "2020"]
    assert words.shortened("a" * 300 + "z") == "a" * 53 + words.ELLIPSIS + "a" * 25 + "z"
    assert words.shortened("short") == "short"
