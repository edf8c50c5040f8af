"""Driving the browser, see the fixture ``browser``."""

import time
from collections.abc import Callable
from typing import Any

Open = Callable[..., None]
"""Opens the report of a folder."""


def set_up(browser: Any, *, width: int, height: int, dark: bool) -> None:
    """The window's size, and what its reader prefers."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    wishes = {
        "prefers-color-scheme": "dark" if dark else "light",
        "prefers-reduced-motion": "reduce",  # a page that glides cannot be clicked on
    }
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find_all(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def find_one(browser: Any, selector: str) -> Any:
    (found,) = find_all(browser, selector)
    return found


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def wait(condition: Callable[[], Any]) -> None:
    """Until it holds; a busy machine may take its time."""
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


_CONTRAST = """
const parse = (text) => {  // rgb(…) in 0 … 255, color(srgb …) in 0 … 1
  const [r, g, b, ...rest] = text.match(/[\\d.]+/g).map(Number);
  return [...[r, g, b].map((v) => text.startsWith("color") ? 255 * v : v), ...rest];
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
    if (a > 0.99) return [r, g, b];
  }
};
return arguments[0].map((selector) => {
  const element = document.querySelector(selector);
  if (!element) return [selector, null];
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
  return [selector, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
});
"""


def contrasts(browser: Any, selectors: list[str]) -> dict[str, float | None]:
    """How far the first text of each selector is from its ground, after WCAG; None if missing."""
    return dict(browser.execute_script(_CONTRAST, selectors))
