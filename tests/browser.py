"""Headless Chromium for tests: pages that tell of every error and every request, and what axe-core finds in them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder that gets pictures of each page that a test has opened


def _keep(page: Any) -> None:
    """Keep pictures of a page, light and dark, wide and narrow, named by its address."""
    place = re.sub(r"^[a-z]+://[^/]*/|[^A-Za-z0-9]+", "-", page.url).strip("-")[-60:]
    for colours in ("light", "dark"):
        for width in (1280, 375):
            page.emulate_media(color_scheme=colours)
            page.set_viewport_size({"width": width, "height": 900})
            name = f"{place or 'front'}-{colours}-{width}.png"
            page.screenshot(path=os.path.join(str(SCREENSHOTS), name), full_page=True, animations="disabled")


@dataclass
class Watched:
    """A page of the browser. problems: console errors and uncaught exceptions. requests: what it asked for."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """Headless Chromium. open: a page that is watched."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._contexts: list[Any] = []

    def open(self, url: str, *, width: int = 1280, dark: bool = False, **options: Any) -> Watched:
        context = self._browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **options
        )
        self._contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on(
            "console",
            lambda message: message.type in ("error", "warning") and watched.problems.append(message.text),
        )
        watched.page.on("pageerror", lambda error: watched.problems.append(str(error)))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.goto(url)
        return watched

    def close(self) -> None:
        for context in self._contexts:
            if SCREENSHOTS is not None:
                for page in context.pages:
                    _keep(page)
            context.close()
        self._contexts.clear()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright (extra dev)")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    browser = Browser(chromium)
    yield browser
    browser.close()


def serious_faults(page: Any) -> list[str]:
    """What axe-core finds of serious or critical impact, in words."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{fault['id']}: {fault['help']} at {[node['target'] for node in fault['nodes'][:3]]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


# Tables shown as lists that are wider than their page has room for, by their names.
TOO_WIDE = """[...document.querySelectorAll(".stack")]
  .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"""

_WATCH_FOCUS = """() => {
  const shown = { opacityProperty: true, visibilityProperty: true };
  window.isStop = (one) => one.type !== "hidden" && one.tabIndex >= 0 && one.checkVisibility(shown);
  const places = 'a[href], button, input, select, summary, [tabindex="0"]';
  window.unreached = new Set([...document.querySelectorAll(places)].filter(isStop));
  addEventListener("focusin", (event) => {
    const style = getComputedStyle(event.target);
    if (style.outlineStyle !== "none" && event.target.matches(":focus-visible")) window.unreached.delete(event.target);
  });
  return window.unreached.size;
}"""


def unreached(page: Any) -> list[str]:
    """Links, buttons, fields and what else can be operated that the Tab key does not come to, or not visibly."""
    stops = page.evaluate(_WATCH_FOCUS)
    for count in (stops + 2, stops):  # twice, for stops can appear on the way
        if page.evaluate("window.unreached.size"):
            for _ in range(count):
                page.keyboard.press("Tab")
    missed: list[str] = page.evaluate(
        "[...window.unreached].filter(isStop).map((one) => one.outerHTML.slice(0, 200))"  # what is still shown
    )
    return missed


@pytest.fixture
def find_faults() -> Any:
    return serious_faults
