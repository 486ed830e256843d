"""What questions of a finished dataset are answered with."""

from __future__ import annotations

import msgspec


class Sighting(msgspec.Struct, frozen=True):
    """A step that took a sample. step: from 0; rank: whose part of the batch; place: in the batch; done:
    whether the newest checkpoint includes it.
    """

    step: int
    rank: int
    place: int
    epoch: int
    done: bool


class FoundSpan(msgspec.Struct, frozen=True):
    """A span of a document in the shards. sample: the row of the split, counted through all generations, None
    in a corpus; row: in the shard (corpus: its first token).

    positions, labels: of the sample (corpus: tokens of the shard) where its tokens or EOS are inputs, and
    labels. tokens: of the document. text: where requested. seen: by the run.
    """

    shard: str
    row: int
    sample: int | None
    positions: tuple[int, int]
    labels: tuple[int, int]
    tokens: tuple[int, int]
    text: str | None = None
    seen: list[Sighting] | None = None


class FoundDocument(msgspec.Struct, frozen=True):
    """A document of a split. document: its row in documents.parquet (of its generation); line: from 1; stream:
    its first position and one past its EOS, counted through all generations; passage: the tokens [first, last)
    of it that hold the passage requested; shared: what it has in common with a file, in words.
    """

    set: str
    split: str
    document: int
    id: str
    file: str
    line: int
    offset: int
    source: str
    bytes: int
    tokens: int
    hash: str | None
    fields: dict[str, str | None]
    stream: tuple[int, int]
    places: list[FoundSpan]
    passage: tuple[int, int] | None = None
    forgotten: bool = False
    generation: int = 1
    shared: str | None = None


class DroppedDocument(msgspec.Struct, frozen=True):
    """A document (or an unreadable record) that is in no split. stage, reason: as the ledger names them;
    detail: what is known beside. kept: FILE#OFFSET of the documents that stay in its place.
    """

    set: str
    split: str | None
    id: str
    file: str
    line: int
    offset: int
    source: str | None
    bytes: int
    stage: str
    reason: str
    detail: str | None
    kept: list[str]
    fields: dict[str, str | None]
    generation: int = 1


class Answer(msgspec.Struct, frozen=True):
    """What one question gave. note: where it gave nothing, or not all, why."""

    query: str
    value: str
    documents: list[FoundDocument]
    dropped: list[DroppedDocument]
    note: str | None = None
