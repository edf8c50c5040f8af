"""The report of an audit in a real browser. Needs chromium and chromedriver, as the run's does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Open, contrasts, find_all, find_one, press, set_up
from html_page import HOSTILE

from protofast.report import build_audit_report

pytestmark = pytest.mark.browser


@pytest.fixture
def show(browser: Any) -> Iterator[Open]:
    """Opens an audit's report; at the end the browser must have nothing to complain about."""

    def open_report(
        folder: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        set_up(browser, width=width, height=height, dark=dark)
        browser.get((folder / "audit.html").resolve().as_uri())

    browser.get_log("browser")
    yield open_report
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def _visible_layers(browser: Any, shot: Any) -> list[str]:
    """Which versions of a picture can be seen."""
    return browser.execute_script(
        """
        return [...arguments[0].querySelectorAll(".layer")]
          .filter((e) => getComputedStyle(e).visibility === "visible" && e.checkVisibility())
          .map((e) => e.querySelector("img").alt.split(":")[0]);
        """,
        shot,
    )


def test_all_pictures_are_decoded_and_none_is_fetched(
    browser: Any, audited: Path, show: Open
) -> None:
    show(audited)
    sizes = browser.execute_async_script(
        """
        const done = arguments[0];
        const images = [...document.querySelectorAll("img")];
        Promise.all(images.map(async (image) => {
          await image.decode();
          return image.naturalWidth;
        })).then(done, (error) => done(String(error)));
        """
    )
    assert isinstance(sizes, list), sizes
    content = json.loads((audited / "audit.json").read_text())
    pictures = [picture for one in content["audits"] for picture in one["pictures"]]
    assert len(sizes) == sum(len(picture["files"]) for picture in pictures)
    assert min(sizes) > 0
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name.slice(0, 60))"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []


def test_a_picture_is_switched_by_mouse_and_by_keyboard(
    browser: Any, audited: Path, show: Open
) -> None:
    from selenium.webdriver.common.keys import Keys

    show(audited)
    shot = find_all(browser, ".switched")[0]
    assert _visible_layers(browser, shot) == ["clean"]
    before = browser.execute_script("return arguments[0].getBoundingClientRect().height", shot)
    find_all(shot, ".switch label")[1].click()
    assert _visible_layers(browser, shot) == ["attacked"]
    after = browser.execute_script("return arguments[0].getBoundingClientRect().height", shot)
    assert after == before  # nothing jumps while one looks for the difference
    assert _visible_layers(browser, find_all(browser, ".switched")[1]) == ["clean"]
    press(browser, Keys.ARROW_LEFT)
    assert _visible_layers(browser, shot) == ["clean"]
    press(browser, Keys.ARROW_RIGHT)
    assert _visible_layers(browser, shot) == ["attacked"]
    outline = browser.execute_script(
        "return getComputedStyle(document.activeElement.nextElementSibling).outlineWidth"
    )
    assert float(outline.removesuffix("px")) >= 2
    find_one(shot, ".stack").click()
    assert _visible_layers(browser, shot) == ["clean"]


def test_all_pictures_of_a_section_are_switched_at_once(
    browser: Any, audited: Path, show: Open
) -> None:
    show(audited)
    section = next(one for one in find_all(browser, ".audit-of") if find_all(one, ".switched"))
    clean, attacked, both = find_all(section, ".all-shots button")
    shots = [shot for shot in find_all(section, ".switched") if shot.is_displayed()]
    assert len(shots) == 6
    attacked.click()
    assert attacked.get_attribute("aria-pressed") == "true"
    assert [_visible_layers(browser, shot) for shot in shots] == [["attacked"]] * 6
    both.click()
    assert attacked.get_attribute("aria-pressed") == "false"
    assert [_visible_layers(browser, shot) for shot in shots] == [["clean", "attacked"]] * 6
    places = [image.rect for image in find_all(shots[0], "img")]
    assert places[0]["y"] == places[1]["y"]
    assert places[0]["x"] < places[1]["x"]
    clean.click()
    assert [_visible_layers(browser, shot) for shot in shots] == [["clean"]] * 6
    other = find_all(browser, ".audit-of")[-1]
    assert not find_all(other, ".beside")


