"""The kept, deduplicated text as a corpus of its own, in SlimPajama's layout (`--emit-text DIR`).

    train/chunk1 ... chunk10/example_train_N.jsonl.zst
    validation/ and test/ chunk1 ... chunk5/example_holdout_N.jsonl.zst

Each file holds 10,000 documents (the last of a split: the rest) in source order, one JSON object a line,
{"text": str, "meta": {"redpajama_set_name": str}} with every other field of the record as it was, as one zstd
frame. Files are numbered from 0 through a split, and a split's files are divided evenly over its chunks. A
file depends on its own documents only, so files can be written in any order by any number of workers with the
same bytes (for one version of zstd; it is recorded in the manifest of the run).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO

import msgspec
import zstandard

from btlm_data.errors import OutputError
from btlm_data.records.fields import MISSING, lookup, to_json, without
from btlm_data.storage import digest

VERSION = 2
DOCUMENTS_PER_FILE = 10_000
CHUNKS = {"train": 10, "validation": 5, "test": 5}
LEVEL = 3  # zstd's default; SlimPajama's files come at about this size


def encode(text: str, source: str, fields: Mapping[str, Any], text_field: str) -> bytes:
    """The line of one document, without its newline. fields: of its record; text_field: where the text was.

    The record keeps its fields, but for the text, which is the cleaned one and is called "text". Its "meta"
    gains the source name; a "meta" or "text" that is something else is kept inside it.
    """
    rest = without(fields, text_field if lookup(fields, text_field) is not MISSING else "text")
    meta = rest.pop("meta", {})
    own = dict(meta) if isinstance(meta, Mapping) else {"meta": meta}
    if "text" in rest:
        own["text"] = rest.pop("text")
    return to_json({"text": text, "meta": own | {"redpajama_set_name": source}, **rest})


class Stretch(msgspec.Struct, frozen=True):
    """A run of kept documents of one block: its kept documents number `start` to `stop` (excluded), counted
    within the block.
    """

    block: int
    start: int
    stop: int


class OutputFile(msgspec.Struct, frozen=True):
    """One file to write: its name below the output folder, and where its documents are."""

    name: str
    stretches: tuple[Stretch, ...]

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)


class Written(msgspec.Struct, frozen=True):
    """What a written file holds. size: bytes as stored."""

    name: str
    num_documents: int
    size: int
    sha256: str


def plan(split: str, kept_per_block: Sequence[int], per_file: int = DOCUMENTS_PER_FILE) -> list[OutputFile]:
    """Which kept documents go into which file of a split.

    kept_per_block: kept documents of each block of the split, blocks in source order. Each output file can
    then be written by a task of its own.
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


def write_file(stored: BinaryIO, file: OutputFile, lines: Iterable[bytes]) -> Written:
    """Write one output file into `stored`, an empty file open for reading and writing.

    lines: of exactly the documents that `file` was planned for, in order, as `encode` makes them; they are
    taken one by one, so that memory holds one at a time. Raises OutputError if their number is not the
    planned one.
    """
    number = 0
    with zstandard.ZstdCompressor(level=LEVEL).stream_writer(stored, closefd=False) as stream:
        for line in lines:
            stream.write(line + b"\n")
            number += 1
    if number != file.num_documents:
        raise OutputError(
            f"{file.name}: {number} documents came where {file.num_documents} were planned, so the text read now is not "
            "the text read before. The source has changed during the run: rerun the same command."
        )
    size = stored.tell()
    stored.seek(0)
    return Written(file.name, number, size, digest.sha256_stream(stored))


def chosen(lines: Iterable[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Of one block's kept documents, those of a Stretch."""
    return islice(lines, start, stop)
