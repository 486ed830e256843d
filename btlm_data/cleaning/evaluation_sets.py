"""Reading evaluation sets, which are never read in part: a file that is damaged or unreadable stops the run.

JSON Lines, one JSON value (.json: an array of records, or an object) and parquet; text files also compressed
by gzip, bzip2, xz or zstandard, recognised by their first bytes. Every string in a record, however nested, is
a text of its own.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from btlm_data.errors import ConfigError, InputError

logger = logging.getLogger(__name__)

# Of the files of a folder; a file that is named is tried, whatever its name.
_ENDING = re.compile(r"\.(?:parquet|(?:jsonl?|jsonlines|ndjson)(?:\.(?:gz|bz2|xz|zst))?)$", re.IGNORECASE)
_MAX_BYTES = 2**32  # of one file, decompressed


class EvaluationFile(NamedTuple):
    """One file of an evaluation set. sha256: of its bytes."""

    name: str
    sha256: str


def evaluation_files(patterns: Sequence[str]) -> list[EvaluationFile]:
    """The files that `holdout.decontaminate` names: each file, folder's or pattern's, sorted. Raises
    ConfigError if one gives no file.
    """
    files = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        names = [name for match in matches for name in _files_at(match)]
        if not names:
            raise ConfigError(
                f"holdout.decontaminate: {pattern} matches no file. Without its evaluation set, nothing "
                "would be "
                "compared with it. Correct the path, or remove it from the list."
            )
        for name in names:
            try:
                with Path(name).open("rb") as file:
                    files.append(EvaluationFile(name, hashlib.file_digest(file, "sha256").hexdigest()))
            except OSError as error:
                raise _unreadable(name, error) from error
    return files


def _files_at(path: str) -> list[str]:
    """The file, or all files below a folder that are of a format read here."""
    if not os.path.isdir(path):
        return [path] if os.path.isfile(path) else []
    below = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sorted(name for name in below if _ENDING.search(name))


def records(name: str) -> Iterator[Any]:
    """The records of one file, in order. Raises InputError, naming file and line, if anything of it cannot be
    read.
    """
    path = Path(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error
    if data[:4] == b"PAR1" or path.suffix == ".parquet":
        yield from _parquet_records(name)
        return
    try:
        text = _decompressed(data).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise _unreadable(name, error) from error
    yield from _json_records(text, name)


def texts(record: Any) -> Iterator[str]:
    """Every string in a record, in order, binary values that are UTF-8 included."""
    stack = [record]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):
            try:
                yield value.decode()
            except UnicodeDecodeError:  # an image, or another thing without text
                continue
        elif isinstance(value, dict):
            stack += reversed(value.values())
        elif isinstance(value, list | tuple):
            stack += reversed(value)


def _json_records(text: str, name: str) -> Iterator[Any]:
    # Lines end at "\n" alone: str.splitlines would also cut strings at U+2028 and U+0085, which JSON allows
    # in them.
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                if number == 1 or not values:
                    whole = _whole_json(text)
                    if whole is not None:
                        yield from whole
                        return
                raise InputError(
                    f"The evaluation set {name} line {number} is not JSON ({error}). Every record of it "
                    "must be "
                    "read. Correct the file."
                ) from error
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    yield from values


def _whole_json(text: str) -> list[Any] | None:
    """The records of a file that is one JSON value over several lines; None if it is not."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


def _parquet_records(name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(name) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"The evaluation set {name} is not a parquet file that can be read ({error}). "
            "Download it again, or remove it from the list."
        ) from error


def _decompressed(data: bytes) -> bytes:
    """The whole content. Raises EOFError, OSError or ValueError for what is cut short or damaged, even at the
    end.
    """
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:3] == b"BZh":
        return bz2.decompress(data)
    if data[:6] == b"\xfd7zXZ\x00":
        return lzma.decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return _decompressed_zstd(data)
    return data


def _decompressed_zstd(data: bytes) -> bytes:
    import zstandard

    pieces = []
    try:
        while data:
            frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            pieces.append(frame.decompress(data))
            if not frame.eof:
                raise EOFError("it is cut short: its last zstandard frame has no end")
            data = frame.unused_data
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    return b"".join(pieces)


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(
        f"The evaluation set {name} cannot be read whole ({reason}). "
        "Download it again, or remove it from holdout.decontaminate."
    )
