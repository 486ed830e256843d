"""report.html as bytes: what it says, that nothing in it is markup of the corpus, and whose file it is."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import btlm_data
from btlm_data.errors import DataError, OutputError
from btlm_data.formats import pages as seals
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.inspection import border_pairs, lookup, sample_tokens
from btlm_data.inspection.opening import open_path
from btlm_data.inspection.token_measures import find_tokenizer
from btlm_data.inspection.verify import verify
from btlm_data.lineage.forget import forget
from btlm_data.lineage.queries import make
from btlm_data.pages import publish, report_page
from btlm_data.pages.data_sections import sample
from btlm_data.pages.elements import data_block, document, tag
from btlm_data.storage import open_store
from btlm_data.tokenizer import load_tokenizer
from tests.pages.conftest import SCRIPT
from tests.reference import dataset as by_hand

WITH_MADE = re.compile(r'<section[^>]*id="made".*?</section>', re.S)


class Elements(HTMLParser):
    """Names, attributes and texts of a page, as a browser's parser sees them."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def problems(root: Path) -> list[str]:
    return [f"{check.name}: {check.place}" for check in verify(root, lambda check: None) if check.ok is False]


def test_prepare_leaves_a_small_report_of_the_dataset(shards: Path) -> None:
    data = (shards / "report.html").read_bytes()
    assert len(data) < 3_000_000
    text = html.unescape(data.decode())
    manifest = json.loads((shards / "dataset.json").read_text())
    for expected in (
        manifest["checksum"],
        manifest["fingerprint"],
        "invalid json",
        "missing text",
        "exact duplicate",
        "a <script>.jsonl",
        "<b>Web</b>",
        f"{manifest['splits']['train']['documents']:,}",
    ):
        assert expected in text, expected
    assert seals.seal_of(data) == seals.Seal(manifest["checksum"], True)
    assert "report.html" not in (shards / "dataset.json").read_text()
    assert problems(shards) == []


def test_duplicates_at_the_border_are_shown_side_by_side(shards: Path) -> None:
    text = (shards / "report.html").read_text()
    part = text[text.index("At the border, side by side") :]
    assert re.search(r"<mark>edited</mark>", part[: part.index("</section>")])
    shown = border_pairs.read(open_path(shards))
    similarities = [pair.row["similarity"] for pair in shown.pairs]
    assert similarities == sorted(similarities)
    assert shown.note == ""


