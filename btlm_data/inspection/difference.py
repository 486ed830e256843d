"""What two prepared datasets have in common, and in what they differ; all generations of each.

A document is the same in both if its cleaned text has the same hash (documents.parquet, `hash`). Where one of
the two has no hashes, it is the same if it begins at the same byte (or row) of the same input file; a file is
the same if its recorded digest is, or its name and size where no digest is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from btlm_data.errors import DataError
from btlm_data.formats import generations
from btlm_data.formats.dataset import DOCUMENTS, Dataset, read_set, read_sets
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.guarded import reading

HASH = "hash"  # column of documents.parquet: 16 bytes
NOT_THERE = "(not there)"
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: multiplication by it permutes


class Setting(msgspec.Struct, frozen=True):
    """A setting that differs. left, right: JSON; "(not there)" where one has no such key."""

    key: str
    left: str
    right: str

    def in_words(self) -> tuple[str, str]:
        """Both values as a recipe spells them: 2048:0.75, 8192:0.25 for lengths; none for an empty one."""
        return _in_words(self.key, self.left), _in_words(self.key, self.right)


class Amount(msgspec.Struct, frozen=True):
    """A number of both."""

    name: str
    left: float | None
    right: float | None


class Common(msgspec.Struct, frozen=True):
    """Documents of a split. first_difference: the row of the stream at which they differ first, counted through all
    generations; None if they never do.
    """

    split: str
    both: int
    only_left: int
    only_right: int
    first_difference: int | None


class Difference(msgspec.Struct, frozen=True):
    """Two datasets. equal: they are the same, bit by bit. inputs: names of files that only one has, or of
    other content.

    shares: of the tokens of each split by source. settings, counts: those that differ. generations: how many each has; the
    settings and files of a later one are named with its number, everything else is of all together.
    """

    left: str
    right: str
    equal: bool
    generations: tuple[int, int]
    settings: list[Setting]
    tokenizers: list[Setting]
    only_left: list[str]
    only_right: list[str]
    changed: list[str]
    counts: list[Amount]
    shares: dict[str, list[Amount]]
    documents: list[Common]
    notes: list[str]


class Side(msgspec.Struct, frozen=True):
    """One of the two. parts: folder and dataset.json of each of its generations, the oldest first."""

    name: str
    parts: Sequence[tuple[Path, Dataset]]

    @staticmethod
    def of(folder: Path) -> Side:
        """The dataset of one set in a folder, with all generations. Raises DataError if it cannot be read."""
        own = read_set(folder)
        root, name = folder.absolute(), ""
        if (
            not generations.listed(root)
            and generations.listed(root.parent)
            and root.name in read_sets(root.parent)
        ):
            root, name = root.parent, root.name
        folders = [generation.root / name for generation in generations.read(root)]
        later = [(path, read_set(path)) for path in folders[1:]]
        return Side(str(folder), [(folder, own), *later])

    @property
    def datasets(self) -> list[Dataset]:
        """Each generation's."""
        return [dataset for _, dataset in self.parts]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that any generation has."""
        return _names(dataset.splits for dataset in self.datasets)


def compare(left: Path, right: Path) -> Difference:
    """Compare the datasets of one set each in two folders, all generations of both. Raises DataError if one cannot be read."""
    return compare_sides(Side.of(left), Side.of(right))


def compare_sides(left: Side, right: Side) -> Difference:
    """The same of what is given. Raises DataError for a damaged manifest; a table that cannot be read is a note."""
    notes = []
    documents = []
    splits = _names((left.splits, right.splits))
    for split in splits:
        try:
            documents.append(_documents(split, left, right))
        except DataError as error:
            notes.append(str(error))
    files = [dict(_files(side)) for side in (left, right)]
    tokenizers = [msgspec.to_builtins(side.datasets[0].tokenizer) for side in (left, right)]
    return Difference(
        left=left.name,
        right=right.name,
        equal=[d.checksum for d in left.datasets] == [d.checksum for d in right.datasets],
        generations=(len(left.parts), len(right.parts)),
        settings=[
            setting
            for number, (a, b) in enumerate(zip(left.datasets, right.datasets, strict=False), 1)
            for setting in _settings(a.configuration, b.configuration, _of_generation(number))
        ],
        tokenizers=list(_settings(*tokenizers)),
        only_left=sorted(files[0].keys() - files[1].keys()),
        only_right=sorted(files[1].keys() - files[0].keys()),
        changed=sorted(
            name for name in files[0].keys() & files[1].keys() if files[0][name] != files[1][name]
        ),
        counts=[amount for amount in _counts(left, right) if amount.left != amount.right],
        shares={split: _shares(split, left, right) for split in splits},
        documents=documents,
        notes=notes,
    )


def _names(listed: Iterable[Iterable[str]]) -> list[str]:
    """Every name once, in the order in which they are met."""
    return list(dict.fromkeys(name for names in listed for name in names))


def _of_generation(number: int) -> str:
    """What stands before the names of settings and files of a generation: nothing for the first."""
    return f"generation {number}: " if number > 1 else ""


def _files(side: Side) -> Iterator[tuple[str, str]]:
    """Name and identity of every input file."""
    for number, dataset in enumerate(side.datasets, 1):
        for file in dataset.inputs:
            yield _of_generation(number) + file.name, _identity(file.digest, file.name, file.size)


def _settings(left: Any, right: Any, prefix: str = "") -> Iterator[Setting]:
    if isinstance(left, dict) and isinstance(right, dict):
        missing = object()
        for key in sorted({*left, *right}):
            a, b = left.get(key, missing), right.get(key, missing)
            if a is missing or b is missing:
                yield Setting(f"{prefix}{key}", *(NOT_THERE if v is missing else _json(v) for v in (a, b)))
            else:
                yield from _settings(a, b, f"{prefix}{key}.")
    elif left != right:
        yield Setting(prefix[:-1], _json(left), _json(right))


def _in_words(key: str, text: str) -> str:
    if text == NOT_THERE:
        return text
    return _spelled(key, json.loads(text))


def _spelled(key: str, value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_spelled(key, item) for item in value)
    if isinstance(value, dict) and key == "seq_len":
        share = value.get("share")
        return f"{value.get('seq_len')}" + (f":{share}" if share is not None else "")
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_spelled(name, item)}" for name, item in value.items())
    return str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _counts(left: Side, right: Side) -> Iterator[Amount]:
    yield Amount("generations", len(left.parts), len(right.parts))
    for split in _names((left.splits, right.splits)):
        for name, field in (
            ("samples", "samples"), ("documents", "documents"), ("tokens", "label_tokens"), ("tokens of the stream", "stream_tokens")
        ):  # fmt: skip
            yield Amount(f"{split}: {name}", *(_sum(side, split, field) for side in (left, right)))
        yield Amount(
            f"{split}: label positions masked (forgotten)", *(_masked(side, split) for side in (left, right))
        )
    for stage in ("acquire", "clean", "dedupe", "holdout", "shuffle"):
        reasons: dict[str, list[int]] = {}
        for k, side in enumerate((left, right)):
            for row in (row for dataset in side.datasets for row in dataset.rows(stage)):
                for reason, amounts in row.dropped.items():
                    reasons.setdefault(reason, [0, 0])[k] += amounts.documents
        for reason, pair in sorted(reasons.items()):
            yield Amount(f"dropped in {stage}: {reason.replace('_', ' ')}", *pair)


def _masked(side: Side, split: str) -> int:
    """Label positions of forgotten documents, which have lost their loss."""
    rows = (row for dataset in side.datasets for row in dataset.rows("forget") if row.split == split)
    return sum(amounts.tokens for row in rows for amounts in row.dropped.values())


def _sum(side: Side, split: str, field: str) -> int | None:
    """A count of a split, of all generations; None where none has it."""
    counts = [getattr(d.splits[split], field) for d in side.datasets if split in d.splits]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _shares(split: str, left: Side, right: Side) -> list[Amount]:
    """Shares of the tokens by source; the largest first."""
    sums: dict[str, list[float]] = {}
    for k, side in enumerate((left, right)):
        rows = [row for dataset in side.datasets for row in dataset.rows("shuffle", split)]
        total = sum(row.out.tokens for row in rows) or 1
        for row in rows:
            if row.out.tokens:
                sums.setdefault(row.source, [0.0, 0.0])[k] += row.out.tokens / total
    return [
        Amount(source, *pair)
        for source, pair in sorted(sums.items(), key=lambda item: (-max(item[1]), item[0]))
    ]


# Documents --------------------------------------------------------------------------------------------------


def _documents(split: str, left: Side, right: Side) -> Common:
    sides = [
        [(root / split / DOCUMENTS, dataset) for root, dataset in side.parts if split in dataset.splits]
        for side in (left, right)
    ]
    hashed = all(HASH in DocumentTable(path).columns for tables in sides for path, _ in tables)
    a, b = (
        np.concatenate(
            [np.empty(0, np.uint64)]
            + [_hashes(path) if hashed else _identities(path, dataset) for path, dataset in tables]
        )
        for tables in sides
    )
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    first = int(differing[0]) if len(differing) else None if len(a) == len(b) else length
    a, b = np.unique(a), np.unique(b)
    both = len(np.intersect1d(a, b, assume_unique=True))
    return Common(split, both, len(a) - both, len(b) - both, first)


def _hashes(path: Path) -> npt.NDArray[np.uint64]:
    """The first half of the hash of each document's text, in stream order: (n,) uint64."""
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path) as file:
        parts = [np.empty(0, np.uint64)]
        for group in range(file.metadata.num_row_groups):
            column = file.read_row_group(group, columns=[HASH]).column(HASH).combine_chunks()
            column = column.chunk(0) if hasattr(column, "chunks") else column
            width = column.type.byte_width
            data = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width :][
                : len(column) * width
            ]
            parts.append(np.ascontiguousarray(data.reshape(-1, width)[:, :8]).view("<u8").reshape(-1))
    return np.concatenate(parts)


def _identities(path: Path, dataset: Dataset) -> npt.NDArray[np.uint64]:
    """What each document of a split is, in stream order: (n,) uint64."""
    files = {file.name: _hash(_identity(file.digest, file.name, file.size)) for file in dataset.inputs}
    parts = [np.empty(0, np.uint64)]
    for _, columns in DocumentTable(path).batches(("file", "offset")):
        codes, names = columns["file"]
        hashes = np.array([files.get(name) or _hash(name) for name in names] or [0], np.uint64)
        parts.append((hashes[codes] ^ columns["offset"].astype(np.uint64)) * _MIX)
    return np.concatenate(parts)


def _identity(digest: str | None, name: str, size: int) -> str:
    return digest or f"{name} {size}"


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogateescape"))
