from __future__ import annotations

import builtins
import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.records.helpers import assert_resumes, batches, reasons, rejects, sources, texts

pytest.importorskip("fastwarc")
pytest.importorskip("resiliparse")


def record(kind: str, content: bytes, uri: str, content_type: str) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{len(uri):032x}>\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def page(
    number: int, body: bytes | None = None, kind: str = "text/html; charset=utf-8", status: str = "200 OK"
) -> bytes:
    html = (
        body
        or (
            f"<html><head><title>t</title><script>var x = 1;</script></head><body><nav><a href='/'>menu entry</a></nav>"
            f"<main><article><h1>Page {number}</h1><p>Grüße {number}, a paragraph of text that goes on for a while.</p></article></main></body></html>"
        ).encode()
    )
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(html)}\r\n\r\n".encode() + html
    return record("response", http, f"https://example.org/{number}", "application/http; msgtype=response")


def write(folder: Path, name: str, *records: bytes) -> Path:
    path = folder / name
    path.write_bytes(b"".join(map(gzip.compress, records)) if name.endswith(".gz") else b"".join(records))
    return path


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_give_their_main_text(tmp_path: Path, name: str) -> None:
    request = record(
        "request", b"GET / HTTP/1.1\r\n\r\n", "https://example.org/1", "application/http; msgtype=request"
    )
    path = write(tmp_path, name, request, page(1), page(2, status="404 Not Found"), page(3, b"\x89PNG", "image/png"),
                 page(4), page(5, "plain über".encode("latin-1"), "text/plain; charset=iso-8859-1"))  # fmt: skip
    found = texts(path)
    assert len(found) == 3
    assert "Grüße 1, a paragraph" in found[0]
    assert "menu" not in found[0]
    assert "var x" not in found[0]
    assert found[2] == "plain über"
    assert sources(path, source="WARC-Target-URI") == [f"https://example.org/{n}" for n in (1, 4, 5)]
    (batch,) = batches(path, with_records=True)
    assert batch.records is not None
    assert batch.records[1].fields()["WARC-Target-URI"] == "https://example.org/4"
    assert batch.offsets[0] == len(request)
    assert [(reject.reason, reject.detail, reject.line) for reject in batch.rejects] == [
        ("answer_not_ok", "an answer of status 404", 1),
        ("not_text", "content of the type 'image/png'", 2),
    ]
    assert_resumes(path, 100)
    revisit = record("revisit", b"HTTP/1.1 200 OK\r\n\r\n", "https://example.org/1", "application/http")
    path = write(tmp_path, "b.warc", page(1), revisit)
    assert len(texts(path)) == 1
    assert [reject.detail for reject in rejects(path)] == ["a WARC record of the type revisit"]


def test_wet_gives_its_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "a.warc.wet.gz",
        *(record("conversion", f"Text {i} é".encode(), f"u{i}", "text/plain") for i in range(50)),
    )
    assert texts(path) == [f"Text {i} é" for i in range(50)]
    assert assert_resumes(path, 60) > 5


def test_damage_and_size(tmp_path: Path) -> None:
    path = write(tmp_path, "a.warc.gz", *map(page, range(20)))
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) * 3 // 4])
    assert len(texts(path)) in (14, 15)
    assert reasons(path) == ["truncated_file"]
    path.write_bytes(stored[: len(stored) // 2] + b"\xff" * 20 + stored[len(stored) // 2 + 20 :])
    assert len(texts(path)) >= 17
    assert rejects(path)[0].is_of_file
    path = write(tmp_path, "a.warc", page(1), page(2, b"x" * 5000), page(3))
    assert len(texts(path, max_record_bytes=2000)) == 2
    assert reasons(path, max_record_bytes=2000) == ["record_too_large"]


def test_without_the_packages_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("fastwarc"):
            raise ImportError("No module named 'fastwarc'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fake)
    path = write(tmp_path, "a.warc", page(1))
    (reject,) = rejects(path)
    assert reject.reason == "missing_package"
    assert "pip install '.[warc]'" in reject.detail


def wet(number: int, length: int | None = None, end: str = "\r\n\r\n") -> bytes:
    content = f"Text {number} " + "of a page " * 30
    whole = record("conversion", content.encode(), f"u{number}", "text/plain")
    if length is not None:
        whole = whole.replace(
            f"Content-Length: {len(content)}".encode(), f"Content-Length: {length}".encode()
        )
    return whole.removesuffix(b"\r\n\r\n") + end.encode()


WET = [
    texts_of.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n\r\n").decode() for texts_of in map(wet, range(9))
]


@pytest.mark.parametrize("length", [0, 7, len(WET[1]) - 1, len(WET[1]) - 40, len(WET[1]) + 9, 400, 10_000])
def test_a_wrong_length_loses_nothing(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, "a.wet", wet(0), wet(1, length), wet(2), wet(3))
    assert texts(path) == WET[:4]
    assert reasons(path) == ["corrupt_file"]
    assert f"says that it has {length:,} bytes, and has {len(WET[1])}" in rejects(path)[0].detail
    assert_resumes(path, 4)


def test_what_is_no_record_is_passed_and_counted(tmp_path: Path) -> None:
    garbage = b"cut off here\r\n\r\nand there "
    path = write(tmp_path, "a.wet", garbage, b"\n", wet(0), garbage, b"\n", wet(1), b"\0" * 50)
    assert texts(path) == WET[:2]
    assert [reject.num_bytes for reject in rejects(path)] == [len(garbage) + 1, len(garbage) + 1, 50]
    path = write(tmp_path, "b.warc", b'{"text": "JSON Lines"}\n' * 9000)
    assert reasons(path) == ["corrupt_file"]
    assert rejects(path)[0].num_bytes == path.stat().st_size
    path = write(tmp_path, "c.warc", record("request", b"GET /", "u", "application/http"))
    assert "none of its 1 WARC records" in rejects(path)[0].detail


def test_a_cut_record_is_told_and_used(tmp_path: Path) -> None:
    path = write(tmp_path, "a.wet", wet(0), wet(1)[:-50])
    assert texts(path) == [WET[0], WET[1][:-46]]
    assert reasons(path) == ["truncated_file"]
    assert "46 bytes of it are missing" in rejects(path)[0].detail


def test_other_line_ends_and_cases_of_names(tmp_path: Path) -> None:
    lines_alone = wet(1).replace(b"\r\n", b"\n")
    small = wet(2).replace(b"WARC-Type", b"warc-type").replace(b"Content-Length", b"content-length")
    path = write(
        tmp_path,
        "a.wet",
        lines_alone,
        small,
        wet(3, end="\r\n"),
        wet(4, end=""),
        wet(5, end="\n" * 9),
        wet(6),
    )
    assert texts(path) == WET[1:7]
    assert reasons(path) == []
