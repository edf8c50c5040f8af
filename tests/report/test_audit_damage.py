"""An audit folder with damaged or missing parts: they are named, and the rest is shown."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_page import content_of, page_of, plain, result_of, write

from protofast.errors import RunFolderError
from protofast.report import build_audit_report, write_audit_report
from protofast.report.audit_files import read_audit


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
    result_of(content, "jpeg", "released")["pictures"] = [
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
    content = content_of(audit)
    spoil(content)
    write(audit, content)
    text = plain(page_of(audit).text)
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
    write(tmp_path, {"format": 1})
    assert "No audit has been finished yet" in page_of(tmp_path).text


def test_missing_files_are_named(audit: Path) -> None:
    result = content_of(audit)["audits"][3]
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
    content = content_of(audit)
    for number, result in enumerate(content["audits"]):
        result["table"] = "../secret.csv"
        for picture in result["pictures"]:
            picture["files"]["clean"] = ["../secret.png", str(secret), "\x00"][number % 3]
    write(audit, content)
    report = write_audit_report(audit)
    assert "c2VjcmV0" not in report.path.read_text(encoding="utf-8")
    assert any("../secret.csv cannot be found" in problem for problem in report.problems)
    assert sum("(clean) cannot be found" in problem for problem in report.problems) > 30


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
