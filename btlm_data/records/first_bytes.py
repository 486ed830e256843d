"""What the first bytes of a file say where its name says something else.

A file may be compressed in another way than it is called (a client that unpacks what it downloads, a store
that packs what it serves): then it is read as what it is. Or it may be no data at all, such as the page that
asks for a login, and is named as that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from btlm_data.records.base import Damage, StoredFile
from btlm_data.records.compression import COMPRESSIONS

HEAD_BYTES = 64
_LOOK_BYTES = 2**16
_LEAST_BYTES = 10  # fewer say nothing
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = b"/annex/objects/"
_BOM = b"\xef\xbb\xbf"
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # what no text has; 1b and 0c occur
_PAGE = re.compile(rb"<(?:!doctype html|html|head|body|\?xml|error)\b", re.IGNORECASE)
_STORE_CODE = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")
_BINARY = (
    (b"PAR1", "parquet", "a Parquet file; call it .parquet"),
    (b"ARROW1", "arrow", "an Arrow file; call it .arrow"),
    (b"PK\x03\x04", "", "a ZIP archive; unpack it first"),
    (b"%PDF-", "", "a PDF document"),
    (b"\x89HDF\r\n", "", "an HDF5 file"),
    (b"SQLite format 3\0", "", "an SQLite database"),
)
_TEXTS = ("txt", "warc")  # formats in which anything that looks like a page may be meant


def compression_of(file: BinaryIO, named: str) -> str:
    """The compression of a file that is called `named`: by its first bytes, where they are of another; "none"
    for plain text. Leaves the file at its beginning.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if len(head) < _LEAST_BYTES or (named != "none" and COMPRESSIONS[named].starts(head)):
        return named
    for codec in COMPRESSIONS.values():
        if codec.starts(head):
            return codec.name
    if named == "none":
        return named
    more = file.read(_LOOK_BYTES)
    file.seek(0)
    return "none" if _is_text(more) else named


def _is_text(data: bytes) -> bool:
    """Whether these first bytes of a file are text in UTF-8; not if a compressed stream begins in them."""
    if _CONTROL.search(data) is not None:
        return False
    try:
        data[:-3].decode("utf-8") if len(data) == _LOOK_BYTES else data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(data) - 8
    return True


def compressed_twice(head: bytes) -> Damage | None:
    """What is wrong where the first decompressed bytes are compressed data."""
    for codec in COMPRESSIONS.values():
        if len(head) >= _LEAST_BYTES and codec.starts(head):
            return Damage("not_data", f"it is compressed twice ({codec.name} inside); decompress it once")
    return None


def not_data(head: bytes, form: str) -> str | None:
    """What a file is instead of data of this format, by its first bytes; None: nothing against it."""
    for magic, name, words in _BINARY:
        if head.startswith(magic) and form != name:
            return f"it is {words}"
    if form in _TEXTS or _PAGE.match(start := head.removeprefix(_BOM).lstrip()) is None:
        return None
    code = _STORE_CODE.search(head)
    if code is not None:
        return f"an object store's refusal ({code[1].decode()}) was saved in place of the file; download it again"
    kind = "an XML document" if start[:2] == b"<?" else "an HTML page"
    return f"it is {kind}, as a server sends it instead of a file; download it again"


def file_problem(path: Path, file: StoredFile) -> Damage | None:
    """What the first bytes as stored tell: something else was saved in place of the data."""
    with path.open("rb") as stored:
        head = stored.read(1024)
        size = stored.seek(0, 2)
    if head.startswith(_LFS):
        return Damage("git_lfs_pointer", _pointer(head), len(head))
    words = not_data(head, file.format)
    if head.startswith(_ANNEX):
        words = "it is a pointer of git-annex, not the data; fetch it with `git annex get`"
    return None if words is None else Damage("not_data", words, size)


def _pointer(head: bytes) -> str:
    lines = head.decode("ascii", "replace").splitlines()
    size = next((line[5:] for line in lines if line[:5] == "size "), "?")
    return (
        f"the file is a pointer of Git LFS (of {size} bytes); "
        "fetch it with `git lfs pull`, or download it again"
    )
