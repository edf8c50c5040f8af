"""The report in a real browser. Needs chromium and chromedriver; see the fixture ``browser``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Open, contrasts, find_all, find_one, press, set_up, wait
from html_page import HOSTILE

from protofast.report import build_report

pytestmark = pytest.mark.browser


@pytest.fixture
def show(browser: Any) -> Iterator[Open]:
    """Opens a report from its file; at the end the browser must have nothing to complain about."""

    def open_report(run: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        set_up(browser, width=width, height=height, dark=dark)
        browser.get((run / "report.html").resolve().as_uri())
        browser.execute_script("try { localStorage.clear() } catch {}")

    browser.get_log("browser")
    yield open_report
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def _shown(browser: Any) -> list[int]:
    """Numbers of the prototypes in the gallery that are visible, in order."""
    cards = [card for card in find_all(browser, ".prototype") if card.is_displayed()]
    return [int(card.get_attribute("data-number")) for card in cards]


def _focused(browser: Any) -> str:
    return browser.execute_script(
        "const e = document.activeElement; return e.id || e.dataset.open || e.className"
    )


def test_all_pictures_are_decoded(browser: Any, explained: Path, show: Open) -> None:
    show(explained)
    sizes = browser.execute_async_script(
        """
        const done = arguments[0];
        const templates = [...document.querySelectorAll("template")].map((t) => t.content);
        const images = [document, ...templates].flatMap((d) => [...d.querySelectorAll("image")]);
        Promise.all(images.map(async (image) => {
          const picture = new Image();
          picture.src = image.getAttribute("href");
          await picture.decode();
          return picture.naturalWidth;
        })).then(done, (error) => done(String(error)));
        """
    )
    assert isinstance(sizes, list), sizes
    summary = json.loads((explained / "explanations" / "summary.json").read_text())
    assert len(sizes) >= len(summary["images"]) + len(summary["prototypes"])
    assert min(sizes) > 0
    lost = browser.execute_script(
        """
        const templates = [...document.querySelectorAll("template")].map((t) => t.content);
        return [document, ...templates].flatMap((d) => [...d.querySelectorAll("use")])
          .filter((use) => !document.querySelector(use.getAttribute("href"))).length;
        """
    )
    assert lost == 0
    boxes = browser.execute_script(
        """
        return [...document.querySelectorAll(".pic, .patch svg")].filter((e) => e.checkVisibility())
          .map((e) => e.getBoundingClientRect())
          .filter((r) => !(r.width > 4 && r.height > 4)).length;
        """
    )
    assert boxes == 0


def test_searching_filtering_and_sorting_by_mouse(
    browser: Any, explained: Path, show: Open
) -> None:
    show(explained)
    assert _shown(browser) == list(range(12))
    search = find_one(browser, "#search")
    search.send_keys("PROTOTYPE 7")
    assert _shown(browser) == [7]
    assert find_one(browser, "#shown").text == "1 of 12 prototypes"
    assert len([head for head in find_all(browser, ".class") if head.is_displayed()]) == 1
    search.clear()
    search.send_keys("prototype 1")  # a number is meant whole
    assert _shown(browser) == [1]
    search.clear()
    search.send_keys("nothing is called this")
    assert _shown(browser) == []
    find_one(browser, "#reset").click()
    assert _shown(browser) == list(range(12))
    find_one(browser, "#class option:nth-child(3)").click()
    assert _shown(browser) == [3, 4, 5]
    find_one(browser, "#class option:first-child").click()
    find_one(browser, "#order option[value=weight]").click()
    weights = [float(card.get_attribute("data-weight")) for card in find_all(browser, ".prototype")]
    assert weights == sorted(weights, reverse=True)
    assert not any(head.is_displayed() for head in find_all(browser, ".class"))
    find_one(browser, "#order option[value=class]").click()
    assert _shown(browser) == list(range(12))
    flagged = find_all(browser, "#flagged")
    if flagged:
        flagged[0].click()
        expected = [
            int(card.get_attribute("data-number"))
            for card in find_all(browser, ".prototype[data-flagged='1']")
        ]
        assert _shown(browser) == expected


def test_heat_maps_are_switched_on_and_off(browser: Any, explained: Path, show: Open) -> None:
    show(explained)

    def visible(selector: str) -> int:
        # checkVisibility() does not look at the parents of elements inside an SVG.
        return browser.execute_script(
            """
            const shown = (e) => !e.parentElement
              || (getComputedStyle(e).display !== "none" && shown(e.parentElement));
            return [...document.querySelectorAll(arguments[0])]
              .filter((e) => getComputedStyle(e).visibility === "visible" && shown(e)).length;
            """,
            selector,
        )

    assert visible(".prototype .heat") == 0
    find_one(browser, "#heat").click()
    assert find_one(browser, "#heat").get_attribute("aria-pressed") == "true"
    assert visible(".prototype .heat") == 12
    find_one(browser, "#heat").click()
    assert visible(".prototype .heat") == 0
    assert visible(".prediction .heat") == 0
    buttons = find_all(find_all(browser, ".prediction")[0], ".here")
    for button in buttons:
        button.click()
        assert [b.get_attribute("aria-pressed") for b in buttons].count("true") == 1
        assert button.get_attribute("aria-pressed") == "true"
        assert visible(".prediction .heat") == 1
    buttons[-1].click()
    assert visible(".prediction .heat") == 0
    find_one(browser, "#heat-predictions").click()
    on_page = len([a for a in find_all(browser, ".prediction") if a.is_displayed()])
    assert visible(".prediction .heat") == on_page
    more = find_all(browser, ".more")
    for button in more:
        assert find_one(browser, f"#{button.get_attribute('aria-controls')}").is_displayed()
        button.click()
    assert all(article.is_displayed() for article in find_all(browser, ".prediction"))


def test_a_prototype_is_enlarged_by_mouse_and_by_keyboard(
    browser: Any, explained: Path, show: Open
) -> None:
    from selenium.webdriver.common.keys import Keys

    show(explained)
    dialog = find_one(browser, "#detail")
    find_one(browser, "#prototype-4 .card").click()
    assert dialog.is_displayed()
    assert find_one(browser, "#detail-title").text.startswith("Prototype 4")
    assert len(find_all(dialog, ".near li")) == 6
    toggle = find_one(dialog, "[data-toggle-heat]")
    toggle.click()
    assert find_one(dialog, ".portrait .heat").value_of_css_property("visibility") == "visible"
    find_one(dialog, "[data-step='1']").click()
    assert find_one(browser, "#detail-title").text.startswith("Prototype 5")
    press(browser, Keys.ARROW_RIGHT)
    assert find_one(browser, "#detail-title").text.startswith("Prototype 6")
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert find_one(browser, "#detail-title").text.startswith("Prototype 4")
    press(browser, Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert _focused(browser) == "4"  # back where one was
    press(browser, Keys.ENTER)
    assert dialog.is_displayed()
    find_one(dialog, "[data-close]").click()
    assert not dialog.is_displayed()
    find_all(browser, ".prediction .there")[0].click()
    assert dialog.is_displayed()


def test_everything_is_reached_by_keyboard(browser: Any, explained: Path, show: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    show(explained)
    press(browser, Keys.TAB)
    assert _focused(browser) == "skip"
    press(browser, Keys.ENTER)
    assert _focused(browser) == "main"
    reached = set()
    for _ in range(120):
        press(browser, Keys.TAB)
        name = _focused(browser)
        reached.add(name)
        outline = browser.execute_script(
            "const s = getComputedStyle(document.activeElement);"
            "return s.outlineStyle === 'none' ? 0 : parseFloat(s.outlineWidth)"
        )
        assert outline >= 2 or name in ("", "BODY"), f"no focus to be seen on {name}"
        if name == "order":
            break
    assert {"heat-predictions", "here", "0", "search", "class", "order"} <= reached
    find_one(browser, "#search").send_keys("2", Keys.ENTER)  # must not send a form
    assert 2 in _shown(browser)


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("hostile", [False, True])
def test_nothing_sticks_out_on_a_phone(
    browser: Any, run: Path, show: Open, width: int, hostile: bool
) -> None:
    if hostile:
        file = run / "explanations" / "summary.json"
        summary = json.loads(file.read_text())
        summary["classes"] = HOSTILE
        for number, image in enumerate(summary["images"].values()):
            image["name"] = HOSTILE[number % 4]
        file.write_text(json.dumps(summary))
        build_report(run)
    show(run, width=width, height=800)
    assert browser.title != "hurt"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    find_all(browser, ".card")[0].click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dialog = find_one(browser, "#detail")
    assert browser.execute_script("return arguments[0].scrollWidth", dialog) <= width
    assert browser.title != "hurt"


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(
    browser: Any, explained: Path, show: Open, dark: bool
) -> None:
    show(explained, dark=dark)
    texts = [
        "h1",
        ".lede",
        ".intro",
        ".note",
        ".facts dt",
        ".facts small",
        ".rail a",
        ".quiet",
        ".what",
        ".verdict",
        ".is-right .verdict",
        ".is-wrong .verdict",
        ".role",
        ".file",
        ".caption",
        ".flag",
        ".tools label",
        ".matrix thead th",
        ".pairs .number",
        ".limits li",
        ".listing summary",
        ".active",
        ".matrix td.right:not(.none)",
        ".matrix td.wrong:not(.none)",
    ]
    browser.execute_script(  # the strongest tint there can be
        "for (const cell of document.querySelectorAll('.matrix td'))"
        "  cell.style.setProperty('--share', 1)"
    )
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in page[4:-1].split(",")) < 200) == dark
    ratios = contrasts(browser, texts)
    found = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    assert len(found) >= 21
    assert min(found.values()) >= 4.5, found


def test_the_page_turns_dark_by_its_button_and_stays_so(
    browser: Any, explained: Path, show: Open
) -> None:
    show(explained)
    button = find_one(browser, "#theme")
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(ground)
    assert button.text == "Dark page"
    button.click()
    assert button.text == "Light page"
    assert browser.execute_script(ground) != light
    browser.refresh()
    assert browser.execute_script(ground) != light
    find_one(browser, "#theme").click()
    assert browser.execute_script(ground) == light


def test_many_classes_are_read_by_pointer_and_keyboard(browser: Any, run: Path, show: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    count = 60
    names = [f"kind {number}" for number in range(count)]
    rows = [[0] * count for _ in names]
    for number in range(count):
        rows[number][number] = 3
    rows[1][0] = 1
    lines = [",".join(["x", *names])]
    lines += [",".join([name, *map(str, row)]) for name, row in zip(names, rows, strict=True)]
    (run / "evaluation" / "confusion.csv").write_text("\n".join(lines))
    build_report(run)
    show(run)
    field, text = find_one(browser, "#field"), find_one(browser, "#field-text")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    browser.execute_script("arguments[0].focus()", field)
    press(browser, Keys.ARROW_DOWN)
    assert field.get_attribute("role") == "application"  # an image would not get the keys
    assert text.text == "kind 1: 1 image taken for kind 0."
    press(browser, Keys.ARROW_RIGHT)
    assert text.text == "kind 1: 3 images named rightly."
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(field).perform()
    wait(lambda: text.text.startswith(("kind 29", "kind 30")))


def test_the_page_works_without_its_script(browser: Any, explained: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((explained / "report.html").resolve().as_uri())
        assert not find_one(browser, "#tools").is_displayed()
        assert len([card for card in find_all(browser, ".prototype") if card.is_displayed()]) == 12
        assert all(article.is_displayed() for article in find_all(browser, ".prediction"))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_it_can_be_printed(browser: Any, explained: Path, show: Open) -> None:
    show(explained)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000
