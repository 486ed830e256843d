"""Find documents by what the tables say of them, and where those that are in no split left. All questions
share one pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats import key_index
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.lineage.datasets import SetView
from btlm_data.lineage.queries import Query

_URLS = ("url", "uri", "warc-target-uri")


class Search(msgspec.Struct, frozen=True):
    """Keys of one kind. wanted: values by column, as DocumentTable.matching takes them; hashes: (n,) uint64, of the keys
    (formats/key_index.py).
    """

    kind: key_index.Kind
    wanted: Mapping[str, set[Any]]
    hashes: npt.NDArray[np.uint64]


# Row groups of a table that can have what is looked for; None: all.
GroupsOf = Callable[[str, Search], list[int] | None]


class Wanted(msgspec.Struct):
    """What is looked for: value -> numbers of the questions. offsets, lines: (file, offset) and (file, line
    from 0).
    """

    ids: dict[str, list[int]] = msgspec.field(default_factory=dict)
    urls: dict[str, list[int]] = msgspec.field(default_factory=dict)
    hashes: dict[bytes, list[int]] = msgspec.field(default_factory=dict)
    offsets: dict[tuple[str, int], list[int]] = msgspec.field(default_factory=dict)
    lines: dict[tuple[str, int], list[int]] = msgspec.field(default_factory=dict)

    @staticmethod
    def of(queries: Sequence[Query]) -> Wanted:
        """What some questions of documents ask for."""
        wanted = Wanted()
        for number, query in enumerate(queries):
            if query.kind in ("id", "any"):
                wanted.ids.setdefault(query.value, []).append(number)
            if query.kind in ("url", "any"):
                wanted.urls.setdefault(query.value, []).append(number)
            if (digest := query.digest) is not None:
                wanted.hashes.setdefault(digest, []).append(number)
            if (location := query.file_and_offset) is not None:
                wanted.offsets.setdefault(location, []).append(number)
            if query.kind == "line":
                wanted.lines.setdefault(query.file_and_line, []).append(number)
        return wanted

    def searches(self, columns: Sequence[str]) -> Iterator[Search]:
        """What to look for in a table with these columns."""
        if self.ids and "id" in columns:
            yield Search("id", {"id": set(self.ids)}, _of_texts(self.ids))
        if self.urls:
            hashes = _of_texts(self.urls)
            yield from (Search("url", {column: set(self.urls)}, hashes) for column in url_columns(columns))
        if self.hashes and "hash" in columns:
            hashes = np.array([key_index.of_digest(digest) for digest in self.hashes], np.uint64)
            yield Search("hash", {"hash": set(self.hashes)}, hashes)
        kinds: tuple[tuple[dict[tuple[str, int], list[int]], Literal["offset", "line"]], ...]
        kinds = ((self.offsets, "offset"), (self.lines, "line"))
        for wanted, kind in kinds:
            if wanted:
                files, numbers = zip(*wanted, strict=True)
                hashes = key_index.pairs(_of_texts(files), np.array(numbers, np.uint64))
                yield Search(kind, {"file": set(files), kind: set(numbers)}, hashes)

    def columns(self, present: Sequence[str]) -> list[str]:
        """Those of a table with the columns `present` that `answered_by` looks at."""
        looked_at = [
            (self.ids, ["id"]),
            (self.urls, url_columns(present)),
            (self.hashes, ["hash"]),
            (self.offsets, ["file", "offset"]),
            (self.lines, ["file", "line"]),
        ]
        return [name for values, names in looked_at if values for name in names]

    def answered_by(self, document: Mapping[str, Any]) -> list[int]:
        """The questions that a document of a table answers."""
        numbers = [
            *self.ids.get(document.get("id") or "", ()),
            *self.hashes.get(document.get("hash") or b"", ()),
            *self.offsets.get((document.get("file", ""), document.get("offset", -1)), ()),
            *self.lines.get((document.get("file", ""), document.get("line", -1)), ()),
        ]
        for column in url_columns(list(document)):
            numbers += self.urls.get(document[column] or "", ())
        return sorted(set(numbers))


def url_columns(columns: Sequence[str]) -> list[str]:
    """Kept fields that hold URLs, by their names."""
    return [
        name for name in columns if name.startswith("fields.") and name.rpartition(".")[2].lower() in _URLS
    ]


def document_name(document: Mapping[str, Any]) -> str:
    """A document's own id; its file and offset where it has none."""
    own = document.get("id")
    return own if own is not None else f"{document['file']}#{document['offset']}"


def in_table(
    table: DocumentTable,
    wanted: Wanted,
    name: str,
    groups_of: GroupsOf,
    columns: Collection[str] | None = None,
) -> list[tuple[dict[str, Any], list[int]]]:
    """(document, questions it answers) of a table, in its order. name: of the table in the set's folder. columns: of the
    documents that are wanted beside those that answer; None: all.
    """
    rows: set[int] = set()
    for search in wanted.searches(table.columns):
        rows.update(table.matching(search.wanted, groups_of(name, search)))
    if columns is not None:
        columns = {*columns, *wanted.columns(table.columns)}
    candidates = [
        (document, wanted.answered_by(document)) for document in table.described(sorted(rows), columns)
    ]
    return [(document, numbers) for document, numbers in candidates if numbers]


def everywhere(name: str, search: Search) -> None:
    """Without a key index: every row group can have it."""


def _of_texts(values: Iterable[str]) -> npt.NDArray[np.uint64]:
    return np.array([key_index.of_text(value) for value in values], np.uint64)


def rejected(root: Path, wanted: Wanted) -> list[tuple[dict[str, Any], list[int]]]:
    """Records of rejects.jsonl at the files and offsets (or lines) that are searched for."""
    path = root / "rejects.jsonl"
    if not (wanted.offsets or wanted.lines) or not path.exists():
        return []
    require_regular(path)
    records = []
    with reading(path), path.open("rb") as file:
        for line in file:
            record = json.loads(line)
            numbers = [
                *wanted.offsets.get((record["file"], record["offset"]), ()),
                *wanted.lines.get((record["file"], record["line"] - 1), ()),
            ]
            if numbers:
                records.append((record, sorted(set(numbers))))
    return records


def kept_instead(of_set: SetView, document: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """(FILE#OFFSET of the document that stays in a duplicate's place, how similar the two are in words), out
    of removals.parquet; nothing where it does not say.
    """
    path = of_set.root / "removals.parquet"
    if not path.exists():
        return [], None
    table = DocumentTable(path, ("file", "offset", "kept_file", "kept_offset", "similarity"))
    rows = table.matching({"file": {document["file"]}, "offset": {document["offset"]}})
    for removal in table.described(rows):
        kept = [] if removal["kept_file"] is None else [f"{removal['kept_file']}#{removal['kept_offset']}"]
        similarity = removal["similarity"]
        return kept, None if similarity is None else f"similarity {similarity:.3f}"
    return [], None