def test_pairs_at_the_border_are_of_different_kept_documents(tmp_path: Path) -> None:
    """Ten of one kept document are the least alike; each of the five others comes before its second one."""
    alike = [0.85 + k / 1000 for k in range(10)] + [0.9 + k / 1000 for k in range(5)] + [None, 1.0]
    kept = ["a"] * 10 + ["b", "c", "d", "e", "f"] + ["g", "h"]
    rows = [
        {"similarity": similarity, "kept_file": name, "kept_offset": 0, "number": number}
        for number, (similarity, name) in enumerate(zip(alike, kept, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "removals.parquet", row_group_size=4)
    chosen = [row["number"] for row in border_pairs._least_alike(tmp_path / "removals.parquet")]
    assert chosen == [0, 10, 11, 12, 13, 14, *range(1, 10)]


def test_pairs_are_those_for_which_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(number: int, offset: int, kept_offset: int, kept_file: str | None = "b") -> dict[str, Any]:
        place = {"file": "a", "offset": offset, "kept_file": kept_file, "kept_offset": kept_offset}
        return {"number": number, **place}

    def chosen(rows: list[dict[str, Any]]) -> list[int]:
        return [row["number"] for row in border_pairs._affordable(rows, lambda name, offset: offset)]

    monkeypatch.setattr(border_pairs, "MAX_SCANNED_BYTES", 100)
    rows = [
        pair(0, 80, 90),
        pair(1, 10, 5),
        pair(2, 9, 5),
        pair(3, 60, 39),
        pair(4, 61, 40),
        pair(5, 50, 0, None),
    ]
    assert chosen(rows) == [
        2,
        5,
        3,
        1,
    ]  # 1 last, as the kept document of 2 is shown; 0 and 4 are too far inside
    assert chosen(rows[:3]) == [2, 1]
    near = [pair(number, 0, number) for number in range(9)]
    assert [row["number"] for row in border_pairs._affordable(near, lambda *_: 0)] == [*range(6)]


def test_texts_of_duplicates_come_from_the_source_of_the_dataset_only(tmp_path: Path) -> None:
    words = (Path(__file__).parents[2] / "LICENSE").read_text().split()[:400]
    lines = [
        json.dumps({"text": " ".join([*words, "secret", *edit])})
        for edit in ([], ["edited"], ["more", "ends"])
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines) + "\n")
    recipe = {"source": str(source), "seq_len": 64, "run": {"out": str(tmp_path / "out"), "workers": 1}}
    btlm_data.prepare(recipe, run__accept_removal=True)
    assert b"secret" in (tmp_path / "out/report.html").read_bytes().partition(b"side by side")[2]

    def pairs() -> border_pairs.BorderPairs:
        return border_pairs.read(open_path(tmp_path / "out"))

    assert len(pairs().pairs) == 2
    source.write_text(source.read_text().replace("secret", "wicked"))
    said = f"{source} is not there any more, or was changed since."
    assert pairs().pairs == []
    assert said in pairs().note
    source.unlink()
    assert pairs().pairs == []
    assert said in pairs().note
    assert said.encode() in report_page.build(tmp_path / "out")


def test_texts_of_forgotten_documents_do_not_come_back(tmp_path: Path) -> None:
    words = (Path(__file__).parents[2] / "LICENSE").read_text().split()[:400]
    lines = [
        json.dumps({"id": f"d{k}", "text": " ".join([*words, *edit])})
        for k, edit in enumerate(([], ["edited"]))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {
        "source": str(tmp_path / "a.jsonl"),
        "seq_len": 64,
        "run": {"out": str(tmp_path / "out"), "workers": 1},
    }
    btlm_data.prepare(recipe, source__id_field="id", run__accept_removal=True)
    [pair] = border_pairs.read(open_path(tmp_path / "out")).pairs
    kept = f"d{pair.row['kept_document']}"
    forget(tmp_path / "out", [make("id", kept)])
    assert publish.write_beside(str(tmp_path / "out")) == []
    assert b"were forgotten, so no texts" in (tmp_path / "out/report.html").read_bytes()
    assert b"side by side" not in (tmp_path / "out/report.html").read_bytes()


def test_warnings_come_first_with_what_to_do(shards: Path) -> None:
    text = html.unescape((shards / "report.html").read_text())
    first = text.index("What to do: ")
    assert text.index('id="verdicts"') < first < text.index('id="flow"')
    assert "Validation is too small" in text


def test_nothing_of_the_corpus_is_markup(shards: Path) -> None:
    data = report_page.build(shards)
    found = Elements(data)
    assert found.names.count("img") == found.names.count("iframe") == found.names.count("link") == 0
    assert found.names.count("script") == 1 + len(re.findall(rb'type="application/json"', data))
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "style")]
    assert all(str(value).startswith("#") for name, value in found.attributes if name == "href")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", data.decode())


def test_escaping_is_the_serialisers(shards: Path) -> None:
    page = document(tag("p", SCRIPT, title='"><script>'))
    assert page == (
        '<!DOCTYPE html>\n<p title="&quot;&gt;&lt;script&gt;">'.replace("&lt;", "<")
        + html.escape(SCRIPT, quote=False)
        + "</p>\n"
    )
    block = document(data_block("x", ["</script><script>alert(1)</script>", "\u2028", "&"]))
    assert block.count("<") == 3
    value = json.loads(re.search(r">(\[.*\])<", block)[1])  # type: ignore[index]
    assert value == ["</script><script>alert(1)</script>", "\u2028", "&"]


