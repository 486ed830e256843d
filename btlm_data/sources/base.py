"""What every source gives: a sorted list of files, each with an identity that does not depend on where it lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file.

    name: '/'-separated and relative to the source; it is the file's identity, gives the order (text order within a
    split) and enters the shuffle key, so the same files give the same shards from a folder, a hub or a bucket.
    url: a local path, or what a remote source's fetcher understands. size: bytes as stored. version: changes when the
    content may have changed (mtime, ETag or SHA-256). source: the source name of all its documents, where the file's
    place decides it; otherwise None, and the record says it.
    """

    name: str
    url: str
    size: int
    split: str
    version: str
    format: str
    compression: str
    source: str | None = None
    sha256: str | None = None
    text_field: str | None = None  # where this file's records differ from the source's setting

    @property
    def identity(self) -> str:
        """What receipts remember of it."""
        return (
            f"{self.split}|{self.name}|{self.size}|{self.version}|{self.source or ''}|{self.text_field or ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
