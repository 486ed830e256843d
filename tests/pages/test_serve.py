"""`btlm-data serve` as a process: what it answers, to whom, and its pages in headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit
from xml.etree.ElementTree import Element, tostring

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from starlette.testclient import TestClient

import btlm_data
from btlm_data.engine import status
from btlm_data.engine.status import StatusFile
from btlm_data.errors import ConfigError
from btlm_data.formats import dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.lineage.split_view import SplitView
from btlm_data.serve import left_out, pairs, run_state, training, views_runs
from btlm_data.serve.app import create
from btlm_data.serve.served import Served
from btlm_data.storage import open_store
from btlm_data.task import Counts, Step, Task, TaskResult
from btlm_train.data.history import add_part, describe_part
from btlm_train.data.loader import GptHDF5MapDataProcessor
from tests.browser import TOO_WIDE, Browser, unreached
from tests.pages.conftest import PLANTED
from tests.servers import ask, started, stopped


@pytest.fixture(scope="session")
def address(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    other = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(shards, other, ignore=shutil.ignore_patterns(".work"))
    run = tmp_path_factory.mktemp("run")
    reader = {"data_dir": str(shards / "train"), "batch_size": 2, "shuffle": True, "shuffle_seed": 1}
    add_part(
        run,
        "a" * 32,
        describe_part(GptHDF5MapDataProcessor(reader).create_dataloader(rank=0, world_size=1), 0, 4),
    )
    process, url = started(str(shards), str(other), str(shards / ".work"), "--run", str(run))
    yield url.rstrip("/")
    stopped(process)


def test_every_view_answers_under_a_strict_policy(address: str) -> None:
    for path in ("/", "/0/report", "/0/sample", "/0/documents", "/0/document?row=3", "/0/search", "/0/search?q=zebra",
                 "/0/pairs", "/0/dropped", "/0/search?by=id&q=x", "/run/0", "/training", "/compare?a=0&b=1", "/static/page.css", "/static/serve.js"):  # fmt: skip
        status, text, headers = ask(address, path)
        assert status == 200, (path, text)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "<script>document" not in text
    assert "The same dataset" in ask(address, "/compare?a=0&b=1")[1]
    for path in ("/", "/0/sample", "/run/0", "/nothing"):
        text = ask(address, path)[1]
        for place in ("/0/report", "/1/report", "/run/0", "/training"):
            assert f'href="{place}"' in text.partition("</nav>")[0], "everything is in the bar at the top"


def test_wrong_addresses_are_answered_in_words(address: str) -> None:
    for path in ("/7/report", "/0/sample?n=999999", "/0/sample?split=nosuch", "/0/document?row=-1", "/0/pairs?n=99999",
                 "/run/4", "/compare?a=0&b=9", "/0/documents?first=x", "/static/..%2Fserve.py"):  # fmt: skip
        status, text, _ = ask(address, path)
        assert status == 404, path
        assert "Traceback" not in text
    for path in ("/nothing", "/static/../app.py"):
        status, text, _ = ask(address, path)
        assert status == 404
        assert "There is no such page." in text
        assert '<a href="/"' in text, "the way back"


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
        assert headers["location"] == "/"
        assert (
            ask(place, f"/0/sample?n=1&{parts.query}&split=train")[2]["location"]
            == "/0/sample?n=1&split=train"
        )
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
    assert {hit.around[1] for hit in found.hits} == {PLANTED}
    for hit in found.hits:
        text = served.tokenizer.decode(served.sample(hit.split, hit.sample).ids)  # type: ignore[union-attr]
        assert "".join(hit.around) in text
    expected = {
        (split, number)
        for split in served.splits
        for number in range(served.num_samples(split))
        if PLANTED in served.tokenizer.decode(served.sample(split, number).ids)  # type: ignore[union-attr]
    }
    assert {(hit.split, hit.sample) for hit in found.hits} == expected
    assert expected
    assert not served.search("no such words at all", served.splits, 1).hits


@pytest.mark.parametrize("shard_format", ["sample", "vsl"])
def test_search_finds_a_text_that_goes_on_in_another_sample(
    corpus: Path, shards: Path, tmp_path: Path, shard_format: str
) -> None:
    """Around borders of two samples within one document."""
    if shard_format == "vsl":
        shards = tmp_path / "shards"
        recipe = {"source": str(corpus), "seq_len": 512, "format": "vsl", "run": {"workers": 1}}
        btlm_data.prepare(recipe, run__out=str(shards), source__limit=23, run__report=False)
    served = Served(shards, "shards")
    assert served.tokenizer is not None
    view = SplitView(served.opened.root, dataset.read_sets(shards)[""], "train")
    looked_at = 0
    for document in view.extents(range(view.table.num_rows)):
        for span in view.spans(document)[:4]:
            border = span.tokens[1]
            text = served.tokenizer.decode(view.document_tokens(document, border - 4, border + 4))
            if not 4 < border < document.tokens - 4 or len(set(text)) < 6 or looked_at > 5:
                continue  # not cut there, or of a line of one letter
            [found] = served.search(text, ["train"], 2).hits
            assert (found.document, found.sample, found.goes_on) == (document.row, span.row, True)
            assert found.around[1] == text
            looked_at += 1
    assert looked_at > 3


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


def test_pairs_are_numbered_from_the_least_alike_without_reading_the_whole_table(tmp_path: Path) -> None:
    """Row groups of seven; every row is one pair, those that were not compared come last."""
    chance = np.random.default_rng(3)
    alike = [
        None if k % 11 == 5 else float(np.float32(value))
        for k, value in enumerate(chance.uniform(0.5, 1, 100))
    ]
    alike[17], alike[18] = 1.0, 0.0
    rows = [
        {"reason": "near_duplicate", "similarity": value, "cluster": k, "kept_file": None if k % 3 else "b"}
        | {f"{side}{name}": k for side in ("", "kept_") for name in ("document", "offset", "bytes")}
        | {"file": "a", "source": None, "kept_source": "s"}
        for k, value in enumerate(alike)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "removals.parquet", row_group_size=7)
    found = pairs.Pairs(tmp_path)
    assert len(found) == len(rows)
    order = [found.pair(number) for number in range(len(rows))]
    steps = [1001 if value is None else int(value * 1000) for value in alike]
    expected = sorted(range(len(rows)), key=lambda k: (steps[k], k))
    assert [pair.cluster for pair in order] == expected
    assert all((pair.kept is None) == (pair.cluster % 3 > 0) for pair in order)
    assert len(pairs.Pairs(tmp_path / "nowhere")) == 0


def test_the_interval_is_wilsons() -> None:
    assert pairs.interval(0, 0) == (0.0, 1.0)
    low, high = pairs.interval(8, 10)  # by hand: (0.4902, 0.9433)
    assert [low, high] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert pairs.interval(10, 10)[1] == pytest.approx(1.0)


def test_a_run_is_seen_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_LOCAL_SECONDS", 0.0)
    (tmp_path / "work-folder.json").write_text("{}")
    assert run_state.is_work_folder(tmp_path)
    assert "No step has begun" in shown(views_runs.run(run_state.read(tmp_path)))
    written = StatusFile(open_store(tmp_path), "workers")
    tasks = [Task(id=str(number), weight=1_000_000) for number in range(4)]
    written.step_started(Step("dedupe.keys", 1, lambda *_: None, tasks, None, "", "B"), tasks, 0)  # type: ignore[arg-type]
    written.step_moved(2_000_000, TaskResult("0", (), Counts(), 2.0), "block <0>")
    text = shown(views_runs.run(run_state.read(tmp_path)))
    for said in (
        "Running, driven by",
        "Engine: workers",
        "dedupe: keys",
        "1 of 4",
        "B/s",
        'data-refresh="2"',
    ):
        assert said in text, said
    written.ended("stopped", "no space <left>")
    text = shown(views_runs.run(run_state.read(tmp_path)))
    assert "Stopped. no space &lt;left&gt;" in text
    assert "data-refresh" not in text


def shown(elements: list[Element]) -> str:
    """What a browser gets of a view."""
    return "".join(tostring(element, encoding="unicode", method="html") for element in elements)


def test_documents_are_found_by_what_is_known_of_them(shards: Path, address: str) -> None:
    table = DocumentTable(shards / "train" / "documents.parquet")
    document = next(table.described([5]))
    name = f"{document['file']}#{document['offset']}"
    link = f"/0/document?split=train&amp;row={document['row']}"
    for by, value in (("id", name), ("hash", document["hash"].hex())):
        text = ask(address, f"/0/search?{urlencode({'by': by, 'q': value})}")[1]
        assert "1 document found" in text
        assert link in text
    by_text = Served(shards, "shards")
    assert {hit.document for hit in by_text.search(PLANTED, ["train"], 1).hits} <= set(range(table.num_rows))
    # A dropped duplicate: where it left, the one that stays, its cluster and its text in the source.
    [removed, *_] = DocumentTable(shards / "removals.parquet", ("file", "cluster")).described([0])
    gone = urlencode({"by": "id", "q": f"{removed['file']}#{removed['offset']}"})
    text = ask(address, f"/0/search?{gone}")[1]
    assert "Left out: " in text
    assert "Kept instead: " in text
    members = ask(address, f"/0/search?by=cluster&q={removed['cluster']}")[1]
    assert f"has {removed['cluster_size']} documents" in members
    assert members.count(quote(f"#{removed['offset']}", safe="")) >= 1
    record = urlencode({"file": removed["file"], "offset": removed["offset"]})
    assert removed["bytes"] > 0
    assert (
        f"{removed['file'].replace('<', '&lt;').replace('>', '&gt;')}"
        in ask(address, f"/0/record?{record}")[1]
    )


def test_nothing_found_and_nonsense_are_answered_in_words(address: str) -> None:
    for query, said in (
        ("by=id&q=nosuch", "keeps no id of its documents"),
        ("by=url&q=https://example.org", "keeps no url"),
        ("by=hash&q=12", "is no hash"),
        ("by=cluster&q=4294967296", "is no number of a cluster"),
        ("by=cluster&q=4294967295", "There is no cluster"),
    ):
        status, text, _ = ask(address, f"/0/search?{query}")
        assert status == 200
        assert said in text
    assert ask(address, "/0/search?by=colour&q=red")[0] == 404
    assert "(&lt;b&gt;" not in ask(address, "/0/record?file=../etc/passwd&offset=0")[1]
    assert "is not among the" in ask(address, "/0/record?file=/etc/passwd&offset=0")[1]


def test_what_was_left_out_is_listed_by_reason(shards: Path, address: str) -> None:
    everything, after = left_out.dropped(shards, "", 0, 10_000)
    assert after is None
    manifest = dataset.read(shards)
    assert isinstance(manifest, dataset.Dataset)
    reasons = left_out.reasons(manifest)
    assert sum(reasons.values()) == len(everything) > 2
    for reason, count in reasons.items():
        rows = left_out.dropped(shards, reason, 0, 10_000)[0]
        assert len(rows) == count
        assert {row["reason"] for row in rows} == {reason}
        pages: list[dict[str, Any]] = []
        first: int | None = 0
        while first is not None:
            page, first = left_out.dropped(shards, reason, first, 2)
            pages += page
        assert pages == rows
        assert f"reason={reason}" in ask(address, "/0/dropped")[1]


def test_samples_are_browsed_by_the_steps_of_a_run(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a trainer that takes every second sample, two a step."""
    files = sorted((shards / "train").glob("*.h5"))

    class Run:
        steps_done = 2

        def batch(self, step: int) -> list[BatchSampleOfTest]:
            if step > 2:
                raise ConfigError(f"The run has no step {step}.")
            rows = [(str(files[0]), 4 * step), ("/elsewhere/train/data-00000.h5", 4 * step + 2)]
            return [BatchSampleOfTest(k, k, shard, row, 1) for k, (shard, row) in enumerate(rows)]

        def seen(self, asked: Any) -> list[SeenSampleOfTest]:
            [(path, _, first, _)] = asked
            return (
                [SeenSampleOfTest(0, first // 4, 0, 0, 0)] if path == str(files[0]) and first % 4 == 0 else []
            )

    monkeypatch.setattr(training, "open_run", lambda folder: Run())
    served = Served(shards, "shards")
    order = training.Training(shards / "run", [served])
    first, second = order.step(1)
    assert (first.dataset, first.split, first.number) == (0, "train", 4)
    assert second.dataset is None
    assert [(one.step, one.done) for one in order.steps_of(served, "train", 8)] == [(2, False)]
    assert order.steps_of(served, "train", 5) == []
    app = TestClient(create([shards], host="127.0.0.1", token=None, run=shards / "run"), "http://localhost")
    text = app.get("/training?step=1").text
    assert "/0/sample?split=train&amp;n=4" in text
    assert "of no dataset that is served" in text
    assert 'id="sample-train-4"' in text, "its tokens are shown"
    assert app.get("/training").text.startswith("<!DOCTYPE html>")
    assert app.get("/training?step=9").status_code == 404
    assert app.get("/training?step=1&batch_index=7").status_code == 404
    assert "/training?step=2&amp;batch_index=0" in app.get("/0/sample?split=train&n=8").text
    assert "no step of this run takes it" in app.get("/0/sample?split=train&n=5").text


class BatchSampleOfTest(NamedTuple):
    batch_index: int
    rank: int
    shard: str
    row: int
    length: int


class SeenSampleOfTest(NamedTuple):
    query: int
    step: int
    rank: int
    batch_index: int
    epoch: int


# In a browser -----------------------------------------------------------------------------------------------------

PAGES = ["/", "/0/report", "/0/sample?split=train&n=0", "/0/documents", "/0/document?split=train&row=2",
         f"/0/search?q={quote(PLANTED)}", "/0/pairs?n=0", "/compare?a=0&b=1", "/0/dropped", "/0/search?by=cluster&q=30", "/0/search?by=id&q=nothing", "/run/0", "/training", "/training?step=1&batch_index=1"]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_quiet_narrow_and_accessible(
    address: str, browser: Browser, find_faults: Callable[[Any], list[str]], path: str
) -> None:
    watched = browser.open(address + path, bypass_csp=True)  # axe is put into the page
    assert watched.problems == []
    assert all(request.startswith(address) for request in watched.requests)
    assert watched.page.title() != "owned"
    assert find_faults(watched.page) == []
    assert unreached(watched.page) == []
    watched.page.emulate_media(color_scheme="dark")
    watched.page.set_viewport_size({"width": 375, "height": 800})
    assert find_faults(watched.page) == [], "dark, on a phone"
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 375
    assert watched.page.evaluate(TOO_WIDE) == [], "tables of many columns are lists on a phone"
    assert browser.open(address + path, dark=True).problems == [], "also under its policy"


@pytest.mark.parametrize("path", ["/0/sample?n=999999", "/nothing"])
def test_pages_that_refuse_are_narrow_and_accessible(
    address: str, browser: Browser, find_faults: Callable[[Any], list[str]], path: str
) -> None:
    watched = browser.open(address + path, bypass_csp=True, width=375)
    assert all("404 (Not Found)" in problem for problem in watched.problems), "Chromium tells of the status"
    assert watched.page.locator("[role=alert]").count() == 1
    assert find_faults(watched.page) == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 375


def test_long_names_do_not_break_a_narrow_page(address: str, browser: Browser) -> None:
    page = browser.open(address + "/0/sample?split=train&n=0", width=375).page
    page.evaluate("document.querySelector('main li').append('/' + 'x'.repeat(300))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


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
    page.wait_for_url("**/search?by=text&q=zebra+signs")
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
