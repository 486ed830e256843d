"""Counts how the files of columns are read: opens, reads and bytes of each step, tokens apart from tables.

Opening a file reads its first 64 kB, and what whole arrays these have; that is no read of its own. What is read of a file that is
mapped is counted as if it were requested from a store.
"""

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

SENT = "pack/pieces"  # files whose `rows` are tokens, with a table of their pieces before them


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
    is_apart = [False]  # opening, or counted otherwise
    plain_open, plain_read, plain_scattered = Columns.__init__, Columns._read, Columns.scattered

    @contextlib.contextmanager
    def apart() -> Iterator[None]:
        before, is_apart[0] = is_apart[0], True
        yield
        is_apart[0] = before

    def counted_open(self: Columns, *args: Any) -> None:
        with apart():
            plain_open(self, *args)
        if current:
            found[current[0]].opens += 1
            opened[0] += 1

    def add(self: Columns, name: str, reads: int, num_bytes: int) -> None:
        if current and num_bytes:
            is_sent = name == "rows" and self._artifact.name.startswith(SENT)
            step = found[current[0]]
            kind = step.tokens if name == "tokens" or is_sent else step.tables
            kind.reads += reads
            kind.bytes += num_bytes

    def counted_read(self: Columns, begin: int, end: int) -> Any:
        value = plain_read(self, begin, end)
        if not is_apart[0]:
            [first, *_] = (name for name in self.names if self._bounds(name)[1] > begin)
            add(self, first, 1, len(value))
        return value

    def counted_scattered(self: Columns, name: str, starts: Any, counts: Any) -> Any:
        with apart():
            value = plain_scattered(self, name, starts, counts)
        order = np.argsort(starts, kind="stable")
        ends = (starts + counts)[order]
        reads = 1 + np.count_nonzero(starts[order][1:] > ends[:-1])
        add(self, name, int(reads), int(counts.sum()) * value.itemsize)
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
    patch.setattr(Columns, "_read", counted_read)
    patch.setattr(Columns, "scattered", counted_scattered)
    patch.setattr(local, "execute", counted_execute)
    yield found
