"""A corpus of hostile text, the dataset made of it, and a browser that tells of every error and every request."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import btlm_data

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
TURNED = "user\u202egpj.exe\u2066 and a bell \x07 and \x1b[31m"
VOCABULARY = [word for word in (Path(__file__).parents[2] / "LICENSE").read_text().split() if word.isalpha()]
PLANTED = "the quick zebra signs a planted sentence"


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(VOCABULARY, k=count))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 documents of two sources, whose names and texts are hostile; duplicates; records that cannot be read."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(7)
    lines: list[str] = []
    for number in range(200):
        text = words(chance, 120)
        if number == 20:
            text = f"{SCRIPT} {TURNED} {PLANTED} {words(chance, 300)}"
        if number == 21:
            text = "x" * 1_000_000 + " end of a long line"
        if number == 22:
            text = words(chance, 100_000)
        if number in (31, 41):
            text = json.loads(lines[30])["text"]
        if number == 51:
            text = json.loads(lines[50])["text"].replace(" of ", " edited ", 1) + " edited"
        source = ("<b>Web</b>", "Books")[number % 2]
        lines.append(json.dumps({"text": text, "meta": {"redpajama_set_name": source}}))
    lines += ['{"text": "<i>cut', '{"no": "text"}']
    (folder / "a <script>.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset made of it, with its report."""
    out = tmp_path_factory.mktemp("hostile") / "shards"
    recipe = {"source": str(corpus), "seq_len": 512, "run": {"out": str(out), "workers": 1}}
    btlm_data.prepare(recipe, holdout__fraction=0.05, clean__filters=[{"min_chars": 20}])
    return out


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


@pytest.fixture
def find_faults() -> Any:
    return serious_faults
