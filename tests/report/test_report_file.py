import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from copies import replace
from explained_run import explain_tiny, summary_of, train_tiny
from html_page import HOSTILE, Page, assert_self_contained

from protofast.errors import RunFolderError
from protofast.explain import save_prototype_figure
from protofast.report import build_report


def _page(run: Path) -> Page:
    return Page(build_report(run).read_text(encoding="utf-8"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_one_file_that_needs_nothing_else(explained: Path) -> None:
    path = explained / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 8e6
    assert_self_contained(text)


def test_the_numbers_are_those_of_the_run(explained: Path) -> None:
    page = _page(explained)
    metrics = json.loads((explained / "evaluation" / "metrics.json").read_text())
    assert f"{100 * metrics['accuracy']:.1f}" in page.text
    assert "4 classes, told apart by 12 remembered patches" in page.text
    assert "trained on 40 rendered birds in 4 classes" in page.text
    assert "guessing would name 25.0" in page.text
    assert sum(tag == "article" and "data-number" in a for tag, a in page.tags) == 12
    summary = json.loads((explained / "explanations" / "summary.json").read_text())
    shown = [a for tag, a in page.tags if tag == "article" and "prediction" in (a["class"] or "")]
    assert len(shown) == len(summary["predictions"])
    for prediction in summary["predictions"]:
        for part in prediction["classes"]:
            assert f"{part['logit']:.2f}".replace("-", "\N{MINUS SIGN}") in page.text


def test_names_from_outside_are_harmless(run: Path) -> None:
    summary_file = run / "explanations" / "summary.json"
    summary = json.loads(summary_file.read_text())
    summary["classes"] = HOSTILE
    summary["checkpoint"]["name"] = summary["created"] = HOSTILE[2]
    summary["sampling"] = {"right": HOSTILE[1], "wrong": HOSTILE[2]}
    summary["notes"] = [HOSTILE[0]]
    for number, image in enumerate(summary["images"].values()):
        image["name"] = HOSTILE[number % 4]
    summary_file.write_text(json.dumps(summary))
    confusion = (run / "evaluation" / "confusion.csv").read_text().splitlines()
    cells = [
        '"' + name.replace('"', '""').replace("\ud800", "?").replace("\x00", "") + '"'
        for name in HOSTILE
    ]
    rows = [row.rpartition('"')[2].split(",", 1)[-1] for row in confusion[1:]]
    table = [",".join(["x", *cells])] + [f"{c},{r}" for c, r in zip(cells, rows, strict=True)]
    (run / "evaluation" / "confusion.csv").write_text("\n".join(table))
    with (run / "metrics.jsonl").open("a") as file:
        row = {"kind": "warning", "what": HOSTILE[2], "message": HOSTILE[0]}
        file.write(json.dumps(row) + "\n")
    settings = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(settings + '\n["</style><script>"]\n"<b>" = "<i>"\n')
    page = _page(run)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert tags.count("style") == 1
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>document.title='hurt'</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert not set("\x00\x1b\u202e\ud800") & set((run / "report.html").read_text("utf-8"))


def test_a_run_folder_with_a_hostile_name_is_quoted(run: Path) -> None:
    hostile = run.rename(run.with_name("a b'; rm -rf <x> &"))
    shutil.rmtree(hostile / "evaluation")
    text = _page(hostile).text
    assert "protofast evaluate '" in text
    assert "rm -rf <x> &" in text


@pytest.mark.parametrize(
    ("part", "sentence", "command"),
    [
        ("evaluation", "has not been evaluated", "protofast evaluate"),
        ("explanations", "no explanations yet", "protofast explain"),
        ("prototypes", "have not been projected", "protofast project"),
        ("metrics.jsonl", "No epoch has been written down", "protofast train"),
        ("environment.json", "has not written down its environment", ""),
        ("checkpoints", "", ""),
        ("evaluation/confusion.csv", "no confusion matrix", "protofast evaluate"),
        ("explanations/images", "of the explanations cannot be found", "protofast explain"),
    ],
)
def test_what_is_missing_is_said_with_the_command(
    run: Path, part: str, sentence: str, command: str
) -> None:
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = _page(run).text
    assert sentence in text
    assert command in text


def test_a_run_with_settings_alone_has_a_report(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "settings.toml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = _page(run).text
    assert "A prototype network in the making" in text
    for command in ("evaluate", "explain", "project"):
        assert f"protofast {command}" in text


def test_a_run_that_was_never_projected_has_a_report(tmp_path: Path) -> None:
    run, data = train_tiny(tmp_path / "run", projected=False)
    explain_tiny(run, data, samples=2)
    text = _page(run.path).text
    assert "12 prototypes, not projected yet" in text
    assert "not patches of images yet" in text


def test_explanations_of_other_weights_are_called_out_of_date(run: Path) -> None:
    assert "Out of date" not in _page(run).text
    name = (run / "checkpoints" / "best").read_text().strip()
    other = next(
        path.stem for path in (run / "checkpoints").glob("*.safetensors") if path.stem != name
    )
    file = run / "checkpoints" / f"{name}.safetensors"
    weights = file.read_bytes()
    replace(file, weights[:-1] + b"\x01")
    assert "the explanations below are of checkpoint" in _page(run).text
    replace(file, weights)
    for pointer in ("best", "latest"):
        (run / "checkpoints" / pointer).write_text(other + "\n")
    text = _page(run).text
    assert f"Out of date: the explanations below are of checkpoint {name}" in text
    assert f"and the run's is now {other}" in text
    assert "Out of date: the numbers of the evaluation" in text
    file.unlink()
    assert "Out of date" in _page(run).text


_HOLLOW = json.dumps(
    {
        "format": 1,
        "classes": ["a"],
        "images": {},
        "prototypes": [{"class": 0, "source": {"image": "train-1"}}],
        "predictions": [],
        "checkpoint": {},
        "test": {"images": 0},
    }
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("explanations/summary.json", '{"format": 1, "images"'),
        ("explanations/summary.json", '{"format": 99}'),
        ("explanations/summary.json", "[]"),
        ("explanations/summary.json", _HOLLOW),
        ("evaluation/metrics.json", "\x00\xff"),
        ("evaluation/confusion.csv", "x,a,b\na,1\n"),
        ("evaluation/confusion.csv", "x,a,b\na,1,one\nb,1,2\n"),
        ("settings.toml", "a = = 1"),
        ("environment.json", "[1"),
        ("prototypes/prototypes.json", '{"a": 1}'),
        ("metrics.jsonl", '{"kind": "epo\n{"kind": "epoch", "loss": NaN, "stage": 3}\n'),
    ],
)
def test_damaged_files_are_named_and_the_rest_is_shown(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content, encoding="latin-1")
    text = _page(run).text
    assert f"{name} cannot be used" in text or f"{name} has 1 damaged line" in text


def test_half_a_last_line_is_normal(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epo')
    assert "damaged line" not in _page(run).text


def test_files_outside_the_run_are_not_embedded(run: Path) -> None:
    summary_file = run / "explanations" / "summary.json"
    summary = json.loads(summary_file.read_text())
    (run.parent / "secret.png").write_bytes(b"secret")
    for number, image in enumerate(summary["images"].values()):
        image["file"] = ["../../secret.png", str(run.parent / "secret.png")][number % 2]
    summary_file.write_text(json.dumps(summary))
    assert "c2VjcmV0" not in build_report(run).read_text(encoding="utf-8")
    assert "of the explanations cannot be found" in _page(run).text


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        build_report(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"no settings\.toml"):
        build_report(tmp_path)


def test_an_older_report_stays_if_the_new_one_cannot_be_written(run: Path) -> None:
    path = build_report(run)
    before = path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        build_report(run)
    assert not list(run.glob(".report*"))
    path.rmdir()
    path.write_bytes(before)
    assert build_report(run).read_bytes() == before


def test_explanations_of_the_latest_are_out_of_date_if_another_is_the_best(run: Path) -> None:
    best = (run / "checkpoints" / "best").read_text().strip()
    names = [path.stem for path in (run / "checkpoints").glob("*.safetensors")]
    latest = next(name for name in names if name != best)
    (run / "checkpoints" / "latest").write_text(latest + "\n")
    assert "Out of date" not in _page(run).text
    _edit(run / "explanations" / "summary.json", checkpoint={"name": latest, "sha256": None})
    text = _page(run).text
    assert f"the explanations below are of checkpoint {latest}, and the run's is now {best}" in text
    assert f"checkpoint {latest}, the numbers of the evaluation of checkpoint {best}" in text
    (run / "checkpoints" / "best").unlink()
    text = _page(run).text
    assert "Out of date: the explanations" not in text
    assert f"the numbers of the evaluation below are of checkpoint {best}" in text


def test_predictions_that_are_not_explained_are_not_denied(run: Path) -> None:
    _edit(run / "explanations" / "summary.json", predictions=[], test={"images": 32, "right": 31})
    text = _page(run).text
    assert "31 test images were classified rightly; none of them is explained here" in text
    assert "1 test image was classified wrongly; none of them is explained here" in text
    _edit(run / "explanations" / "summary.json", test={"images": 32, "right": 32})
    assert "No test image was classified wrongly." in _page(run).text


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ((12, 0), "(its receptive field). What lies"),
        ((12, 4), "(its receptive field). 4 of the 12 cells see the whole image. What lies"),
        ((12, 12), "(its receptive field). All cells see the whole image. What lies"),
        (None, "(its receptive field). What lies"),
    ],
)
def test_what_a_cell_sees_is_said(run: Path, cells: tuple[int, int] | None, sentence: str) -> None:
    path = run / "explanations" / "summary.json"
    summary = json.loads(path.read_text())
    assert summary["model"]["receptive_field"]["cells"] == 12
    field = {"size": 400, "jump": 16}
    field |= {} if cells is None else dict(zip(("cells", "whole"), cells, strict=True))
    summary["model"]["receptive_field"] = field
    path.write_text(json.dumps(summary))
    assert sentence in _page(run).text


def test_each_heat_map_is_embedded_once(explained: Path) -> None:
    html = (explained / "report.html").read_text(encoding="utf-8")
    uris = re.findall(r'href="(data:image/png[^"]+)"', html)
    summary = json.loads((explained / "explanations" / "summary.json").read_text())
    names = {entry["heatmap"] for entry in summary["prototypes"]} | {
        term["heatmap"]
        for prediction in summary["predictions"]
        for part in prediction["classes"]
        for term in part["shown"]
    }
    assert len(uris) == len(names)
    used = re.findall(r'<use class="heat" href="#(h\d+)"', html)
    assert set(used) == set(re.findall(r'<image id="(h\d+)"', html))


def test_the_most_activated_prototypes_are_named(explained: Path) -> None:
    summary = json.loads((explained / "explanations" / "summary.json").read_text())
    text = _page(explained).text
    for prediction in summary["predictions"]:
        first = prediction["activated"][0]
        found = f"whatever they speak for: {first['prototype']} ({first['similarity']:.2f})"
        assert found in text


def test_prototypes_without_classes_are_nobodys_strangers(run: Path) -> None:
    path = run / "explanations" / "summary.json"
    summary = json.loads(path.read_text())
    for prototype in summary["prototypes"]:
        prototype["class"] = prototype["weight"] = None
    for prediction in summary["predictions"]:
        for found in prediction["activated"]:
            found["class"] = None
        for part in prediction["classes"]:
            part["own"]["prototypes"] = 10
            part["others"] = {"prototypes": 0, "contribution": 0.0}
    path.write_text(json.dumps(summary))
    page = _page(run)
    assert "other prototypes" in page.text
    assert "of this class" not in page.text
    assert "of other classes" not in page.text
    classes = " ".join(attributes.get("class") or "" for _, attributes in page.tags).split()
    assert "stranger" not in classes
    assert "foreign" not in classes


def test_numbers_of_other_weights_are_called_out_of_date(run: Path) -> None:
    name = (run / "checkpoints" / "best").read_text().strip()
    file = run / "checkpoints" / f"{name}.safetensors"
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    replace(file, file.read_bytes()[:-1] + b"\x01")
    sentence = f"the numbers of the evaluation below are of checkpoint {name}, whose weights have"
    assert sentence in _page(run).text
    _edit(run / "evaluation" / "metrics.json", sha256=None)  # as older versions wrote it
    assert sentence not in _page(run).text


def test_explanations_are_found_while_newer_ones_take_their_place(run: Path) -> None:
    before = build_report(run).read_text(encoding="utf-8")
    (run / "explanations").rename(run / ".explanations-999999-old")
    assert build_report(run).read_text(encoding="utf-8") == before
    assert summary_of(run)
    assert save_prototype_figure(run / "p.png", run, 0).is_file()


def test_a_prototypes_own_source_is_no_evidence_for_it(run: Path) -> None:
    text = _page(run).text
    path = run / "explanations" / "summary.json"
    summary = json.loads(path.read_text())
    prototype = summary["prototypes"][0]
    assert prototype["nearest"]["train"][0]["image"] == prototype["source"]["image"]
    assert "Own class among the images below, its source left out" in text
    near = [row["image"] for rows in prototype["nearest"].values() for row in rows][1:]
    own = sum(summary["images"][image]["label"] == 0 for image in near)
    assert f"its source left out {own} of 5" in text
