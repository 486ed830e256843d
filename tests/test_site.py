"""The documentation site: it builds without a warning, is searchable, asks no server for anything, and is spelt right."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, unreached

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself, and the links in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(str(values["src"]))
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loaded.append(str(values["href"]))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))


def test_every_page_is_there_and_needs_no_server(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        built = site / page.relative_to(ROOT / "docs").with_suffix(".html")
        found = Loaded(built.read_text())
        assert found.loaded
        assert not [address for address in found.loaded if re.match(r"(https?:)?//", address)], built
        for link in found.links:
            target, _, anchor = link.partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            path = (built.parent / target).resolve() if target else built
            assert path.exists(), f"{page.name}: {link}"
            if anchor and path.suffix == ".html":
                assert f'id="{anchor}"' in path.read_text(), f"{page.name}: {link}"


def test_it_can_be_searched(site: Path) -> None:
    text = (site / "search/search_index.js").read_text()
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    titles = " ".join(entry["title"] for entry in index["docs"])
    for word in ("Recipes", "Deduplication", "Exit codes"):
        assert word in titles, word


def test_the_site_opens_in_a_browser_from_the_disk(site: Path, browser: Any) -> None:
    watched = browser.open((site / "own-corpus.html").as_uri(), width=375)
    assert watched.problems == []
    assert [url for url in watched.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert watched.page.locator("h1").first.inner_text().startswith("Your own corpus in ten minutes")
    wide = browser.open((site / "index.html").as_uri()).page
    # The page loads its index when the field is entered, and searches when a key is let go: filling the field in
    # has neither, so it is typed.
    typed = wide.locator(".md-search__input")
    typed.click()
    wide.locator(".md-search-result__meta", has_text="Type to start searching").wait_for(state="attached")
    typed.press_sequentially("decontaminate", delay=10)
    wide.locator(".md-search-result__link").first.wait_for()
    assert wide.locator(".md-search-result__link").count() >= 1


def test_spelling() -> None:
    pytest.importorskip("codespell_lib", reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", ["index.html", "own-corpus.html"])
def test_pages_are_accessible_and_narrow(
    site: Path, browser: Browser, find_faults: Callable[[Any], list[str]], page: str
) -> None:
    """In light on a wide screen, in dark on a phone."""
    for width, dark in ((1280, False), (375, True)):
        watched = browser.open((site / page).as_uri(), width=width, dark=dark)
        watched.page.wait_for_function(
            "!document.querySelector('.md-typeset table') || document.querySelector('.md-typeset__scrollwrap[tabindex]')"
        )
        assert find_faults(watched.page) == []
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
        assert all(request.startswith("file:") for request in watched.requests)


def test_everything_can_be_reached_by_the_tab_key(site: Path, browser: Browser) -> None:
    """On a wide screen, and on a phone, where menu and search have to be opened first."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    assert unreached(browser.open((site / "add.html").as_uri()).page) == []
    page = browser.open((site / "add.html").as_uri(), width=375).page
    assert unreached(page) == []
    links = page.locator(".md-nav--primary a[href$='forget.html']")
    assert not links.is_visible()
    page.get_by_role("button", name="Menu").focus()
    page.keyboard.press("Enter")
    links.wait_for()  # of the section that the page is in
    assert unreached(page) == []
    page.get_by_role("button", name="Menu").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Search").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("decontaminate")
    page.locator(".md-search-result__link").first.wait_for()
    for _ in range(5):  # what is found is shown anew while the last letters are typed
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        with contextlib.suppress(PlaywrightTimeout):
            page.wait_for_url(lambda url: "/add.html" not in url, timeout=5000)
            break
    assert "/add.html" not in page.url
