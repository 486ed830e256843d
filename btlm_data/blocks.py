"""What the one pass over the text leaves per block, and how the later stages find it.

    read/PART-BLOCK.docs           a row per document that passed cleaning, in source order
    read/PART-BLOCK.sketch         `exact` (n, 2) uint64, `bands` (n, B) uint64 [, `signatures` (n, P)
                                    uint32]
    read/PART-BLOCK.tokens         `tokens` (T,), `starts` (n,) uint64: where each document's tokens begin,
                                    `lengths` (n,) uint32
    read/PART-BLOCK.contamination  hits of evaluation n-grams, where requested
    read/PART-BLOCK.fields         record fields to keep (formats/text_columns.py), where requested: a row
                                    per document, then one per document that was dropped
    read/PART-BLOCK.signals        signals of the documents (cleaning/signals.py), where requested: an array a
                                    column; texts as in formats/text_columns.py
    read/PART-BLOCK.rejects        JSON Lines, only where something was rejected or dropped: see
                                    formats/rejects.py

Columns of .docs: `offset` uint64 (where the record begins: bytes decompressed, or row), `line` uint32
(0-based, within the part's stretch of the file), `file` uint16 (index into meta["files"]), `source` uint32
(index into meta["sources"]), `num_bytes` uint32 and `num_chars` uint32 of the cleaned text, `hash` (n, 16)
uint8 (its XXH3, 128 bits, big-endian), `key` uint64 (seeding.document_keys) and, where requested, `sha256`
(n, 32) uint8 of the cleaned text. The same of the documents that cleaning dropped, with `dropped/` before
each name: `offset`, `line`, `file`, `source`, `num_bytes`, `hash`, and `reason` uint16 (index into
meta["reasons"]). Every file's meta["digest"] says which settings and inputs it was made from.

A document's *ordinal* is its row number over all blocks in order: source order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from btlm_data.storage import Store, digest
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

RANGE_DOCUMENTS = (
    2**20
)  # of a task that does a few bytes for each document: tasks enough, and few files of them
TABLE = "blocks.json"


class Block(NamedTuple):
    """One block of documents and its files. Ordinals are global; first_line: of its part's stretch, in the
    file.
    """

    stem: str
    split: str
    first_ordinal: int
    num_documents: int
    first_line: int
    docs: Artifact
    tokens: Artifact
    sketch: Artifact | None
    contamination: Artifact | None
    fields: Artifact | None
    signals: Artifact | None
    rejects: Artifact | None

    @property
    def last_ordinal(self) -> int:
        """One past the last document."""
        return self.first_ordinal + self.num_documents

    @property
    def artifacts(self) -> list[Artifact]:
        """Its files."""
        files = (
            self.docs,
            self.tokens,
            self.sketch,
            self.contamination,
            self.fields,
            self.signals,
            self.rejects,
        )
        return [file for file in files if file is not None]


def make_block(
    stem: str, split: str, first_ordinal: int, num_documents: int, first_line: int, files: Iterable[Artifact]
) -> Block:
    """A block from the files of its stem, distinguished by their endings."""
    by_ending = {
        file.name.removeprefix(f"{stem}."): file for file in files if file.name.startswith(f"{stem}.")
    }
    return Block(
        stem,
        split,
        first_ordinal,
        num_documents,
        first_line,
        by_ending["docs"],
        by_ending["tokens"],
        by_ending.get("sketch"),
        by_ending.get("contamination"),
        by_ending.get("fields"),
        by_ending.get("signals"),
        by_ending.get("rejects"),
    )


def grouped(blocks: Sequence[Block], most: int) -> list[list[Block]]:
    """Consecutive blocks put together as long as they have at most `most` documents (or are alone), in order."""
    groups: list[list[Block]] = []
    for block in blocks:
        if not groups or block.last_ordinal - groups[-1][0].first_ordinal > most:
            groups.append([])
        groups[-1].append(block)
    return groups


def write_table(store: Store, blocks: Sequence[Block]) -> Artifact:
    """Write the table of all blocks, which tasks that may need any of them name instead of thousands of
    files.
    """
    data = (json.dumps(blocks, separators=(",", ":")) + "\n").encode()
    store.write(TABLE, data, durable=False)
    return Artifact(TABLE, len(data), digest.checksum(data))


def read_table(files: TaskFiles, table: Artifact) -> list[Block]:
    """Every block of the run, in source order; the task may then read their files."""
    blocks = files.kept(
        ("blocks", table.checksum), lambda: [_decode(row) for row in json.loads(files.read(table))]
    )
    for block in blocks:
        files.allow(block.artifacts)
    return blocks


def _decode(row: list[object]) -> Block:
    plain, artifacts = row[:5], [Artifact(*file) if file is not None else None for file in row[5:]]  # type: ignore[misc]
    return Block(*plain, *artifacts)  # type: ignore[arg-type]