def test_pictures_can_be_switched_without_the_script(browser: Any, audited: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        set_up(browser, width=1280, height=900, dark=False)
        browser.get((audited / "audit.html").resolve().as_uri())
        assert not any(group.is_displayed() for group in find_all(browser, ".all-shots"))
        shot = find_all(browser, ".switched")[0]
        seen = [[layer.is_displayed() for layer in find_all(shot, ".layer")]]
        find_all(shot, ".switch label")[1].click()
        seen.append([layer.is_displayed() for layer in find_all(shot, ".layer")])
        assert seen == [[True, False], [False, True]]
        assert find_one(browser, "#verdicts").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_paper_all_versions_are_seen(browser: Any, audited: Path, show: Open) -> None:
    show(audited)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shot = find_all(browser, ".switched")[0]
        assert _visible_layers(browser, shot) == ["clean", "attacked"]
        assert not find_one(shot, ".switch").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("hostile", [False, True])
def test_nothing_sticks_out(
    browser: Any, audit: Path, show: Open, width: int, hostile: bool
) -> None:
    if hostile:
        content = json.loads((audit / "audit.json").read_text())
        for number, model in enumerate(content["models"]):
            model["name"] = HOSTILE[3 - number]
        for number, result in enumerate(content["audits"]):
            result["title"] = result["protocol"] = f"{HOSTILE[number % 4]}{number}"
            result["skipped"] = {HOSTILE[3]: 1}
            for one in result["numbers"]:
                one["label"] = HOSTILE[(number + 1) % 4]
            for picture in result["pictures"]:
                picture["image"] = picture["caption"] = HOSTILE[3]
                picture["files"] = dict(zip(HOSTILE[2:], picture["files"].values(), strict=True))
        content["audits"][-1]["audit"] = HOSTILE[3]
        (audit / "audit.json").write_text(json.dumps(content))
        build_audit_report(audit)
    show(audit, width=width, height=800)
    browser.execute_script(
        "for (const details of document.querySelectorAll('details')) details.open = true"
    )
    assert browser.title != "hurt"
    wide = browser.execute_script(
        """
        const width = document.documentElement.clientWidth;
        return [...document.querySelectorAll("main *")]
          .filter((e) => !e.closest(".scroll") && !e.closest(".strip") && !e.matches(".unseen"))
          .filter((e) => e.getBoundingClientRect().right > width + 1)
          .map((e) => `${e.tagName}.${e.getAttribute("class")}`);
        """
    )
    assert wide == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(
    browser: Any, audited: Path, show: Open, dark: bool
) -> None:
    show(audited, dark=dark)
    texts = [
        "h1",
        ".lede",
        ".note",
        ".said",
        ".compared",
        ".meaning dd",
        ".protocol",
        ".protocol.is-paper",
        ".overview td b",
        ".overview td small",
        ".published td",
        ".published small",
        ".group th",
        ".caveats li",
        ".reading small",
        ".switch span",
        ".switch input:checked + span",
        ".shot .file",
        ".limits li",
        ".left-out li",
    ]
    ratios = contrasts(browser, texts)
    assert None not in ratios.values(), ratios
    assert min(ratios.values()) >= 4.5, ratios


def test_drawings_are_as_wide_as_their_columns(browser: Any, audited: Path, show: Open) -> None:
    for width in (1280, 390):
        show(audited, width=width)
        shapes = browser.execute_script(
            """
            return [...document.querySelectorAll(".strip")].filter((e) => e.checkVisibility())
              .map((e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height,
                           e.closest(".lines").getBoundingClientRect().width]);
            """
        )
        assert len(shapes) > 40
        assert all(own > 80 and tall > 15 for own, tall, _ in shapes), shapes
        overlaps = browser.execute_script(
            """
            return [...document.querySelectorAll(".strip")].filter((strip) => {
              const boxes = [...strip.querySelectorAll("text")]
                .map((e) => e.getBoundingClientRect());
              return boxes.some((box, i) => i && box.left < boxes[i - 1].right + 2);
            }).length;
            """
        )
        assert overlaps == 0