def test_the_same_bytes_but_for_how_it_was_made(shards: Path, corpus: Path, tmp_path: Path) -> None:
    first = (shards / "report.html").read_text()
    recipe = {"source": str(corpus), "seq_len": 512, "run": {"out": str(tmp_path / "shards"), "workers": 2}}
    btlm_data.prepare(recipe, holdout__fraction=0.05, clean__filters=[{"min_chars": 20}], run__memory="100KB")
    second = (tmp_path / "shards/report.html").read_text()
    cut = [re.sub("sha256=[0-9a-f]+", "", WITH_MADE.sub("", text)) for text in (first, second)]
    assert cut[0] == cut[1]
    assert report_page.build(shards) == (shards / "report.html").read_bytes()


def test_of_every_kind_of_shards(tmp_path: Path) -> None:
    chosen = by_hand.documents(60, "train", 1)
    for form in ("sample", "corpus"):
        by_hand.write(tmp_path / form, {"train": chosen}, form=form)
        assert b"Samples" in report_page.build(tmp_path / form)
    by_hand.write_shard(
        tmp_path / "foreign/data-0.h5", by_hand.samples_of(by_hand.stream_of(chosen), 16, "pad")[0]
    )
    data = report_page.build(tmp_path / "foreign")
    assert b"Not known: " in data
    assert seals.seal_of(data) == seals.Seal("none", True)


def test_several_sets_on_one_page(tmp_path: Path) -> None:
    recipe = {"source": "sample", "seq_len": ["128:0.5", "64:0.5"], "run": {"out": str(tmp_path / "out")}}
    btlm_data.prepare(recipe, source__limit=40, run__workers=1, run__accept_removal=True)
    page = (tmp_path / "out/report.html").read_text()
    assert 'id="msl128-verdicts"' in page
    assert 'id="msl64-verdicts"' in page
    assert len(re.findall(r'\bid="([^"]+)"', page)) == len(set(re.findall(r'\bid="([^"]+)"', page)))
    assert problems(tmp_path / "out") == []


# Whose file it is -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    prepare(tmp_path / "out")
    return tmp_path / "out"


def prepare(out: Path, **settings: object) -> None:
    recipe = {
        "source": "sample",
        "seq_len": 128,
        "run": {"out": str(out), "workers": 1, "accept_removal": True},
    }
    btlm_data.prepare(recipe, **{"source__limit": 20, **settings})  # type: ignore[arg-type]


def test_a_later_run_replaces_its_own_report_only(small: Path) -> None:
    before = (small / "report.html").read_bytes()
    prepare(small, source__limit=25, run__overwrite=True)
    assert (small / "report.html").read_bytes() != before
    assert problems(small) == []
    (small / "report.html").write_bytes(before.replace(b"Dataset report", b"My own words  "))
    prepare(small, source__limit=30, run__overwrite=True)
    assert b"My own words" in (small / "report.html").read_bytes()
    assert any(problem.startswith("pages: report.html: it is not as") for problem in problems(small))
    with pytest.raises(OutputError, match="no report that btlm-data wrote"):
        publish.write_report(small, "")


def test_a_report_of_another_dataset_is_noticed(small: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "other", source__limit=25)
    shutil.copy(tmp_path / "other/report.html", small / "report.html")
    assert any("about another dataset" in problem for problem in problems(small))
    publish.write_report(small, "")
    assert problems(small) == []


