"""The first N records of each split (`--limit`): where in which file each split ends.

    count-ROUND  a file, or a run of small ones -> the records of each, and the line at which the limit is reached
    limit        the file in which a split ends -> that line, where a task that began before it could not know it

Files are counted in rounds. Each is of as many bytes as the records that are still missing should take, and of as many as all
rounds before it at least: so little more is read than the limit needs, and there are as many rounds as the logarithm of what is
read. What comes out depends on the files only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from btlm_data.fingerprint import digest
from btlm_data.records.base import ReadOptions
from btlm_data.records.reader import count_records
from btlm_data.sources.base import SourceFile
from btlm_data.sources.fetch import Fetcher
from btlm_data.stages import file_ranges
from btlm_data.stages.file_ranges import FileRange
from btlm_data.task import Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles

VERSION = 1
_GROWTH = 8  # a round has at most so many times the bytes of all rounds before it


class CountSettings(msgspec.Struct, frozen=True):
    """How records are read."""

    fetcher: Fetcher
    options: ReadOptions

    @property
    def digest(self) -> str:
        """Of what decides how many records there are."""
        return digest(VERSION, msgspec.to_builtins(self.options))


class _Split(msgspec.Struct):
    """The files of one split, and how far they are counted. line: in the last of the files that are counted, what is from there on
    is not read; -1 where nothing is left out, None where it is not known yet.
    """

    limit: int
    files: list[SourceFile] = msgspec.field(default_factory=list)
    num_files: int = 0  # counted
    num_bytes: int = 0  # counted
    num_records: int = 0  # in the files before the last of them
    of_last: int = 0  # records
    line: int | None = -1

    @property
    def left(self) -> int:
        """Records up to the limit."""
        return self.limit - self.num_records - self.of_last

    @property
    def is_open(self) -> bool:
        """Whether another file is to be counted."""
        return self.left > 0 and self.num_files < len(self.files)

    def next_round(self) -> list[list[SourceFile]]:
        """The files of each task of the next round."""
        wanted = file_ranges.GROUP_BYTES
        if self.num_bytes:
            missing = self.num_bytes * self.left // max(1, self.limit - self.left)
            wanted = min(max(self.num_bytes, missing), _GROWTH * self.num_bytes)
        groups: list[list[SourceFile]] = []
        taken = held = 0
        for file in self.files[self.num_files :]:
            if groups and taken >= wanted:
                break
            is_full = held + file.size > file_ranges.GROUP_BYTES
            if not groups or is_full or len(groups[-1]) >= file_ranges.GROUP_FILES:
                groups.append([])
                held = 0
            groups[-1].append(file)
            taken, held = taken + file.size, held + file.size
        return groups

    def add(self, group: Sequence[SourceFile], most: int, counts: Counts) -> None:
        """Take what a task has counted of the next files. most: records at which it stopped."""
        is_first_of_round = most == self.left
        for file, num_records in zip(group, counts.extra["records"], strict=True):
            if self.left == 0:
                return
            left = self.left
            self.num_files += 1
            self.num_bytes += file.size
            self.num_records += self.of_last
            self.of_last = min(num_records, left)
            if self.left == 0:
                self.line = counts.extra["end"] if is_first_of_round else None


def first_records(
    files: Sequence[SourceFile],
    limit: int,
    settings: CountSettings,
    run: Callable[[Step], Sequence[TaskResult]],
) -> list[FileRange]:
    """The ranges with the first `limit` records of each split. files: in order, splits one after the other. run: runs a step."""
    splits: dict[str, _Split] = {}
    for file in files:
        splits.setdefault(file.split, _Split(limit)).files.append(file)
    number = 0
    while open_splits := [split for split in splits.values() if split.is_open]:
        number += 1
        parts = [(split, group, split.left) for split in open_splits for group in split.next_round()]
        tasks = [_task(i, group, most) for i, (_, group, most) in enumerate(parts)]
        for (split, group, most), result in zip(
            parts, run(_step(f"acquire.count-{number}", tasks, settings)), strict=True
        ):
            split.add(group, most, result.counts)
    unknown = [split for split in splits.values() if split.line is None]
    if unknown:
        tasks = [_task(i, [s.files[s.num_files - 1]], s.of_last) for i, s in enumerate(unknown)]
        for split, result in zip(unknown, run(_step("acquire.limit", tasks, settings)), strict=True):
            split.line = result.counts.extra["end"]
    return [file_range for split in splits.values() for file_range in _ranges(split)]


def _ranges(split: _Split) -> list[FileRange]:
    """What is read of a split."""
    line = split.line if split.line is not None and split.line >= 0 else None
    chosen = split.files[: split.num_files]
    return [FileRange(file, max_line=line if file is chosen[-1] else None) for file in chosen]


def _task(number: int, group: Sequence[SourceFile], most: int) -> Task:
    names = group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name} ({len(group)} files)"
    return Task(
        id=f"{number:06d}",
        args={"most": most},
        inputs=[file.identity for file in group],
        title=names,
        weight=max(1, sum(file.size for file in group)),
        hints={"files": list(group)},
    )


def _step(name: str, tasks: Sequence[Task], settings: CountSettings) -> Step:
    return Step(name, VERSION, count, tasks, settings, settings.digest, skip=skip)


def count(task: Task, settings: CountSettings, files: TaskFiles) -> Counts:
    """Count the records of some files, up to so many in all; the line after the last of these, -1 where there are fewer."""
    records, left, end = list[int](), task.args["most"], -1
    for file in task.hints["files"]:
        if left == 0:
            records.append(0)
            continue
        with settings.fetcher.local_copy(file) as path:
            num_records, end = count_records(path, file, settings.options, left)
        records.append(num_records)
        left -= num_records
    return Counts(extra={"records": records, "end": end})


def skip(task: Task, settings: CountSettings, files: TaskFiles) -> Counts:
    """Files that kill each process which reads them have no records that count; `read` then leaves them out as well."""
    return Counts(extra={"records": [0] * len(task.hints["files"]), "end": -1})


def count_here(step: Step) -> list[TaskResult]:
    """Do a step that counts in this process and leave nothing behind: for a plan."""
    return [TaskResult(task.id, (), step.work(task, step.settings, None), 0.0) for task in step.tasks]
