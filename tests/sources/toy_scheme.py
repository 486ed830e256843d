"""A URL scheme in one file, as `base.Scheme` wants it: toy://N holds N files of one document each."""

from __future__ import annotations

import json
from collections.abc import Iterator

from btlm_data.sources.base import Access, Entry, Query, SchemeListing, SourceFile


def list_entries(query: Query) -> SchemeListing:
    number = int(query.url.removeprefix("toy://"))
    entries = [
        Entry(f"{split}/{n}.jsonl", f"toy://{n}", len(_body(n)), "1")
        for split, ns in (("train", range(1, number)), ("dev", [0]))
        for n in ns
    ]
    return SchemeListing(entries, {"kind": "toy"})


def stream(file: SourceFile, url: str, offset: int, access: Access) -> Iterator[bytes]:
    yield _body(int(url.removeprefix("toy://")))[offset:]


def local_path(file: SourceFile) -> str | None:
    return None


def _body(number: int) -> bytes:
    text = f"Document {number} of the toy scheme. " + " ".join(f"word{number}x{k}" for k in range(60))
    return json.dumps({"text": text}).encode() + b"\n"
