"""`btlm-data serve` over a dataset that grew: by an HTTP client, and in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from btlm_data.formats import generations
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.pages import report_page
from btlm_data.serve.site import Site
from btlm_train.data.samples import HDF5Dataset
from tests.browser import Browser, unreached
from tests.generations.corpora import PARTS
from tests.servers import ask, started, stopped

TEXTS = {document["id"]: document["text"] for part in PARTS for document in part}


@pytest.fixture(scope="module")
def address(grown: Path) -> Iterator[str]:
    process, url = started(str(grown), str(grown / "generation-0002"))
    yield url.rstrip("/")
    stopped(process)


def shown(address: str, path: str) -> str:
    status, text, _ = ask(address, path)
    assert status == 200, (path, text)
    return text


def tables(grown: Path) -> list[DocumentTable]:
    """The documents of each generation."""
    return [DocumentTable(g.root / "train/documents.parquet") for g in generations.read(grown)]


def ids_of(page: str) -> list[int]:
    """The ids of the sample that a page shows."""
    [data] = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    ids: list[int] = json.loads(data)["ids"]
    return ids


def test_samples_go_on_from_generation_to_generation_as_a_reader_does(grown: Path, address: str) -> None:
    site = Site([grown], None)
    whole = HDF5Dataset({"data_dir": str(grown), "batch_size": 1})
    met = [(0, 0)]
    while (following := site.beside(met[-1][0], "train", met[-1][1], 1)) != met[-1]:
        assert site.beside(following[0], "train", following[1], -1) == met[-1]
        met.append(following)
    assert len(met) == len(whole)
    assert len(set(met)) == len(met)
    borders = [n for n in range(1, len(met)) if met[n][0] != met[n - 1][0]]
    assert len(borders) == 2
    for number in {0, 70, *borders, *(border - 1 for border in borders), len(met) - 1}:
        k, own = met[number]
        page = shown(address, f"/{k}/sample?split=train&n={own}")
        assert ids_of(page) == whole[number]["input_ids"].tolist()
        for key, beside in (("n", min(number + 1, len(met) - 1)), ("p", max(number - 1, 0))):
            [link] = re.findall(rf'<a href="([^"]*)" data-key="{key}"', page)
            assert unescape(link) == "/{}/sample?split=train&n={}".format(*met[beside])
        assert (f"{number:,} of all generations" in page) == (k > 0)


def test_counts_are_those_of_each_generation(grown: Path, address: str) -> None:
    front = shown(address, "/")
    assert "3 generations" in front
    rows = re.findall(r'<tr>.*?<a href="/(\d)/report">(\d)</a></th><td class="n">(\d+)</td>', front)
    assert rows == [(str(k), str(k + 1), str(table.num_rows)) for k, table in enumerate(tables(grown))]
    for k in range(3):
        page = shown(address, f"/{k}/report")
        assert f"generation {k + 1}</h1>" in page
        assert all(f'href="/{other}/report"' in page.partition("</nav>")[0] for other in range(3))
    assert "Generation" not in shown(address, "/3/report").partition("</nav>")[0], "served by itself"


def test_documents_of_all_generations_are_found(grown: Path, address: str) -> None:
    for k, table in enumerate(tables(grown)):
        document = next(table.described([7]))
        text = TEXTS[document["id"]]
        for by, value in (
            ("id", document["id"]),
            ("url", document["fields.url"]),
            ("hash", document["hash"].hex()),
        ):
            found = shown(address, f"/0/search?{urlencode({'by': by, 'q': value})}")
            assert "1 document found" in found
            [link] = re.findall(r'<h2><a href="([^"]*)">Document', found)
            assert link == f"/{k}/document?split=train&amp;row=7"
            samples = re.findall(rf'<a href="(/{k}/sample\?[^"]*)">', found)
            assert samples
            assert all("document 7 " in shown(address, unescape(place)) for place in samples)
        assert unescape(shown(address, f"/{k}/document?row=7")).count(text) == 2, "beside its original"
        words = " ".join(text.split()[20:24])
        found = shown(address, f"/0/search?{urlencode({'q': words})}")
        places = re.findall(r'<li><a href="/(\d)/sample[^"]*">[^<]*</a>, generation (\d), from', found)
        holders = {n for n, other in enumerate(tables(grown)) for row in other.described(range(other.num_rows))
                   if words in TEXTS[row["id"]]}  # fmt: skip
        assert {int(place) for place, _ in places} == holders
        assert k in holders
        assert all(int(number) == int(place) + 1 for place, number in places)


def test_what_an_earlier_generation_has_is_said_of_a_dropped_document(grown: Path, address: str) -> None:
    dropped = pq.read_table(grown / "generation-0002/dropped.parquet").to_pylist()
    known = next(row for row in dropped if row["reason"] == "in_index")
    found = shown(address, f"/0/search?{urlencode({'by': 'id', 'q': known['id']})}")
    assert "Left out: in index" in found
    assert "/1/record?" in found
    assert TEXTS[known["id"]] in unescape(
        shown(address, f"/1/record?{urlencode({'file': known['file'], 'offset': known['offset']})}")
    )
    assert "in index" in shown(address, "/1/dropped")


def test_a_whole_and_its_generations_can_be_compared(grown: Path, address: str) -> None:
    front = shown(address, "/")
    names = re.findall(
        r'<option value="(\d)"[^>]*>([^<]*)<', front.partition("compare ")[2].partition("</select>")[0]
    )
    assert names == [
        ("0", "out"),
        ("1", "generation-0002"),
        *((str(k + 1), f"out (generation {k})") for k in (1, 2, 3)),
    ]
    counts = [table.num_rows for table in tables(grown)]
    row = re.findall(r">train</th>(.*?)</tr>", shown(address, "/compare?a=0&b=4").partition("in both")[2])[0]
    assert re.findall(r">(\d+)<", row) == [str(counts[2]), str(sum(counts) - counts[2]), "0"]
    assert "The same dataset" in shown(address, "/compare?a=1&b=3")
    assert "The same dataset" not in shown(address, "/compare?a=0&b=2")
    assert ask(address, "/compare?a=0&b=5")[0] == 404


def test_the_report_names_all_generations(grown: Path) -> None:
    page = report_page.build(grown).decode().partition("What each generation has")[2].partition("</table>")[0]
    counts = re.findall(r">(\d)</th>.*?>train</td>.*?>([\d,]+)</td>", page)
    assert counts == [(str(k), str(table.num_rows)) for k, table in enumerate(tables(grown), 1)]
    assert "Generations" not in report_page.build(grown / "generation-0002").decode()


def test_what_is_served_only_in_part_has_no_links_elsewhere(grown: Path) -> None:
    site = Site([grown / "train"], None)
    assert [series.members for series in site.series] == [(0,)]
    assert site.place_of(0, 2, "") is None


def test_a_browser_goes_from_one_generation_to_another(
    grown: Path, address: str, browser: Browser, find_faults: Callable[[Any], list[str]]
) -> None:
    watched = browser.open(address, bypass_csp=True, width=375)
    page = watched.page
    page.locator("table a", has_text="2").first.click()
    page.wait_for_url("**/1/report")
    page.get_by_role("link", name="Samples").first.click()
    page.wait_for_url("**/1/sample")
    last = Site([grown], None).datasets[1].num_samples("train") - 1
    page.locator("input[name=n]").fill(str(last))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/1/sample?split=train&n={last}")
    page.keyboard.press("n")
    page.wait_for_url("**/2/sample?split=train&n=0")
    assert page.locator("h1").inner_text() == "Sample 0 of train, generation 3"
    assert find_faults(page) == []
    assert unreached(page) == []
    page.locator(".top a", has_text="1").last.click()
    page.wait_for_url("**/0/sample")
    page.keyboard.press("/")
    page.wait_for_url("**/0/search")
    document = next(tables(grown)[2].described([3]))
    page.keyboard.press("/")
    page.keyboard.type(" ".join(TEXTS[document["id"]].split()[10:16]))
    page.keyboard.press("Enter")
    page.locator(".hits li a").first.wait_for()
    assert "generation 3" in page.locator(".hits").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert watched.problems == []
