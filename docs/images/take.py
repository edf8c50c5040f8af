"""Takes the three pictures of an audit's report that docs/audit.md shows.

    protofast demo && python docs/images/take.py protofast-demo/audit/audit.html

The report must be of all four audits. Needs chromium, chromedriver, and selenium of the test extra.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTH = 1180  # of the page, in pixels
CONTENTS = 250  # of these, the list of contents at the left
_LARGEST = 390_000  # bytes; what is larger is written with 256 colours


class Shot(NamedTuple):
    """A piece of the page: from so many pixels below the top of an element, this high.

    Without a height, as high as the figure that the element is the title of.
    """

    file: str
    element: str
    below: int
    left: int
    height: int = 0
    press: str = ""  # what is clicked before


SHOTS = (
    Shot("audit-opening.png", "html", 0, 0, 1140),
    Shot("audit-head-on-stomach.png", "#audit-1", 40, CONTENTS, 735, "#audit-1 [data-show-all]"),
    Shot("audit-misalignment.png", "#audit-3-table-1", -20, CONTENTS),
)


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="audit.html")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="a folder")
    said = parser.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = _browser(profile)
        try:
            browser.get(said.report.resolve().as_uri())
            for shot in SHOTS:
                _write(_taken(browser, shot), said.out / shot.file)
        finally:
            browser.quit()


def _browser(profile: str) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wishes = {"prefers-color-scheme": "light", "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    return browser


def _taken(browser: Any, shot: Shot) -> Image.Image:
    if shot.press:
        browser.find_element("css selector", shot.press).click()
    top, figure = browser.execute_script(
        """
        const element = document.querySelector(arguments[0]), figure = element.closest("figure");
        return [element.getBoundingClientRect().top + scrollY, figure && figure.offsetHeight];
        """,
        shot.element,
    )
    height = shot.height or figure - shot.below
    clip = {"x": shot.left, "y": max(0, top + shot.below), "height": height, "scale": 1}
    taken = browser.execute_cdp_cmd(
        "Page.captureScreenshot",
        {
            "format": "png",
            "captureBeyondViewport": True,
            "clip": {**clip, "width": WIDTH - shot.left},
        },
    )
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


def _write(image: Image.Image, file: Path) -> None:
    image.save(file, optimize=True)
    if file.stat().st_size > _LARGEST:
        image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
    print(f"{file}: {image.width} x {image.height}, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
