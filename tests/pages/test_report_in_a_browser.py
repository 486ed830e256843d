"""report.html in headless Chromium: no error, no request, tokens by mouse and keyboard, narrow screens, axe-core."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser import TOO_WIDE, Browser, unreached

# Words of charts that are not whole inside their picture.
CUT_LABELS = """[...document.querySelectorAll("svg text")].filter((text) => {
  const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
  return box.x < view.x || box.x + box.width > view.x + view.width || box.y + box.height > view.y + view.height;
}).map((text) => text.textContent)"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_quietly_and_is_accessible(
    shards: Path, browser: Browser, find_faults: Callable[[Any], list[str]], dark: bool
) -> None:
    url = (shards / "report.html").as_uri()
    watched = browser.open(url, dark=dark)
    assert watched.problems == []
    assert watched.requests == [url], "nothing but the file itself is asked for"
    assert watched.page.title() == "shards: dataset report"
    assert watched.page.evaluate(CUT_LABELS) == []
    # The page's own policy forbids foreign scripts; the check runs in a copy of the page without it.
    free = browser.open("about:blank", dark=dark)
    text = (shards / "report.html").read_text()
    free.page.set_content(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    assert find_faults(free.page) == []


def test_tokens_show_their_details_by_mouse_and_keyboard(shards: Path, browser: Browser) -> None:
    page = browser.open((shards / "report.html").as_uri()).page
    text = page.locator(".text[data-sample]").first
    panel = page.locator(".token").first
    data = page.evaluate(
        "JSON.parse(document.querySelector('script[type=\"application/json\"]').textContent)"
    )
    text.locator("b").nth(5).hover()
    assert panel.locator("dd").nth(1).inner_text() == str(data["ids"][5])
    assert panel.locator("dd").nth(3).inner_text() == str(data["labels"][5])
    text.locator("b").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert panel.locator("dd").nth(1).inner_text() == str(data["ids"][2])
    assert "not known" not in panel.inner_text()
    page.keyboard.press("End")
    assert panel.locator("dd").nth(1).inner_text() == str(data["ids"][-1])


def test_everything_can_be_reached_by_the_tab_key(shards: Path, browser: Browser) -> None:
    page = browser.open((shards / "report.html").as_uri()).page
    assert unreached(page) == []
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert unreached(page) == [], "what is folded at first"


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_a_narrow_screen_never_scrolls_sideways(shards: Path, browser: Browser, script: bool) -> None:
    page = browser.open((shards / "report.html").as_uri(), width=375, java_script_enabled=script).page
    assert page.locator("main").bounding_box()["width"] <= 375
    assert page.locator("section").first.is_visible()
    assert page.locator(".text b").first.is_visible()
    if script:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate(TOO_WIDE) == [], "tables of many columns are lists"


def test_it_prints(shards: Path, browser: Browser) -> None:
    width = 688  # CSS pixels of A4 between its margins
    page = browser.open((shards / "report.html").as_uri(), width=width).page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no column is cut"
    assert page.pdf().startswith(b"%PDF")
