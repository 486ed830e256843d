"""What the one pass over the text leaves per block, and how the later stages find it.

    work/read/PART-BLOCK.docs     a row per document that passed cleaning, in source order
    work/read/PART-BLOCK.sketch   `exact` (n, 2) uint64, `bands` (n, B) uint64 [, `signatures` (n, P) uint32]
    work/read/PART-BLOCK.tokens   `tokens` (T,), `starts` (n,) uint64: where each document's tokens begin, `lengths` (n,) uint32
    work/read/PART-BLOCK.rejects  JSON Lines, only where something was rejected or dropped: see formats/rejects.py

Columns of .docs: `offset` uint64 (where the record begins: bytes decompressed, or row), `line` uint32 (0-based, within
the part's stretch of the file), `file` uint16 (index into meta["files"]), `source` uint32 (index into meta["sources"]),
`num_bytes` uint32 and `num_chars` uint32 of the cleaned text, `key` uint64 (seeding.document_keys) and, where asked for,
`sha256` (n, 32) uint8 of the cleaned text. Every file's meta["digest"] says which settings and inputs it was made from.

A document's *ordinal* is its row number over all blocks in order: source order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Block:
    """One block of documents. Paths are relative to the work folder, without the ending; ordinals are global."""

    stem: str
    split: str
    first_ordinal: int
    num_documents: int

    def docs(self, work_dir: Path) -> Path:
        """The table of documents."""
        return work_dir / f"{self.stem}.docs"

    def sketch(self, work_dir: Path) -> Path:
        """The sketches."""
        return work_dir / f"{self.stem}.sketch"

    def tokens(self, work_dir: Path) -> Path:
        """The tokens."""
        return work_dir / f"{self.stem}.tokens"

    @property
    def last_ordinal(self) -> int:
        """One past the last document."""
        return self.first_ordinal + self.num_documents


def number(stems: Sequence[tuple[str, str, int]]) -> list[Block]:
    """Blocks from (stem, split, documents) in source order, each given its first ordinal."""
    blocks: list[Block] = []
    ordinal = 0
    for stem, split, num_documents in stems:
        blocks.append(Block(stem, split, ordinal, num_documents))
        ordinal += num_documents
    return blocks
