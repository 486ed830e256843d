"""Which fields the records of a file have: for advice where a source is mostly unreadable."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from btlm_data.records.base import ReadOptions, StoredFile
from btlm_data.records.batch import RawRecord
from btlm_data.records.fields import kind
from btlm_data.records.reader import read_batches

_BATCH_BYTES = 2**20
_MAX_FIELDS = 200  # a record may have any number; what is looked at is bounded
_MAX_DEPTH = 3


class FieldSummary(msgspec.Struct, frozen=True):
    """One field of the records looked at.

    name: dotted, as `--text-field` takes it. num_records: how many of them have it. kinds: what its values
    are ("a string", "null", "an array", ...), commonest first. median_chars, max_chars: of its strings; 0 if
    it has none.
    """

    name: str
    num_records: int
    kinds: tuple[str, ...]
    median_chars: int
    max_chars: int


class Description(msgspec.Struct, frozen=True):
    """The fields of the first records of a file, those with the longest strings first."""

    num_records: int
    fields: tuple[FieldSummary, ...]

    def text_candidates(self, tried: str) -> tuple[str, ...]:
        """Fields that may hold the text: strings in at least half of the records, the longest first, without
        `tried`.
        """
        return tuple(
            summary.name
            for summary in self.fields
            if summary.kinds[0] == "a string"
            and summary.max_chars
            and 2 * summary.num_records >= self.num_records
            and summary.name != tried
        )


class _Seen(msgspec.Struct):
    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    lengths: list[int] = msgspec.field(default_factory=list)


def describe_fields(
    path: Path, file: StoredFile, options: ReadOptions, max_records: int = 100
) -> Description:
    """Look at the first `max_records` records of `file`, readable or not. Reads about as much of it as they
    take.
    """
    seen: dict[str, _Seen] = {}
    count = 0
    for record in _first(path, file, options, max_records):
        count += 1
        for name, value in _walk(record, "", 0):
            if name in seen or len(seen) < _MAX_FIELDS:
                summary = seen.setdefault(name, _Seen())
                summary.kinds[kind(value)] += 1
                if isinstance(value, str):
                    summary.lengths.append(len(value))
    summaries = [
        FieldSummary(
            name,
            sum(values.kinds.values()),
            tuple(name for name, _ in values.kinds.most_common()),
            int(statistics.median(values.lengths)) if values.lengths else 0,
            max(values.lengths, default=0),
        )
        for name, values in seen.items()
    ]
    return Description(count, tuple(sorted(summaries, key=lambda field: -field.median_chars)))


def _first(
    path: Path, file: StoredFile, options: ReadOptions, max_records: int
) -> Iterator[Mapping[str, Any]]:
    left = max_records
    for batch in read_batches(path, file, options, batch_bytes=_BATCH_BYTES, with_records=True):
        assert batch.records is not None
        assert batch.rejected_records is not None
        documents = zip(batch.lines, batch.records, strict=True)
        rejects = (
            (reject.line, record)
            for reject, record in zip(batch.rejects, batch.rejected_records, strict=True)
        )
        read: list[tuple[int, RawRecord | None]] = sorted(chain(documents, rejects), key=lambda pair: pair[0])
        for _, record in read:
            fields = record.fields() if record is not None else {}
            if fields:
                yield fields
                left -= 1
            if not left:
                return


def _walk(value: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Every field under its dotted name; objects are descended into."""
    for key, inner in list(value.items())[:_MAX_FIELDS]:
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner and depth < _MAX_DEPTH:
            yield from _walk(inner, f"{name}.", depth + 1)
        else:
            yield name, inner
