"""`btlm-data serve` as a process: what it answers, to whom, and its pages in headless Chromium."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from btlm_data.serve import pairs, run_state
from btlm_data.serve.served import Served
from tests.browser import Browser
from tests.pages.conftest import PLANTED

ROOT = Path(__file__).resolve().parents[2]


def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server, and the address that it printed."""
    command = [sys.executable, "-m", "btlm_data.cli", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"Open (\S+) ", line)
    assert found, line
    return process, found[1]


def stopped(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="session")
def address(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    other = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(shards, other, ignore=shutil.ignore_patterns(".work"))
    process, url = started(str(shards), str(other), str(shards / ".work"))
    yield url.rstrip("/")
    stopped(process)


def ask(
    address: str, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, str, Any]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def test_every_view_answers_under_a_strict_policy(address: str) -> None:
    for path in ("/", "/0/report", "/0/sample", "/0/documents", "/0/document?row=3", "/0/search", "/0/search?q=zebra",
                 "/0/pairs", "/run/0", "/compare?a=0&b=1", "/static/page.css", "/static/serve.js"):  # fmt: skip
        status, text, headers = ask(address, path)
        assert status == 200, (path, text)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "<script>document" not in text
    assert "The same dataset" in ask(address, "/compare?a=0&b=1")[1]


def test_wrong_addresses_are_answered_in_words(address: str) -> None:
    for path in ("/7/report", "/0/sample?n=999999", "/0/sample?split=nosuch", "/0/document?row=-1", "/0/pairs?n=99999",
                 "/run/4", "/compare?a=0&b=9", "/0/documents?first=x", "/static/..%2Fserve.py"):  # fmt: skip
        status, text, _ = ask(address, path)
        assert status == 404, path
        assert "Traceback" not in text
    for path in ("/nothing", "/static/../app.py"):
        assert ask(address, path)[0] == 404


def test_other_sites_get_nothing(address: str) -> None:
    assert ask(address, "/", Host="evil.example:80")[0] == 421
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert ask(address, "/0/verdict", "POST", "pair=0&next=0&verdict=right", **form)[0] == 403
    assert (
        ask(
            address, "/0/verdict", "POST", "pair=0&next=0&verdict=right", Origin="http://evil.example", **form
        )[0]
        == 403
    )
    assert ask(address, "/0/verdict", "POST", "pair=0&next=0&verdict=maybe", Origin=address, **form)[0] == 400
    assert ask(address, "/0/verdict", "POST", "x" * 9999, Origin=address, **form)[0] == 400


def test_another_host_needs_the_token(shards: Path) -> None:
    process, url = started(str(shards), "--host", "0.0.0.0")
    try:
        parts = urlsplit(url.replace("0.0.0.0", "127.0.0.1"))
        place = f"http://127.0.0.1:{parts.port}"
        assert ask(place, "/")[0] == 403
        assert ask(place, "/0/sample")[0] == 403
        assert ask(place, "/?token=wrong")[0] == 403
        status, _, headers = ask(place, f"/?{parts.query}")
        assert status == 303
        cookie = headers["set-cookie"].partition(";")[0]
        assert "HttpOnly" in headers["set-cookie"]
        assert ask(place, "/0/sample", Cookie=cookie)[0] == 200
    finally:
        stopped(process)


def test_a_random_sample_takes_less_than_a_tenth_of_a_second_of_work(shards: Path) -> None:
    served = Served(shards, "shards")
    served.sample("train", 0)  # the tokenizer is loaded once
    began = time.process_time()
    for number in range(10):
        served.sample("train", number)
    assert (time.process_time() - began) / 10 < 0.1


def test_search_finds_exactly_the_samples_that_hold_a_text(shards: Path) -> None:
    served = Served(shards, "shards")
    found = served.search(PLANTED, served.splits, 2)
    assert found.complete
    expected = {
        (split, number)
        for split in served.splits
        for number in range(served.num_samples(split))
        if PLANTED in served.tokenizer.decode(served.sample(split, number).ids)  # type: ignore[union-attr]
    }
    assert {(hit.split, hit.sample) for hit in found.hits} == expected
    assert expected
    assert not served.search("no such words at all", served.splits, 1).hits


def test_a_document_is_shown_beside_its_original(shards: Path, corpus: Path, address: str) -> None:
    served = Served(shards, "shards")
    rows, _ = served.documents("train", count=3)
    lines = (corpus / rows[1]["file"]).read_text().splitlines()
    text = json.loads(lines[rows[1]["line"]])["text"]
    assert served.document_text("train", 1) == text
    shown = unescape(ask(address, "/0/document?row=1")[1])
    assert shown.count(text) == 2
    assert "Both are equal" in shown


def test_documents_are_listed_by_source_and_file(shards: Path) -> None:
    served = Served(shards, "shards")
    everything, after = served.documents("train", count=10_000)
    assert after is None
    books, _ = served.documents("train", source="Books", count=10_000)
    assert [row["row"] for row in books] == [row["row"] for row in everything if row["source"] == "Books"]
    after = served.documents("train", count=7)[1]
    assert after == 7
    assert [row["row"] for row in served.documents("train", first=7, count=7)[0]] == list(range(7, 14))
    assert served.documents("train", file="no such file")[0] == []


def test_words_that_differ_are_marked_and_nothing_is_lost() -> None:
    left, right = "one two three\nfour", "one TWO three\nfour five"
    a, b, complete = pairs.differences(left, right)
    assert complete
    assert "".join(piece for piece, _ in a) == left
    assert "".join(piece for piece, _ in b) == right
    assert [piece for piece, differs in a if differs] == ["two "]
    assert [piece for piece, differs in b if differs] == ["TWO ", "five"]
    assert not pairs.differences("x " * 9000, "x " * 9000)[2]


def test_the_interval_is_wilsons() -> None:
    assert pairs.interval(0, 0) == (0.0, 1.0)
    low, high = pairs.interval(8, 10)  # by hand: (0.4902, 0.9433)
    assert [low, high] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert pairs.interval(10, 10)[1] == pytest.approx(1.0)


def test_a_run_is_seen_step_by_step(tmp_path: Path) -> None:
    (tmp_path / "work-folder.json").write_text("{}")
    for step, count in (("clean", 3), ("dedupe.keys", 1)):
        (tmp_path / "receipts" / step).mkdir(parents=True)
        for number in range(count):
            path = tmp_path / "receipts" / step / f"{number}.json"
            path.write_text("{}")
            os.utime(path, (1_000_000 + 10 * number, 1_000_000 + 10 * number + (step != "clean")))
    assert run_state.is_work_folder(tmp_path)
    state = run_state.read(tmp_path)
    assert [(step.name, step.done) for step in state.steps] == [("clean", 3), ("dedupe.keys", 1)]
    assert state.steps[0].rate == pytest.approx(0.1)
    assert not state.held
    (tmp_path / "run.lease").write_text("{}")
    assert run_state.read(tmp_path).held


# In a browser -----------------------------------------------------------------------------------------------------

PAGES = ["/", "/0/report", "/0/sample?split=train&n=0", "/0/documents", "/0/document?split=train&row=2",
         f"/0/search?q={quote(PLANTED)}", "/0/pairs?n=0", "/compare?a=0&b=1"]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_quiet_narrow_and_accessible(
    address: str, browser: Browser, find_faults: Callable[[Any], list[str]], path: str
) -> None:
    watched = browser.open(address + path, bypass_csp=True)  # axe is put into the page
    assert watched.problems == []
    assert all(request.startswith(address) for request in watched.requests)
    assert watched.page.title() != "owned"
    assert find_faults(watched.page) == []
    watched.page.set_viewport_size({"width": 375, "height": 800})
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.open(address + path, dark=True).problems == [], "also under its policy"


def test_enormous_documents_do_not_break_the_page(address: str, shards: Path, browser: Browser) -> None:
    served = Served(shards, "shards")
    largest = [
        (row["bytes"], row["tokens"], split, row["row"])
        for split in served.splits
        for row in served.documents(split, count=10_000)[0]
    ]
    assert max(largest)[0] > 1_000_000 - 10, "the line of a million characters"
    assert max(row[1] for row in largest) > 100_000
    for _, _, split, number in sorted(largest)[-2:]:
        watched = browser.open(f"{address}/0/document?split={split}&row={number}", width=375)
        assert watched.problems == []
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 375


def test_keys_move_and_a_verdict_is_kept(address: str, browser: Browser) -> None:
    page = browser.open(f"{address}/0/sample?split=train&n=0").page
    page.keyboard.press("n")
    page.wait_for_url("**/sample?split=train&n=1")
    page.keyboard.press("p")
    page.wait_for_url("**/sample?split=train&n=0")
    page.keyboard.press("/")
    page.wait_for_url("**/search")
    page.keyboard.press("/")
    page.keyboard.type("zebra signs")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=zebra+signs")
    assert page.locator("ol li").count() >= 1

    page.goto(f"{address}/0/pairs?n=0")
    edited = page.locator("mark").all_inner_texts()
    with page.expect_navigation():
        page.keyboard.press("y")
    page.goto(f"{address}/0/pairs?n=0")
    assert page.locator("button[aria-pressed=true]").inner_text() == "Right to drop it"
    said = json.loads(ask(address, "/0/verdicts.json")[1])
    assert said["verdicts"][0]["verdict"] == "right"
    assert said["tally"]["right"] == 1
    for number in range(3):  # the planted edit is marked in one of the pairs
        page.goto(f"{address}/0/pairs?n={number}")
        edited += page.locator("mark").all_inner_texts()
        if any("edited" in text for text in edited):
            break
    assert any("edited" in text for text in edited)
