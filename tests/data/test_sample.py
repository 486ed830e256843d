"""The shipped sample corpus is what its truth.json says. Reads with zstandard and json only, and none of our own code."""

from __future__ import annotations

import importlib.resources
import json
import re
import string
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

SAMPLE = Path(str(importlib.resources.files("btlm_data"))) / "data" / "sample"
SETS = {"CommonCrawl", "C4", "Github", "Book", "ArXiv", "Wikipedia", "StackExchange"}
SAME_TEXT_EDITS = {"exact", "whitespace", "case", "punctuation", "nfd"}
REASONS = {
    "invalid_json",
    "invalid_utf8",
    "not_an_object",
    "missing_text",
    "null_text",
    "text_not_string",
    "lone_surrogate",
    "blank_line",
}


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SAMPLE / "truth.json").read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def lines(truth: dict[str, Any]) -> dict[str, list[bytes]]:
    """Every line of every file; a final newline ends a line and does not begin another."""
    result = {}
    for entry in truth["files"]:
        blob = zstandard.ZstdDecompressor().decompress((SAMPLE / entry["file"]).read_bytes())
        assert len(blob) == entry["bytes"]
        result[entry["file"]] = blob.removesuffix(b"\n").split(b"\n")
    return result


@pytest.fixture(scope="module")
def documents(truth: dict[str, Any], lines: dict[str, list[bytes]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The good records by place."""
    bad = {place(r) for r in truth["bad_records"]}
    return {
        (file, i): json.loads(line)
        for file, rows in lines.items()
        for i, line in enumerate(rows)
        if (file, i) not in bad
    }


def place(record: dict[str, Any]) -> tuple[str, int]:
    return record["file"], record["line"]


def normalised(text: str) -> str:
    kept = "".join(c for c in unicodedata.normalize("NFC", text).lower() if c not in string.punctuation)
    return re.sub(r"\s+", " ", kept).strip()


def similarity(a: str, b: str) -> float:
    first, second = (
        {t[i : i + 13] for i in range(max(1, len(t) - 12))} for t in (normalised(a), normalised(b))
    )
    return len(first & second) / len(first | second)


def reason_refused(line: bytes) -> str | None:
    """Why a reader cannot take a document from this line, found without looking at truth.json."""
    if not line.strip():
        return "blank_line"
    try:
        text_line = line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid_utf8"
    try:
        value = json.loads(text_line)
    except json.JSONDecodeError:
        return "invalid_json"
    if not isinstance(value, dict):
        return "not_an_object"
    if "text" not in value:
        return "missing_text"
    text = value["text"]
    if not isinstance(text, str):
        return "null_text" if text is None else "text_not_string"
    return "lone_surrogate" if re.search("[\ud800-\udfff]", text) else None


def test_layout_is_slimpajamas(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    on_disk = sorted(str(p.relative_to(SAMPLE)) for p in SAMPLE.rglob("*.zst"))
    assert on_disk == sorted(f["file"] for f in truth["files"])
    pattern = r"(train/chunk\d/example_train|(validation|test)/chunk1/example_holdout)_\d\.jsonl\.zst"
    assert all(re.fullmatch(pattern, file) for file in on_disk)
    for record in documents.values():
        assert set(record) == {"text", "meta"}
        assert set(record["meta"]) == {"redpajama_set_name"}
    train_sets = {
        d["meta"]["redpajama_set_name"] for (file, _), d in documents.items() if file.startswith("train")
    }
    assert train_sets == {f"RedPajama{s}" for s in SETS}


def test_sizes(
    truth: dict[str, Any], lines: dict[str, list[bytes]], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    compressed = [(SAMPLE / f["file"]).stat().st_size for f in truth["files"]]
    assert max(compressed) < 1_500_000
    assert sum(compressed) < 2_500_000
    assert 3_000_000 < sum(f["text_bytes"] for f in truth["files"]) < 8_000_000
    for entry in truth["files"]:
        texts = [d["text"] for (file, _), d in documents.items() if file == entry["file"]]
        assert len(lines[entry["file"]]) == entry["lines"] == len(entry["origins"])
        assert sum(len(t.encode("utf-8")) for t in texts) == entry["text_bytes"]
        if not entry["file"].startswith("train"):
            assert 25 <= len(texts) <= 40
            assert sum(map(len, texts)) > 60_000
    assert sum(len(d["text"]) > 100_000 for d in documents.values()) >= 3


def test_a_tenth_is_not_english_and_in_several_scripts(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    scripts: Counter[str] = Counter()
    for record in documents.values():
        scripts.update(
            unicodedata.name(c, "?").split()[0] for c in record["text"] if c.isalpha() and c > "\u024f"
        )
    for script in ("HANGUL", "HIRAGANA", "KATAKANA", "CJK", "CYRILLIC"):
        assert scripts[script] > 1000, script
    # Words that hardly occur in English pages stand for the languages in Latin script.
    marks = {
        "fr": r"\b(une|les|des|est)\b",
        "de": r"\b(und|der|wird|nicht)\b",
        "es": r"\b(una|los|para|que)\b",
        "tr": r"\b(bir|ve|için|ile)\b",
    }
    sizes: Counter[str] = Counter()
    for record in documents.values():
        text = record["text"]
        words = max(1, len(text.split()))
        for language, mark in marks.items():
            if len(re.findall(mark, text)) / words > 0.06:
                sizes[language] += len(text.encode("utf-8"))
                break
        else:
            if sum(c.isalpha() and c > "\u024f" for c in text) / len(text) > 0.2:
                sizes["other scripts"] += len(text.encode("utf-8"))
    assert set(sizes) == {*marks, "other scripts"}
    assert sum(sizes.values()) > 0.1 * sum(f["text_bytes"] for f in truth["files"])


def test_bad_records_are_bad_in_the_way_they_say_and_no_others_are(
    truth: dict[str, Any], lines: dict[str, list[bytes]]
) -> None:
    found = {
        (file, i): reason
        for file, rows in lines.items()
        for i, line in enumerate(rows)
        if (reason := reason_refused(line))
    }
    assert found == {place(r): r["reason"] for r in truth["bad_records"]}
    assert set(found.values()) == REASONS


def test_short_documents_are_exactly_those_listed(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    lengths = {where: len(normalised(d["text"])) for where, d in documents.items()}
    assert {w: n for w, n in lengths.items() if n < 200} == {
        place(s): s["normalised_characters"] for s in truth["short_documents"]
    }
    assert 199 in lengths.values()
    assert 200 in lengths.values()
    assert any(len(documents[place(s)]["text"]) >= 200 for s in truth["short_documents"])


def test_clusters_are_copies_with_the_named_edits(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    edits: Counter[str] = Counter()
    members_seen = set()
    for cluster in truth["clusters"]:
        assert len(cluster) >= 2
        assert [place(m) for m in cluster] == sorted(place(m) for m in cluster)
        originals = [m for m in cluster if m["edit"] == "original"]
        assert len(originals) == 1
        text = documents[place(originals[0])]["text"]
        for member in cluster:
            assert member["file"].startswith("train/")
            assert place(member) not in members_seen
            members_seen.add(place(member))
            check_copy(text, documents[place(member)]["text"], member)
            edits[member["edit"]] += 1
    assert len(truth["clusters"]) >= 40
    assert set(edits) == {"original", "words_0.3%", "words_1%", "characters_0.3%"} | SAME_TEXT_EDITS


def check_copy(original: str, copy: str, member: dict[str, Any]) -> None:
    edit = member["edit"]
    assert (copy == original) == (edit in {"original", "exact"})
    assert (normalised(copy) == normalised(original)) == (edit in SAME_TEXT_EDITS | {"original"})
    assert similarity(original, copy) == pytest.approx(member["jaccard"], abs=1e-4)
    assert member["jaccard"] > 0.9
    if edit == "whitespace":
        assert copy.split() == original.split()
    if edit == "case":
        assert copy.lower() == original.lower()
    if edit == "nfd":
        assert unicodedata.normalize("NFC", copy) == original
    if edit.startswith("words"):
        assert (
            1
            <= sum(a != b for a, b in zip(original.split(), copy.split(), strict=True))
            <= 0.01 * len(original.split()) + 1
        )


def test_no_unlisted_document_equals_another(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    """Whatever is equal after normalisation was planted, so that a count of exact duplicates can be checked to the document."""
    groups: dict[str, set[tuple[str, int]]] = {}
    for where, record in documents.items():
        groups.setdefault(normalised(record["text"]), set()).add(where)
    planted = [{place(m) for m in cluster} for cluster in truth["clusters"]]
    planted += [{place(c), place(c["of"])} for c in truth["holdout_copies"]]
    planted += [{place(p["a"]), place(p["b"])} for p in truth["natural_pairs"]]
    for group in groups.values():
        assert len(group) == 1 or any(group <= p for p in planted), group


def test_holdout_copies(truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]) -> None:
    edits = Counter(c["edit"] for c in truth["holdout_copies"])
    assert edits["exact"] == 3
    assert edits["words_0.3%"] >= 1
    assert edits["words_1%"] >= 1
    for copy in truth["holdout_copies"]:
        assert copy["file"].startswith("train/")
        assert copy["of"]["file"].startswith("validation/")
        check_copy(documents[place(copy["of"])]["text"], documents[place(copy)]["text"], copy)
    held = {d["text"] for (file, _), d in documents.items() if not file.startswith("train/")}
    in_both = {where for where, d in documents.items() if where[0].startswith("train/") and d["text"] in held}
    assert in_both == {place(c) for c in truth["holdout_copies"] if c["edit"] == "exact"}


def test_natural_pairs_are_as_alike_as_they_say(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    planted = {place(m) for cluster in truth["clusters"] for m in cluster}
    for pair in truth["natural_pairs"]:
        a, b = place(pair["a"]), place(pair["b"])
        assert similarity(documents[a]["text"], documents[b]["text"]) == pytest.approx(
            pair["jaccard"], abs=1e-4
        )
        assert not {a, b} & planted
    assert sum(p["jaccard"] >= 0.8 for p in truth["natural_pairs"]) >= 3


def test_special_text_is_where_it_says(
    truth: dict[str, Any], documents: dict[tuple[str, int], dict[str, Any]]
) -> None:
    found = {where: n for where, d in documents.items() if (n := d["text"].count("<|endoftext|>"))}
    assert found == {place(s): s["occurrences"] for s in truth["special_text"]}
    assert found


def test_licence_note_names_every_origin(truth: dict[str, Any]) -> None:
    note = (SAMPLE / "LICENSES.md").read_text("utf-8")
    counted: Counter[int] = Counter(o for f in truth["files"] for o in f["origins"] if o is not None)
    assert len(truth["origins"]) >= 3
    for number, origin in enumerate(truth["origins"]):
        row = f"| {origin['title']} | {origin['licence']} | {origin['copyright']} | `{origin['package']}` {origin['version']} |"
        assert row in note
        assert origin["licence"] in {
            "public domain",
            "Apache-2.0",
            "BSD-3-Clause",
            "MIT",
            "PSF-2.0",
            "PostgreSQL",
        }
        assert counted[number] == origin["documents"] > 0
