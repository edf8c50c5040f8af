"""The report of an audit: what it says, and that nothing from outside breaks it."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report_file import HOSTILE, _Page

from protofast.errors import RunFolderError
from protofast.report import build_audit_report, write_audit_report
from protofast.report.audit_charts import axis_for, axis_of, histogram
from protofast.report.audit_files import Measure, read_audit
from protofast.report.audit_pictures import picture_views
from protofast.report.audit_subjects import SUBJECTS, how_often, interval, radius
from protofast.report.published import SPATIAL_MISALIGNMENT

MINUS = "\N{MINUS SIGN}"


def _page(folder: Path) -> _Page:
    return _Page(build_audit_report(folder).read_text(encoding="utf-8"))


def _content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text())


def _write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "audit.json").write_text(json.dumps(content))


def _result(content: dict[str, Any], audit: str, protocol: str, model: int = 0) -> dict[str, Any]:
    (found,) = [
        one
        for one in content["audits"]
        if (one["audit"], one["protocol"], one["model"]) == (audit, protocol, model)
    ]
    return found


def _number(result: dict[str, Any], key: str) -> dict[str, Any]:
    return next(number for number in result["numbers"] if number["key"] == key)


def _plain(text: str) -> str:
    """With ordinary spaces only."""
    return re.sub(r"\s+", " ", text)


def test_one_file_that_needs_nothing_else(audited: Path) -> None:
    text = (audited / "audit.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:[a-z/]+;base64,[\w+/=]+", "", text))
    assert "default-src 'none'" in text
    assert re.search(r"script-src 'sha256-[\w+/]+='", text)
    for tag, attributes in _Page(text).tags:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value[:60])
    assert "@import" not in text
    assert "url(" not in text


def test_every_number_stands_there_with_its_interval_and_n(audited: Path) -> None:
    text = _plain(_page(audited).text)
    for result in _content(audited)["audits"]:
        for number in result["numbers"]:
            digits = 1 if number["unit"] else 2
            value, low, high = (
                f"{number[key]:.{digits}f}".replace("-", MINUS) for key in ("value", "low", "high")
            )
            assert re.search(rf"{value}[^<]*?{low} to {high}", text), number


def test_the_verdicts_speak_of_the_papers_protocol(audited: Path) -> None:
    content = _content(audited)
    text = _plain(_page(audited).text)
    verdicts = text[text.index("Verdicts Does the network") : text.index("1 Accuracy under attack")]
    for model in (0, 1):
        name = content["models"][model]["name"]
        success = _number(_result(content, "head_on_stomach", "paper", model), "success_rate")
        released = _number(_result(content, "head_on_stomach", "released", model), "success_rate")
        assert released["value"] != success["value"]
        said = (
            f"{name}: on {how_often(success['value'])}, {success['value']:.1f} % "
            f"(95 % interval {success['low']:.1f} to {success['high']:.1f}, n = {success['n']}), "
            "noise of at most 8/255 per pixel moves one of the strongest prototypes"
        )
        assert said in verdicts
        assert f"{released['value']:.1f} % (" not in verdicts
        change = _number(_result(content, "jpeg", "paper", model), "similarity_change")
        assert f"falls by {-change['value']:.2f} (95 % interval {-change['high']:.2f}" in verdicts
        lost = _number(_result(content, "spatial_misalignment", "paper", model), "location_change")
        assert f"moves {lost['value']:.1f} % of the highlighted area" in verdicts
    assert verdicts.count("aligned holds better than standard: higher on the same images, by") == 2
    assert verdicts.count("aligned holds better than standard: lower on the same images, by") == 2
    for subject in SUBJECTS:
        assert subject.low in verdicts
        assert subject.high in verdicts


def _overlapping(content: dict[str, Any]) -> dict[str, Any]:
    """Lets the intervals of Head on Stomach overlap; the comparison of the two models."""
    for model, low, high in ((0, 40.0, 60.0), (1, 58.0, 80.0)):
        number = _number(_result(content, "head_on_stomach", "paper", model), "success_rate")
        number.update(value=(low + high) / 2, low=low, high=high)
    (found,) = [
        one
        for one in content["comparisons"]
        if (one["audit"], one["protocol"], one["key"])
        == ("head_on_stomach", "paper", "success_rate")
    ]
    found.update(value=19.0, low=12.0, high=26.0, n=120, differ=40)
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "standard holds better than aligned: lower on the same images, by 19.0 points (95 % "
            "interval 12.0 to 26.0, n = 120).",
        ),
        (
            {"value": -19.0, "low": -26.0, "high": -12.0},
            "aligned holds better than standard: lower on the same images, by 19.0 points (95 % "
            "interval 12.0 to 26.0, n = 120).",
        ),
        (
            {"low": 0.0, "high": 38.0},
            "No clear difference between standard and aligned: 19.0 points (95 % interval 0.0 to "
            "38.0, n = 120) on the same images.",
        ),
        (
            {"differ": 5},
            "standard and aligned differ on 5 images of the same 120: too few to tell them apart.",
        ),
        (
            {"value": 0.0, "low": 0.0, "high": 0.0, "differ": 0},
            "standard and aligned come out alike on each of the same 120 images.",
        ),
        (
            {"audit": "other"},
            "The intervals of standard and aligned overlap: so many images show no clear",
        ),
        ({"models": [0, 0]}, "it is not of two models, but of [0, 0]"),
        ({"models": [0, 2]}, "cannot be used: there is no model 2"),
        ({"value": math.nan}, "its value is nan, not a finite number"),
        ({"low": None}, "its value or interval is missing"),
    ],
)
def test_models_are_compared_image_by_image(
    audit: Path, changes: dict[str, Any], said: str
) -> None:
    content = _content(audit)
    _overlapping(content).update(changes)
    _write(audit, content)
    text = _plain(_page(audit).text)
    assert said in text
    assert text.count("aligned holds better than standard") == 3 + ("aligned holds" in said)


def test_without_comparisons_models_are_ranked_where_their_intervals_lie_apart(
    audit: Path,
) -> None:
    content = _content(audit)
    _overlapping(content)
    del content["comparisons"]
    _write(audit, content)
    text = _plain(_page(audit).text)
    assert "The intervals of standard and aligned overlap: so many images show no clear" in text
    assert text.count("aligned holds better than standard: their intervals lie apart.") == 3
    assert "less standard" not in text


def test_differences_are_listed_number_by_number(audited: Path) -> None:
    text = _plain(_page(audited).text)
    for one in _content(audited)["comparisons"]:
        digits = 1 if one["unit"] else 2
        value, low, high = (
            f"{one[key]:.{digits}f}".replace("-", MINUS) for key in ("value", "low", "high")
        )
        sign = "+" if one["value"] > 0 else ""
        said = f"aligned less standard {one['protocol']} [^<]*?{re.escape(sign + value)}[^<]*?"
        assert re.search(rf"{said}{low} to {high}", text), one


def test_published_numbers_stand_under_the_protocol_that_they_measure(audited: Path) -> None:
    html = (audited / "audit.html").read_text(encoding="utf-8")
    tables = re.findall(r'<figure class="paper-table">.*?</figure>', html, re.S)
    (table,) = [table for table in tables if "Sacha et al. 2024" in table]
    paper, released = table.split("<tbody>")[1:]
    assert "published" not in paper
    for row in SPATIAL_MISALIGNMENT.rows:
        assert row.model in released
        for value in row.values.values():
            assert f"{value:.2f}".rstrip("0").rstrip(".") in released
    assert "never takes a step" in table
    assert {"Table 1", "Table 2", "Table 3", "Table 4"} == set(
        re.findall(r"Hoffmann et al\. 2021, (Table \d)", html)
    )


def _paper_table(html: str, name: str) -> dict[str, dict[str, str]]:
    """Each of our rows as plain text, by protocol and model."""
    tables = re.findall(r'<figure class="paper-table">.*?</figure>', html, re.S)
    (table,) = [table for table in tables if name in table]
    rows: dict[str, dict[str, str]] = {}
    for group in table.split("<tbody>")[1:]:
        shown = re.search(r'<tr class="group">.*?</tr>', group, re.S)
        protocol = "" if shown is None else _plain(_Page(shown[0]).text).split()[0]
        for row in re.findall(r"<tr>.*?</tr>", group, re.S):
            text = _plain(_Page(row).text)
            rows.setdefault(protocol, {})[text.split()[0]] = text
    return rows


def test_accuracy_under_attack_stands_under_its_own_protocol(audit: Path) -> None:
    content = _content(audit)
    said = {
        (protocol, name): _number(
            _result(content, "robust_accuracy", protocol, model), "adversarial_accuracy"
        )
        for protocol in ("paper", "released")
        for model, name in enumerate(("standard", "aligned"))
    }
    for place, number in enumerate(said.values()):
        number["value"] = 11.1 + 20 * place
    _write(audit, content)
    rows = _paper_table(build_audit_report(audit).read_text("utf-8"), "2021, Table 3")
    assert set(rows) == {"paper", "released", "targeted"}
    for protocol in rows:
        for name in ("standard", "aligned"):
            own = "paper" if protocol == "targeted" else protocol
            for key, number in said.items():
                assert (f"{number['value']:.1f}" in rows[protocol][name]) == (key == (own, name))


def test_accuracy_under_attack_is_missing_where_its_protocol_was_not_run(audit: Path) -> None:
    content = _content(audit)
    number = _number(_result(content, "robust_accuracy", "paper"), "adversarial_accuracy")
    number["value"] = 13.7
    content["audits"] = [
        one
        for one in content["audits"]
        if (one["audit"], one["protocol"]) != ("robust_accuracy", "released")
    ]
    _write(audit, content)
    rows = _paper_table(build_audit_report(audit).read_text("utf-8"), "2021, Table 3")
    assert "13.7" in rows["paper"]["standard"]
    assert "13.7" not in rows["released"]["standard"]
    assert rows["released"]["standard"].count("\N{EN DASH}") == 2


def test_rows_of_another_training_than_the_tables_say_so(audit: Path) -> None:
    content = _content(audit)
    html = build_audit_report(audit).read_text("utf-8")
    for rows in _paper_table(html, "2021, Table 2").values():
        assert "not trained so" in rows["standard"]
        assert "trained so" not in rows["aligned"]
    for rows in _paper_table(html, "2021, Table 4").values():
        assert "not trained so" in rows["standard"]
        assert "adversarial, alignment, masking; not trained so" in rows["aligned"]
    assert "trained so" not in str(_paper_table(html, "Sacha et al. 2024"))
    content["models"][0]["settings"] = None
    _write(audit, content)
    rows = _paper_table(build_audit_report(audit).read_text("utf-8"), "2021, Table 2")["paper"]
    assert "it is not known whether it was trained so" in rows["standard"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [(10, "against it in 10 steps."), (1, "against it in 1 step."), ("ten", "against it.")],
)
def test_the_steps_of_an_attack_are_those_of_its_settings(
    audit: Path, steps: object, said: str
) -> None:
    content = _content(audit)
    for model in (0, 1):
        _result(content, "robust_accuracy", "paper", model)["settings"]["steps"] = steps
    _write(audit, content)
    text = _plain(_page(audit).text)
    assert text.count(said) == 2
    assert "noise may set a wrong one right" in text


def test_published_numbers_are_shown_where_ours_lack_their_protocol(audit: Path) -> None:
    content = _content(audit)
    content["audits"] = [one for one in content["audits"] if one["protocol"] == "paper"]
    _write(audit, content)
    html = build_audit_report(audit).read_text(encoding="utf-8")
    assert html.count('<small class="origin">published</small>') > 15
    assert "uniform noise outside the box, no attack" in html


def test_what_was_left_out_is_counted(audit: Path) -> None:
    content = _content(audit)
    _result(content, "jpeg", "paper")["skipped"] = {"already wrong": 17, "flat map": 2}
    _result(content, "jpeg", "paper", 1)["skipped"] = {}
    _result(content, "jpeg", "released")["skipped"] = {}
    _result(content, "jpeg", "released", 1)["skipped"] = {}
    for model in (0, 1):
        for protocol in ("paper", "released"):
            _result(content, "robust_accuracy", protocol, model)["skipped"] = {}
    _write(audit, content)
    text = _plain(_page(audit).text)
    assert "standard paper 17 of 121 rows: already wrong" in text
    assert "standard paper 2 of 121 rows: flat map" in text
    assert text.count("Nothing: every row of this audit is counted.") == 1


def test_numbers_that_no_chart_shows_are_listed_as_remarks(audited: Path) -> None:
    content = _content(audited)
    text = _plain(_page(audited).text)
    for model, name in enumerate(("standard", "aligned")):
        share = _number(_result(content, "jpeg", "released", model), "wrong_compressed")["value"]
        said = f"{name} released {share:.1f} % : Named wrongly with its artefacts"
        assert said.replace(" :", ":") in text


def test_names_from_outside_are_harmless(audit: Path) -> None:
    content = _content(audit)
    content["classes"] = HOSTILE
    content["data"]["description"] = HOSTILE[0]
    content["environment"] = {HOSTILE[0]: HOSTILE[1]}
    content["times"] = {HOSTILE[1]: {HOSTILE[2]: HOSTILE[0]}}
    for number, model in enumerate(content["models"]):
        model["name"], model["defences"] = HOSTILE[number], [HOSTILE[1], HOSTILE[2]]
    for number, result in enumerate(content["audits"]):
        hostile = HOSTILE[number % 4]
        result["title"] = hostile
        result["skipped"] = {hostile: 3}
        result["settings"][hostile] = hostile
        for one in result["numbers"]:
            one["label"], one["unit"] = hostile, hostile
        for picture in result["pictures"]:
            picture["caption"], picture["image"] = hostile, hostile
            picture["files"] = dict(zip(HOSTILE[1:], picture["files"].values(), strict=False))
    content["audits"][-1]["audit"] = HOSTILE[0]
    content["audits"][-2]["protocol"] = HOSTILE[1]
    _write(audit, content)
    page = _page(audit)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == tags.count("style") == 1
    for tag, attributes in page.tags:
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
        assert not any(name.startswith("on") for name in attributes)
    assert "<script>document.title='hurt'</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    text = (audit / "audit.html").read_text(encoding="utf-8")
    assert not set("\x00\x1b\u202e\ud800") & set(text)


def _no_times(content: dict[str, Any]) -> None:
    del content["times"]


def _no_models(content: dict[str, Any]) -> None:
    content["models"] = []


def _bad_model(content: dict[str, Any]) -> None:
    content["models"][1] = {"name": 7}


def _bad_audit(content: dict[str, Any]) -> None:
    content["audits"][0] = "robust"


def _twice(content: dict[str, Any]) -> None:
    content["audits"].append(content["audits"][3])


def _strange_number(content: dict[str, Any]) -> None:
    content["audits"][3]["numbers"][0]["value"] = math.nan


def _no_numbers(content: dict[str, Any]) -> None:
    for result in content["audits"]:
        result["numbers"] = []


def _nothing_measured(content: dict[str, Any]) -> None:
    for result in content["audits"]:
        for number in result["numbers"]:
            number.update(value=None, low=None, high=None, n=0)


def _no_pictures(content: dict[str, Any]) -> None:
    _result(content, "jpeg", "released")["pictures"] = [
        {"files": {}},
        {"files": {"clean": 3}},
        None,
    ]


def _wrong_kinds(content: dict[str, Any]) -> None:
    content.update(data=[1], times="soon", classes={"a": 1})
    content["audits"][2].update(settings=[], skipped=[1], table=["x"], seed="0", rows="many")


def _unknown_audit(content: dict[str, Any]) -> None:
    content["audits"][4].update(audit="user_study", title="A study with users", protocol="ours")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_times, "How long the audits took has not been written down"),
        (_no_models, "audit 0 cannot be used: there is no model 0"),
        (_bad_model, "model 1 cannot be used: it has no name"),
        (_bad_audit, "audit 0 cannot be used: expected a JSON object, found str"),
        (_twice, "is there already"),
        (_strange_number, "cannot be used: its value is nan, not a finite number"),
        (_no_numbers, "there is nothing to say: no number came out"),
        (_nothing_measured, "there is nothing to say: no number came out"),
        (_no_pictures, "a picture of standard, jpeg-released cannot be used: it names no files"),
        (_wrong_kinds, "'data' cannot be used: it is no dict"),
        (_unknown_audit, "A study with users"),
    ],
)
def test_damaged_parts_are_named_and_the_rest_is_shown(
    audit: Path, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    content = _content(audit)
    spoil(content)
    _write(audit, content)
    text = _plain(_page(audit).text)
    assert sentence in text
    assert "What this does not show" in text
    assert "How far can the explanations of" in text


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1', "\x00", "[" * 10**5])
def test_an_unreadable_audit_is_refused(audit: Path, text: str) -> None:
    before = (audit / "audit.html").read_bytes()
    (audit / "audit.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"audit\.json: cannot be used .* run protofast audit"):
        build_audit_report(audit)
    assert (audit / "audit.html").read_bytes() == before


def test_what_is_no_audit_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such audit folder"):
        build_audit_report(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"no audit\.json"):
        build_audit_report(tmp_path)


def test_an_audit_without_any_result_has_a_report(tmp_path: Path) -> None:
    _write(tmp_path, {"format": 1})
    assert "No audit has been finished yet" in _page(tmp_path).text


def test_missing_files_are_named(audit: Path) -> None:
    result = _content(audit)["audits"][3]
    lost = next(iter(result["pictures"][0]["files"].values()))
    (audit / lost).unlink()
    (audit / next(iter(result["pictures"][1]["files"].values()))).write_bytes(b"GIF89a")
    (audit / result["table"]).unlink()
    report = write_audit_report(audit)
    name = f"standard, {result['audit']}-{result['protocol']}"
    assert f"{name}: a picture (clean) cannot be found" in report.problems
    assert f"{name}: a picture (clean) is no PNG or JPEG picture" in report.problems
    assert f"{result['table']} cannot be found: no distribution" in report.problems
    text = report.path.read_text(encoding="utf-8")
    assert all(problem in text for problem in report.problems)


def test_files_outside_the_folder_are_not_embedded(audit: Path) -> None:
    secret = audit.parent / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (audit.parent / "secret.csv").write_text("image,name,success_rate\n0,a,1\n1,b,2\n")
    content = _content(audit)
    for number, result in enumerate(content["audits"]):
        result["table"] = "../secret.csv"
        for picture in result["pictures"]:
            picture["files"]["clean"] = ["../secret.png", str(secret), "\x00"][number % 3]
    _write(audit, content)
    report = write_audit_report(audit)
    assert "c2VjcmV0" not in report.path.read_text(encoding="utf-8")
    assert any("../secret.csv cannot be found" in problem for problem in report.problems)
    assert sum("(clean) cannot be found" in problem for problem in report.problems) > 30


def test_the_worst_pictures_have_room_first(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture_views(read_audit(audit))
    sizes = [len(v.uri) for album in whole.values() for v in album.pictures[0].versions]
    monkeypatch.setattr("protofast.report.audit_pictures.ROOM", sum(sizes) + max(sizes))
    some = picture_views(read_audit(audit))
    assert some.keys() == whole.keys()
    for key, album in some.items():
        assert album.pictures[0].caption == whole[key].pictures[0].caption
        assert 2 * (len(whole[key].pictures) - len(album.pictures)) == len(album.left_out)
    left = sum(len(album.left_out) for album in some.values())
    assert left > 0
    text = _plain(_page(audit).text)
    assert text.count("Left out to keep this file small") == sum(
        bool(album.left_out) for album in some.values()
    )


def test_more_versions_than_switches_are_all_shown(audit: Path) -> None:
    content = _content(audit)
    result = _result(content, "jpeg", "paper")
    file = result["pictures"][0]["files"]["clean"]
    for number, picture in enumerate(result["pictures"]):
        picture["files"] = {f"step {step}": file for step in range(6 + number)}
    for other in content["audits"]:
        if other is not result:
            other["pictures"] = []
    _write(audit, content)
    page = _page(audit)
    figures = [a["class"] for tag, a in page.tags if tag == "figure" and "shot" in a["class"]]
    assert [" switched" in name for name in figures] == [True, False, False]
    assert sum(tag == "input" for tag, _ in page.tags) == 6
    assert sum(tag == "img" for tag, _ in page.tags) == 6 + 7 + 8


def test_an_older_report_stays_if_the_new_one_cannot_be_written(audit: Path) -> None:
    path = audit / "audit.html"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"audit\.html"):
        build_audit_report(audit)
    assert not list(audit.glob(".audit*"))


# ----- numbers, axes, tables of values -----


def _measure(value: float | None, low: float | None, high: float | None, unit: str) -> Measure:
    return Measure("key", "label", value, unit, None, 3, low, high)


def test_an_axis_holds_all_its_values() -> None:
    share = axis_of([_measure(0.5, -0.4, 1.4, "%"), _measure(99.0, 97.0, 100.4, "%")])
    assert (share.low, share.high) == (0, 100)
    assert share.x(-0.4) == 0
    mean = axis_of([_measure(5.0, -12.0, 22.0, "%"), _measure(40.0, 30.0, 50.0, "%")])
    assert -100 < mean.low <= -12
    assert 0 < mean.x(-12.0) < mean.x(0.0) < mean.x(22.0) < 100
    assert 0.0 in mean.ticks
    above = axis_of([_measure(80.0, 50.0, 120.0, "%")])
    assert (above.low, above.x(120.0) <= 100, above.high >= 120) == (0, True, True)
    fall = axis_for([-3.0, -60.0], "%")
    assert (fall.low, fall.high) == (-100, 0)
    both = axis_of([_measure(-1.0, -2.5, 0.5, ""), _measure(3.0, None, None, "")])
    assert both.low <= -2.5
    assert both.high >= 3
    assert all(0 <= both.x(tick) <= 100 for tick in both.ticks)
    empty = axis_of([])
    assert empty.low < empty.high
    zero = axis_for([0.0, 0.0], "")
    assert zero.low < zero.high


def test_a_histogram_counts_every_value() -> None:
    axis = axis_for([0.0, 100.0], "%")
    html = str(histogram("<b>", [0.0, 0.0, 100.0], axis))
    heights = [float(h) for h in re.findall(r'class="column"[^>]*height="([\d.]+)"', html)]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
    assert "&lt;b&gt;: 3 values" in html


def test_tables_of_values_are_read_with_their_oddities(audit: Path) -> None:
    found = read_audit(audit)
    result = found.results[0]
    assert result.table is not None
    file = audit / result.table
    file.write_text(
        'image,name,skipped,a,b,c\n0,"x,\ny",,1.5,,word\n1,z,flat map,9,9,9\n2,z,,nan,-2,3\n3,z\n'
    )
    assert found.columns(result) == {"image": [0, 2, 3], "a": [1.5], "b": [-2.0]}
    file.write_bytes(b"\xff\xfe\x00")
    assert found.columns(result) == {}
    file.write_text('a\n"' + "x" * 200_000 + '"\n')
    assert found.columns(result) == {}
    assert "cannot be used" in found.problems[-1]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "no image"),
        (0.1, "few images"),
        (5.0, "some images"),
        (25.0, "many images"),
        (50.0, "most images"),
        (90.0, "nearly all images"),
        (99.9, "nearly all images"),
        (100.0, "every image"),
    ],
)
def test_a_share_in_words(share: float, said: str) -> None:
    assert how_often(share) == said


def test_intervals_and_radii_in_words(audit: Path) -> None:
    assert interval(_measure(1.0, None, 2.0, "%")) == ""
    assert interval(_measure(-1.0, -2.0, 0.04, "%")) == f"{MINUS}2.0 to 0.0"
    result = read_audit(audit).results[0]
    for epsilon, said in ((8 / 255, "8/255"), (0.012, "3.1/255"), (0.0, ""), ("8", ""), (7, "")):
        result.settings["epsilon"] = epsilon
        assert radius(result) == said
