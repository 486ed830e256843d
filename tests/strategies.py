"""What many tests draw: records good and bad, texts, files of every compression."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import zstandard
from hypothesis import strategies as st

from btlm_data.records.formats import classify
from btlm_data.sources.base import SourceFile

Kind = Literal["none", "gzip", "zstd", "bzip2", "xz"]
ENDINGS: dict[str, str] = {"none": "", "gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "xz": ".xz"}

# Characters that break careless code: literal special tokens, controls, combining marks, surrogate pairs, separators.
SPICE = [
    "<|endoftext|>",
    "\x00",
    "\u2028",
    "\u0085",
    "e\u0301",
    "\u0344",
    "\u200b",
    "\ufeff",
    "𝕬",
    "👩‍👩‍👧",
    "\r\n",
    "  ",
    "'ll",
    "İ",
    "ß",
    "\x1c",
    "한",
    "1234567",
]

texts = st.lists(
    st.one_of(st.sampled_from(SPICE), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)),
    max_size=12,
).map("".join)
"""Any text that is UTF-8."""


def _line(value: Any, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8")


_others = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
).filter(lambda value: "\\ud" not in json.dumps(value))
_sources = st.one_of(st.sampled_from(["RedPajamaC4", "RedPajamaBook", "", "Ünï"]), _others)

good_lines = st.builds(
    lambda text, source, rest, ascii_only, order: _line(
        dict(
            sorted(
                {"text": text, "meta": {"redpajama_set_name": source, **rest}, **rest}.items(), reverse=order
            )
        ),
        ascii_only,
    ),
    texts,
    _sources,
    st.dictionaries(st.text("abcxyz", min_size=1, max_size=3), _others, max_size=2),
    st.booleans(),
    st.booleans(),
)
"""Lines that hold a document (without their newline)."""

bad_lines = st.sampled_from(
    [
        b'{"text": "caf\xe9"}',  # Latin-1
        b'{"text": "\xed\xa0\x80"}',  # a surrogate spelt in UTF-8
        b'{"text": "fine", "url": "\xff\xfe"}',  # the text could be read; the record cannot
        b'{"text": "\\ud83d"}',
        b'{"text": "\\udc00\\ud800 both ways round"}',
        b'{"text": "cut off',
        b'{"text": "a"} {"text": "b"}',
        b'{"text": "a"}{"text": "b"}',
        b'{"text": "spread",\n"over": "two"}',
        b'{"text": "tab\there"}',
        b'{"text": 01}',
        b"{'text': 'single'}",
        b"nonsense",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"3.5",
        b"{}",
        b'{"Text": "capital"}',
        b'{"meta": {"text": "deep"}}',
        b'{"text": null}',
        b'{"text": 5}',
        b'{"text": ["a"]}',
        b'{"text": {"text": "a"}}',
        b'{"text": true}',
        b'{"text": "a", "text": null}',
        b"\x00",
        b"\xef\xbb\xbf{}",
    ]
)
"""Lines that hold no document."""

odd_lines = st.sampled_from(
    [b"", b" ", b"\t\r", b"\x0c", b'{"text": NaN}', b'{"text": "n", "x": [NaN, Infinity, -Infinity]}', b'  {"text" : "spaced"}  ',
     b'{"text": "crlf"}\r', b'{"te\\u0078t": "escaped key"}', b'{"text": null, "text": "twice"}', b'{"text": "big", "n": 1e999}',
     b'{"text": "pair \\ud83d\\ude00"}', b'{"text": ""}', b'{"text": "x", "meta": 5}', b'{"text": "s", "meta": {"redpajama_set_name": "\\ud800"}}']
)  # fmt: skip
"""Blank lines, and documents that are easily misread."""


@st.composite
def json_lines(draw: st.DrawFn, max_lines: int = 25) -> bytes:
    """A file of JSON Lines: mostly good, with or without a byte order mark and a last newline."""
    usual = draw(st.booleans())  # all good: the fast path
    some = good_lines if usual else st.one_of(good_lines, good_lines, bad_lines, odd_lines)
    lines = draw(st.lists(some, max_size=max_lines))
    start = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]))
    return start + b"\n".join(lines) + draw(st.sampled_from([b"", b"\n", b"\n\n"]))


def compress(
    data: bytes, kind: str, parts: int = 1, checksum: bool = False, first: int | None = None
) -> bytes:
    """`data` in `parts` frames (or members), with a skippable frame between zstd frames. first: only that many of them."""
    edges = [len(data) * i // parts for i in range(parts + 1)]
    pieces = [data[a:b] for a, b in pairwise(edges)][:first]
    if kind == "gzip":
        return b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)
    if kind == "zstd":
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=checksum)
        return b"\x50\x2a\x4d\x18\x03\0\0\0abc".join(compressor.compress(piece) for piece in pieces)
    if kind == "bzip2":
        return b"".join(bz2.compress(piece, 1) for piece in pieces)
    if kind == "xz":
        return b"".join(lzma.compress(piece, preset=0) for piece in pieces)
    return data


def source_file(path: Path, name: str | None = None, split: str = "train", **more: Any) -> SourceFile:
    """The listing entry of a file that exists or is about to."""
    kind = classify(path.name)
    assert kind is not None
    size = path.stat().st_size if path.exists() else 0
    return SourceFile(name or path.name, str(path), size, split, "v", kind[0], kind[1], **more)


def corpus_line(text: str, source: str | None = None) -> bytes:
    """A record as SlimPajama has them, with its newline."""
    value: dict[str, Any] = {"text": text} | ({"meta": {"redpajama_set_name": source}} if source else {})
    return _line(value, False) + b"\n"


def zstd_stream(data: bytes) -> bytes:
    """One frame without its content size, as `zstd` writes from a pipe."""
    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=1).stream_writer(out, closefd=False) as writer:
        writer.write(data)
    return out.getvalue()
