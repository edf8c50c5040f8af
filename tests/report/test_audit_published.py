"""The published numbers beside ours: each under the protocol that it measures."""

import re
from pathlib import Path
from typing import Any

import pytest
from audit_page import content_of, number_of, paper_table, write

from protofast.report import build_audit_report
from protofast.report.published import SPATIAL_MISALIGNMENT


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


def test_accuracy_under_attack_stands_under_its_own_protocol(audit: Path) -> None:
    content = content_of(audit)
    said = {
        (protocol, name): number_of(
            content, "robust_accuracy", protocol, "adversarial_accuracy", model
        )
        for protocol in ("paper", "released")
        for model, name in enumerate(("standard", "aligned"))
    }
    for place, number in enumerate(said.values()):
        number["value"] = 11.1 + 20 * place
    write(audit, content)
    rows = paper_table(build_audit_report(audit).read_text("utf-8"), "2021, Table 3")
    assert set(rows) == {"paper", "released", "targeted"}
    for protocol in rows:
        for name in ("standard", "aligned"):
            own = "paper" if protocol == "targeted" else protocol
            for key, number in said.items():
                assert (f"{number['value']:.1f}" in rows[protocol][name]) == (key == (own, name))


def test_accuracy_under_attack_is_missing_where_its_protocol_was_not_run(audit: Path) -> None:
    content = content_of(audit)
    number = number_of(content, "robust_accuracy", "paper", "adversarial_accuracy")
    number["value"] = 13.7
    content["audits"] = [
        one
        for one in content["audits"]
        if (one["audit"], one["protocol"]) != ("robust_accuracy", "released")
    ]
    write(audit, content)
    rows = paper_table(build_audit_report(audit).read_text("utf-8"), "2021, Table 3")
    assert "13.7" in rows["paper"]["standard"]
    assert "13.7" not in rows["released"]["standard"]
    assert rows["released"]["standard"].count("\N{EN DASH}") == 2


def test_rows_of_another_training_than_the_tables_say_so(audit: Path) -> None:
    content = content_of(audit)
    html = build_audit_report(audit).read_text("utf-8")
    for table in ("2021, Table 2", "2021, section 4"):
        for rows in paper_table(html, table).values():
            assert "not trained so" in rows["standard"]
            assert "trained so" not in rows["aligned"]
    for rows in paper_table(html, "2021, Table 4").values():
        assert "not trained so" in rows["standard"]
        assert "adversarial, alignment, masking; not trained so" in rows["aligned"]
    assert "trained so" not in str(paper_table(html, "Sacha et al. 2024"))
    content["models"][0]["settings"] = None
    write(audit, content)
    rows = paper_table(build_audit_report(audit).read_text("utf-8"), "2021, Table 2")["paper"]
    assert "it is not known whether it was trained so" in rows["standard"]


@pytest.mark.parametrize(
    ("trained", "now", "said"),
    [
        ({}, {}, ""),
        ({"at": "file"}, {"at": "file"}, ""),
        ({}, {"at": "input"}, "trained at quality 20, audited at quality 20, after resizing"),
        ({"quality": 5}, {"quality": 5}, "here at quality 5"),
        ({"at": "input"}, {"at": "input"}, "here at quality 20, after resizing"),
        ({"quality": 5, "at": "input"}, {}, "trained at quality 5, after resizing, audited at qu"),
        ({}, {"quality": 5}, "trained at quality 20, audited at quality 5"),
        ({"compressed": "none"}, {"quality": 5}, "not trained so; here at quality 5"),
        ({"compressed": "none", "quality": 5}, {}, "not trained so"),
    ],
)
def test_another_compression_than_the_papers_is_said(
    audit: Path, trained: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    content = content_of(audit)
    jpeg = {"compressed": "odd", "quality": 20, **trained}
    content["models"][0]["settings"] = {"data": {"jpeg": jpeg}}
    for one in content["audits"]:
        if one["audit"] == "jpeg" and one["model"] == 0:
            one["settings"].update(now)
    write(audit, content)
    html = build_audit_report(audit).read_text("utf-8")
    for table in ("2021, Table 2", "2021, section 4"):
        for rows in paper_table(html, table).values():
            assert said in rows["standard"]
            assert ("at quality" in rows["standard"]) == ("at quality" in said)
            assert "at quality" not in rows["aligned"]


def test_published_numbers_are_shown_where_ours_lack_their_protocol(audit: Path) -> None:
    content = content_of(audit)
    content["audits"] = [one for one in content["audits"] if one["protocol"] == "paper"]
    write(audit, content)
    html = build_audit_report(audit).read_text(encoding="utf-8")
    assert html.count('<small class="origin">published</small>') > 15
    assert "uniform noise outside the box, no attack" in html
