"""Which stretches of which source files a task of `read` reads.

A task reads one large file, one byte range of a large plain file, or a run of small files. What the tasks are
depends on names, sizes and --limit only, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from btlm_data.estimate import Estimate, Workload
from btlm_data.records.base import ReadOptions
from btlm_data.records.reader import is_divisible
from btlm_data.sources.base import SourceFile

RANGE_BYTES = 64 * 2**20  # a plain JSON Lines file is cut into byte ranges of this many
GROUP_BYTES = 16 * 2**20  # small files are read together up to this many bytes as stored
GROUP_FILES = 256


def estimate(workload: Workload) -> list[Estimate]:
    """What the stage `acquire` takes besides the tables of evaluation sets: the start of the run, and listing
    the files.
    """
    rates, volume = workload.rates, workload.volume
    return [
        Estimate(
            "acquire",
            tasks=1,
            memory_bytes=rates.process_bytes + 2000 * volume.files,
            cpu_seconds=rates.start + rates.file * volume.files,
        )
    ]


class FileRange(msgspec.Struct, frozen=True):
    """A stretch of a file; start and stop as in records.reader.read_batches. max_line: lines from here on are
    not read.
    """

    file: SourceFile
    start: int = 0
    stop: int | None = None
    max_line: int | None = None

    @property
    def identity(self) -> str:
        """What receipts remember of it."""
        return f"{self.file.identity}|{self.start}|{self.stop}|{self.max_line}"

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        return (self.stop or self.file.size) - self.start


def group(whole_files: Sequence[FileRange], options: ReadOptions) -> list[list[FileRange]]:
    """The ranges that each task reads, in source order. whole_files: each from its beginning."""
    groups: list[list[FileRange]] = []
    small: list[FileRange] = []
    for whole in whole_files:
        ranges = _cut(whole, options)
        is_small = len(ranges) == 1 and ranges[0].file.size < GROUP_BYTES
        fits = (
            is_small
            and small
            and small[0].file.split == ranges[0].file.split
            and len(small) < GROUP_FILES
            and sum(r.file.size for r in small) + ranges[0].file.size <= GROUP_BYTES
        )
        if small and not fits:
            groups.append(small)
            small = []
        if is_small:
            small.append(ranges[0])
        else:
            groups += [[file_range] for file_range in ranges]
    return [*groups, small] if small else groups


def _cut(whole: FileRange, options: ReadOptions) -> list[FileRange]:
    file = whole.file
    if whole.max_line is not None or file.size <= RANGE_BYTES or not is_divisible(file, options):
        return [whole]
    edges = list(range(0, file.size, RANGE_BYTES))
    return [FileRange(file, start, None if start == edges[-1] else start + RANGE_BYTES) for start in edges]
