"""Reading from plain arguments, for tests of records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from btlm_data.records.base import Fields, ReadOptions, Stretch
from btlm_data.records.batch import RecordBatch, Reject
from btlm_data.records.reader import read_batches
from tests.strategies import source_file


def batches(
    path: Path,
    text: str = "text",
    source: str = "meta.redpajama_set_name",
    skip: tuple[int, int] = (0, 0),
    batch_bytes: int = 16 * 2**20,
    with_records: bool = False,
    **options: Any,
) -> Iterator[RecordBatch]:
    """Batches of a file that its name says all of."""
    chosen = ReadOptions(Fields(text, source), **options)
    return read_batches(path, source_file(path), chosen, Stretch(0, None, *skip), batch_bytes, with_records)


def texts(path: Path, *arguments: Any, **options: Any) -> list[str]:
    """Its documents."""
    return [text for batch in batches(path, *arguments, **options) for text in batch.texts]


def sources(path: Path, *arguments: Any, **options: Any) -> list[str]:
    """Their source names."""
    return [name for batch in batches(path, *arguments, **options) for name in batch.sources]


def rejects(path: Path, *arguments: Any, **options: Any) -> list[Reject]:
    """What could not be read of it."""
    return [reject for batch in batches(path, *arguments, **options) for reject in batch.rejects]


def reasons(path: Path, *arguments: Any, **options: Any) -> list[str]:
    """Why not."""
    return [reject.reason for reject in rejects(path, *arguments, **options)]


def assert_resumes(path: Path, batch_bytes: int, text: str = "text", **options: Any) -> int:
    """Reading continued behind each batch gives the rest; returns the number of batches."""
    whole = list(batches(path, text, batch_bytes=batch_bytes, **options))
    for done in range(1, len(whole)):
        skip = (whole[done - 1].end, whole[done - 1].num_lines)
        rest = list(batches(path, text, skip=skip, batch_bytes=batch_bytes, **options))
        assert rest == whole[done:]
    return len(whole)