def test_a_dataset_in_a_bucket_has_its_report_there(small: Path, tmp_path: Path, bucket: object) -> None:
    store = open_store("s3://corpus/place/out")
    for path in sorted(small.rglob("*")):
        name = path.relative_to(small).as_posix()
        if path.is_file() and not name.startswith(".work/"):
            store.write(name, path.read_bytes())
    expected = (small / "report.html").read_bytes()
    store.delete(["report.html"])
    assert publish.write_beside(store.url) == []
    assert store.read("report.html") == expected
    store.delete(["report.html"])
    assert publish.write_report(Path(store.url), "") == "s3://corpus/place/out/report.html"
    assert store.read("report.html") == expected
    assert publish.write_report(Path(store.url), str(tmp_path / "here.html")) == str(tmp_path / "here.html")
    assert (tmp_path / "here.html").read_bytes() == expected
    store.write("report.html", b"<p>mine</p>")
    with pytest.raises(OutputError, match="no report that btlm-data wrote"):
        publish.write_report(Path(store.url), "")
    with pytest.raises(DataError):
        publish.write_report(Path("s3://corpus/nothing"), "")


def test_a_large_dataset_in_a_bucket_is_not_copied(
    small: Path, bucket: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("s3://corpus/large")
    store.write("dataset.json", (small / "dataset.json").read_bytes())
    monkeypatch.setattr(publish, "MAX_COPIED_BYTES", 100)
    [warning] = publish.write_beside(store.url, card="none")
    assert "Copy it to this machine" in warning


def test_without_a_report_nothing_of_one_stays(small: Path) -> None:
    prepare(small, source__limit=25, run__overwrite=True, run__report=False)
    assert not (small / "report.html").exists()
    prepare(small, source__limit=25)  # the dataset is there, its page is not
    assert (small / "report.html").exists()


def test_a_report_that_fails_costs_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "build", lambda path: 1 / 0)
    prepare(tmp_path / "out")
    assert not (tmp_path / "out/report.html").exists()
    assert publish.write_beside(str(tmp_path / "out"))[0].startswith(
        "the pages beside the dataset could not be written (ZeroDivisionError"
    )


def test_every_flipped_bit_of_a_report_is_noticed(small: Path) -> None:
    path = small / "report.html"
    data = path.read_bytes()
    for position in [*range(0, 250, 7), *range(250, len(data), len(data) // 40)]:
        damaged = bytearray(data)
        damaged[position] ^= 4
        seal = seals.seal_of(bytes(damaged))
        assert seal is None or not seal.holds


def test_the_command_writes_where_it_is_told(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "btlm_data.cli", "inspect", str(small), "--html"]
    done = subprocess.run([*command, str(tmp_path / "page.html")], capture_output=True, text=True, check=True)
    assert (tmp_path / "page.html").read_bytes() == (small / "report.html").read_bytes()
    assert "page.html" in done.stdout
    (tmp_path / "mine.html").write_text("mine")
    refused = subprocess.run([*command, str(tmp_path / "mine.html")], capture_output=True, text=True)
    assert refused.returncode == 4
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_hostile_text_is_shown_token_by_token(shards: Path) -> None:
    opened = open_path(shards)
    tokenizer = find_tokenizer(opened, None).tokenizer
    shown = ""
    for split in opened.splits:
        rows, table = lookup.rows_of(opened, split), DocumentTable(opened.documents_path(split))
        for number in range(lookup.num_sequences(opened, rows)):
            one = sample_tokens.read(opened, split, number, rows, tokenizer, table)
            if "owned" in (text := "".join(one.texts)) or "zebra" in text:
                shown += "".join(document(element) for element in sample(one, 50256))
    assert "<script>document" not in shown
    plain = html.unescape(re.sub("<[^>]+>", "", shown))
    assert "user\\u202e" in plain
    assert "zebra signs a planted" in plain


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    tokenizer = load_tokenizer("gpt2")
    for text in ("a\u202eb", "日本語", "🦓 stripes", "naïve"):
        ids, _ = tokenizer.encode_batch([text])
        texts = sample_tokens.texts_of(ids, tokenizer)
        assert len(texts) == len(ids)
        assert "".join(part for part in texts if part != sample_tokens.PART) == text
    broken = sample_tokens.texts_of(np.array([12520, 11]), tokenizer)
    assert broken[1] == ","
