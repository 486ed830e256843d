"""The kept, deduplicated text as a corpus of its own, in SlimPajama's layout (`--emit-text DIR`).

    train/chunk1 ... chunk10/example_train_N.jsonl.zst
    validation/ and test/ chunk1 ... chunk5/example_holdout_N.jsonl.zst

Each file holds 10,000 documents (the last of a split: the rest) in source order, one JSON object a line,
{"text": str, "meta": {"redpajama_set_name": str}}, as one zstd frame. Files are numbered from 0 through a split, and a split's
files are divided evenly over its chunks. A file depends on its own documents only, so files can be written in any order by any number of workers
with the same bytes (for one version of zstd; it is recorded in the manifest of the run).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
import zstandard

from btlm_data.errors import OutputError
from btlm_data.storage import digest

VERSION = 1
DOCUMENTS_PER_FILE = 10_000
CHUNKS = {"train": 10, "validation": 5, "test": 5}
LEVEL = 3  # zstd's default; SlimPajama's files come at about this size


class _Meta(msgspec.Struct):
    redpajama_set_name: str


class _Record(msgspec.Struct):
    text: str
    meta: _Meta


@dataclass(frozen=True)
class Stretch:
    """A run of kept documents of one block: its kept documents number `start` to `stop` (excluded), counted within the block."""

    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class OutputFile:
    """One file to write: its name below the output folder, and where its documents are."""

    name: str
    stretches: tuple[Stretch, ...]

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)


@dataclass(frozen=True)
class Written:
    """What a written file holds. num_bytes: UTF-8 bytes of text; size: bytes as stored."""

    name: str
    num_documents: int
    num_bytes: int
    size: int
    sha256: str


def plan(split: str, kept_per_block: Sequence[int], per_file: int = DOCUMENTS_PER_FILE) -> list[OutputFile]:
    """Which kept documents go into which file of a split.

    kept_per_block: kept documents of each block of the split, blocks in source order. Each output file can then be written by a task of its own.
    """
    files: list[list[Stretch]] = []
    room = 0
    for block, kept in enumerate(kept_per_block):
        start = 0
        while start < kept:
            if room == 0:
                files.append([])
                room = per_file
            stop = min(kept, start + room)
            files[-1].append(Stretch(block, start, stop))
            room -= stop - start
            start = stop
    return [
        OutputFile(_name(split, number, len(files)), tuple(stretches))
        for number, stretches in enumerate(files)
    ]


def _name(split: str, number: int, num_files: int) -> str:
    per_chunk = -(-num_files // CHUNKS.get(split, 1))
    kind = "train" if split == "train" else "holdout"
    return f"{split}/chunk{1 + number // per_chunk}/example_{kind}_{number}.jsonl.zst"


def write_file(stored: BinaryIO, file: OutputFile, documents: Iterable[tuple[str, str]]) -> Written:
    """Write one output file into `stored`, an empty file open for reading and writing.

    documents: (text, source name), exactly those that `file` was planned for, in order; they are taken one by one, so
    that memory holds one at a time. Raises OutputError if their number is not the planned one.
    """
    encoder = msgspec.json.Encoder()
    number = num_bytes = 0
    with zstandard.ZstdCompressor(level=LEVEL).stream_writer(stored, closefd=False) as stream:
        for text, source in documents:
            stream.write(encoder.encode(_Record(text, _Meta(source))))
            stream.write(b"\n")
            number += 1
            num_bytes += len(text) if text.isascii() else len(text.encode())
    if number != file.num_documents:
        raise OutputError(
            f"{file.name}: {number} documents came where {file.num_documents} were planned, so the text read now is not "
            "the text read before. The source has changed during the run: rerun the same command."
        )
    size = stored.tell()
    stored.seek(0)
    return Written(file.name, number, num_bytes, size, digest.sha256_stream(stored))


def chosen(documents: Iterable[tuple[str, str]], start: int, stop: int) -> Iterator[tuple[str, str]]:
    """Of one block's kept documents, those of a Stretch."""
    for number, document in enumerate(documents):
        if number >= stop:
            return
        if number >= start:
            yield document
