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
