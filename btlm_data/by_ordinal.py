"""Columns of all documents by their ordinals, in files of ranges of documents: so that no task holds a row of every document.

A list of such files is written as by_group.py writes its own: [[first ordinal, end, name, size, checksum], ...], in order and
without gaps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.by_group import GroupedFile
from btlm_data.errors import DataError
from btlm_data.storage import Store
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles


class ByOrdinal:
    """Opened columns of all documents. Raises DataError for a damaged file, or one that does not have the rows that its list says."""

    def __init__(self, files: TaskFiles, listed: Artifact) -> None:
        """listed: of `write_list`."""
        self._files = files
        self._held = by_group.read_list(files, listed)
        self._firsts = [file.first for file in self._held]

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """A column of the documents [first, last): (last - first, ...) of the dtype of the files; of one file it is not copied."""
        begin = max(0, bisect_right(self._firsts, first) - 1)
        parts = []
        for held in self._held[begin:]:
            low, high = max(first, held.first), min(last, held.end)
            if high <= low:
                break
            self._files.allow([held.file])
            parts.append(self._files.columns(held.file).rows(name, low - held.first, high - held.first))
        if sum(map(len, parts)) != last - first:
            raise DataError(
                f"The work files of {name!r} do not have the documents {first:,} to {last:,}. Remove the work folder and rerun "
                "the same command."
            )
        if not parts:
            return np.empty(0, np.uint8)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A column of all documents, (N, ...)."""
        return self.rows(name, 0, self._held[-1].end if self._held else 0)


def write_list(store: Store, name: str, ranges: Sequence[tuple[int, int, Artifact]]) -> Artifact:
    """Write the list of the files of ranges [first, end) of documents, in order."""
    return by_group.write_list(store, name, [GroupedFile(file, first, end) for first, end, file in ranges])
