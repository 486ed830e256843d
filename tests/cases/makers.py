"""Files as other programs write them."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cases.model import text


def files(contents: Mapping[str, bytes | str]) -> Callable[[Path], None]:
    """A maker that writes these files below the folder."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def links(contents: Mapping[str, bytes], targets: Mapping[str, str]) -> Callable[[Path], None]:
    """A maker that also links names to targets (relative to the link's folder)."""

    def make(folder: Path) -> None:
        files(contents)(folder)
        for name, target in targets.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)

    return make


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    """A parquet file of these columns."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, **options)
    return buffer.getvalue()


def bgzip(data: bytes) -> bytes:
    """Blocks of 60 kB with an extra field and an empty block at the end, as samtools' bgzip writes them."""
    pieces = [data[start : start + 60_000] for start in range(0, len(data), 60_000)]
    return b"".join(map(_bgzip_block, [*pieces, b""]))


def _bgzip_block(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(data) + packer.flush()
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25)
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def warc(pages: list[bytes], kind: str = "response", extra: str = "") -> bytes:
    """Records of these HTTP answers or texts."""
    records = []
    for number, body in enumerate(pages):
        head = (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.org/{number}\r\n"
            f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n{extra}"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        records.append(head.encode() + body + b"\r\n\r\n")
    return b"".join(records)


def wet(number: int) -> bytes:
    """A record of plain text, `text(number)`."""
    return warc([text(number).encode()], "conversion").replace(
        b"application/http; msgtype=response", b"text/plain"
    )


def answer(body: bytes, *headers: str) -> bytes:
    """An HTTP answer."""
    return ("\r\n".join(["HTTP/1.1 200 OK", *headers]) + "\r\n\r\n").encode() + body


def page(number: int) -> bytes:
    """An HTML page whose main text is `text(number)`."""
    return f"<html><body><article><p>{text(number)}</p></article></body></html>".encode()


def flipped(data: bytes, place: int) -> bytes:
    """One bit is wrong."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def gz(data: bytes) -> bytes:
    """One gzip member."""
    return gzip.compress(data, mtime=0)
