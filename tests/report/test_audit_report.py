"""The report of an audit: what it says, and that nothing from outside breaks it."""

import re
from pathlib import Path

import pytest
from audit_page import MINUS, content_of, number_of, page_of, plain, result_of, write
from html_page import HOSTILE, assert_self_contained

from protofast.report import build_audit_report
from protofast.report.audit_files import read_audit
from protofast.report.audit_pictures import picture_views
from protofast.report.audit_subjects import SUBJECTS, how_often


def test_one_file_that_needs_nothing_else(audited: Path) -> None:
    text = (audited / "audit.html").read_text(encoding="utf-8")
    tags = [tag for tag, _ in assert_self_contained(text).tags]
    assert "form" not in tags
    assert "default-src 'none'" in text
    assert re.search(r"script-src 'sha256-[\w+/]+='", text)


def test_on_what_numbers_were_computed_stands_under_their_section(audit: Path) -> None:
    content = content_of(audit)
    assert "Computed on" not in plain(page_of(audit).text), "audits of before it was written down"
    jpeg = [each for each in content["audits"] if each["audit"] == "jpeg"]
    for each in jpeg:
        each["computed"] = {"CPU (AVX2), 2 threads, batches of 16": 120}
    heads = [each for each in content["audits"] if each["audit"] == "head_on_stomach"]
    for each in heads:
        each["computed"] = {"a GPU, batches of 64": 120}
    heads[0]["computed"] = {"a GPU, batches of 64": 100, "CPU <b>, 1 thread, batches of 1": 20}
    write(audit, content)
    text = plain(page_of(audit).text)
    assert text.count("Computed on CPU (AVX2), 2 threads, batches of 16.") == 1
    who = f"{content['models'][0]['name']} {heads[0]['protocol']}"
    many = "100 images on a GPU, batches of 64 and 20 images on CPU <b>, 1 thread, batches of 1"
    assert f"Computed on {who}: {many}; " in text
    assert text.count("batches of 64.") == 1
    jpeg[0]["computed"] = [1]
    write(audit, content)
    assert "'computed' cannot be used: it is no dict" in page_of(audit).text


def test_every_number_stands_there_with_its_interval_and_n(audited: Path) -> None:
    text = plain(page_of(audited).text)
    for result in content_of(audited)["audits"]:
        for number in result["numbers"]:
            digits = 1 if number["unit"] else 2
            value, low, high = (
                f"{number[key]:.{digits}f}".replace("-", MINUS) for key in ("value", "low", "high")
            )
            assert re.search(rf"{value}[^<]*?{low} to {high}", text), number


def test_the_verdicts_speak_of_the_papers_protocol(audited: Path) -> None:
    content = content_of(audited)
    text = plain(page_of(audited).text)
    verdicts = text[text.index("Verdicts Does the network") : text.index("1 Accuracy under attack")]
    for model in (0, 1):
        name = content["models"][model]["name"]
        success = number_of(content, "head_on_stomach", "paper", "success_rate", model)
        released = number_of(content, "head_on_stomach", "released", "success_rate", model)
        assert released["value"] != success["value"]
        said = (
            f"{name}: on {how_often(success['value'])}, {success['value']:.1f} % "
            f"(95 % interval {success['low']:.1f} to {success['high']:.1f}, n = {success['n']}), "
            "noise of at most 8/255 per pixel moves one of the strongest prototypes"
        )
        assert said in verdicts
        assert f"{released['value']:.1f} % (" not in verdicts
        change = number_of(content, "jpeg", "paper", "similarity_change", model)
        assert f"falls by {-change['value']:.2f} (95 % interval {-change['high']:.2f}" in verdicts
        lost = number_of(content, "spatial_misalignment", "paper", "location_change", model)
        assert f"moves {lost['value']:.1f} % of the highlighted area" in verdicts
    assert verdicts.count("aligned holds better than standard: higher on the same images, by") == 2
    assert verdicts.count("aligned holds better than standard: lower on the same images, by") == 2
    for subject in SUBJECTS:
        assert subject.low in verdicts
        assert subject.high in verdicts


@pytest.mark.parametrize(
    ("steps", "said"),
    [(10, "against it in 10 steps."), (1, "against it in 1 step."), ("ten", "against it.")],
)
def test_the_steps_of_an_attack_are_those_of_its_settings(
    audit: Path, steps: object, said: str
) -> None:
    content = content_of(audit)
    for model in (0, 1):
        result_of(content, "robust_accuracy", "paper", model)["settings"]["steps"] = steps
    write(audit, content)
    text = plain(page_of(audit).text)
    assert text.count(said) == 2
    assert "noise may set a wrong one right" in text


def test_what_was_left_out_is_counted(audit: Path) -> None:
    content = content_of(audit)
    result_of(content, "jpeg", "paper")["skipped"] = {"already wrong": 17, "flat map": 2}
    result_of(content, "jpeg", "paper", 1)["skipped"] = {}
    result_of(content, "jpeg", "released")["skipped"] = {}
    result_of(content, "jpeg", "released", 1)["skipped"] = {}
    for model in (0, 1):
        for protocol in ("paper", "released"):
            result_of(content, "robust_accuracy", protocol, model)["skipped"] = {}
    write(audit, content)
    text = plain(page_of(audit).text)
    assert "standard paper 17 of 121 rows: already wrong" in text
    assert "standard paper 2 of 121 rows: flat map" in text
    assert text.count("Nothing: every row of this audit is counted.") == 1


def test_numbers_that_no_chart_shows_are_listed_as_remarks(audited: Path) -> None:
    content = content_of(audited)
    text = plain(page_of(audited).text)
    for model, name in enumerate(("standard", "aligned")):
        share = number_of(content, "jpeg", "released", "wrong_compressed", model)["value"]
        said = f"{name} released {share:.1f} % : Named wrongly with its artefacts"
        assert said.replace(" :", ":") in text


def test_names_from_outside_are_harmless(audit: Path) -> None:
    content = content_of(audit)
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
    write(audit, content)
    page = page_of(audit)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == tags.count("style") == 1
    for tag, attributes in page.tags:
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
        assert not any(name.startswith("on") for name in attributes)
    assert "<script>document.title='hurt'</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    text = (audit / "audit.html").read_text(encoding="utf-8")
    assert not set("\x00\x1b\u202e\ud800") & set(text)


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
    text = plain(page_of(audit).text)
    assert text.count("Left out to keep this file small") == sum(
        bool(album.left_out) for album in some.values()
    )


def test_more_versions_than_switches_are_all_shown(audit: Path) -> None:
    content = content_of(audit)
    result = result_of(content, "jpeg", "paper")
    file = result["pictures"][0]["files"]["clean"]
    for number, picture in enumerate(result["pictures"]):
        picture["files"] = {f"step {step}": file for step in range(6 + number)}
    for other in content["audits"]:
        if other is not result:
            other["pictures"] = []
    write(audit, content)
    page = page_of(audit)
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
