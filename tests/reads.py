"""Counts how the files of columns are read: opens, reads and bytes of each step, tokens apart from tables."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from btlm_data.engine import local
from btlm_data.engine.execute import Job, execute
from btlm_data.formats.columns import Columns

LARGE = {"tokens", "rows"}  # columns that hold tokens; the others are tables


@dataclass
class Amount:
    """Reads of one kind. most_opens: files that one task opened at most."""

    reads: int = 0
    bytes: int = 0

    @property
    def mean(self) -> float:
        """Bytes of a read."""
        return self.bytes / max(1, self.reads)


@dataclass
class Reads:
    """What one step's tasks have read."""

    tokens: Amount = field(default_factory=Amount)
    tables: Amount = field(default_factory=Amount)
    tasks: int = 0
    opens: int = 0
    most_opens: int = 0


@contextlib.contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[dict[str, Reads]]:
    """Count in this process, by step; for runs with one worker."""
    found: dict[str, Reads] = defaultdict(Reads)
    current: list[str] = []
    opened: list[int] = [0]
    plain_open, plain_rows, plain_scattered = Columns.__init__, Columns.rows, Columns.scattered

    def counted_open(self: Columns, *args: Any) -> None:
        plain_open(self, *args)
        if current:
            found[current[0]].opens += 1
            opened[0] += 1

    def add(name: str, reads: int, num_bytes: int) -> None:
        if current and num_bytes:
            kind = found[current[0]].tokens if name.rpartition("/")[2] in LARGE else found[current[0]].tables
            kind.reads += reads
            kind.bytes += num_bytes

    def counted_rows(self: Columns, name: str, first: int, last: int) -> Any:
        value = plain_rows(self, name, first, last)
        add(name, 1, value.nbytes)
        return value

    def counted_scattered(self: Columns, name: str, starts: Any, counts: Any) -> Any:
        value = plain_scattered(self, name, starts, counts)
        order = np.argsort(starts, kind="stable")
        ends = (starts + counts)[order]
        add(
            name,
            int(1 + np.count_nonzero(starts[order][1:] > ends[:-1])),
            int(counts.sum()) * value.itemsize,
        )
        return value

    def counted_execute(job: Job, *args: Any) -> Any:
        current.append(job.step)
        opened[0] = 0
        try:
            return execute(job, *args)
        finally:
            step = found[current.pop()]
            step.tasks += 1
            step.most_opens = max(step.most_opens, opened[0])

    patch.setattr(Columns, "__init__", counted_open)
    patch.setattr(Columns, "rows", counted_rows)
    patch.setattr(Columns, "scattered", counted_scattered)
    patch.setattr(local, "execute", counted_execute)
    yield found
