"""Where `--limit` ends each split: tasks in rounds find what reading file after file would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.records.base import ReadOptions
from btlm_data.sources.base import SourceFile
from btlm_data.stages import file_ranges, limits
from btlm_data.stages.file_ranges import FileRange
from btlm_data.stages.limits import CountSettings
from btlm_data.task import Step, TaskResult


class Reading:
    """Files that have as many records as they say, each of 10 bytes and of two lines; and what was read of them."""

    def __init__(self) -> None:
        self.bytes_read: list[int] = []
        self.steps: list[str] = []
        settings: Any = SimpleNamespace(local_copy=self.local_copy)
        self.settings = CountSettings(settings, ReadOptions())

    @contextlib.contextmanager
    def local_copy(self, file: SourceFile) -> Iterator[Path]:
        yield Path(file.url)

    def count(self, path: Path, file: SourceFile, options: ReadOptions, limit: int) -> tuple[int, int]:
        num_records = file.size // 10
        self.bytes_read.append(10 * min(num_records, limit))
        return (limit, 2 * limit - 1) if num_records >= limit else (num_records, -1)

    def run(self, step: Step) -> list[TaskResult]:
        self.steps.append(step.name)
        assert len({task.id for task in step.tasks}) == len(step.tasks)
        return limits.count_here(step)


def source_file(split: str, number: int, num_records: int) -> SourceFile:
    name = f"{split}/{number:04d}.jsonl"
    return SourceFile(name, f"/{name}", 10 * num_records, split, "1", "jsonl", "none")


def one_after_the_other(files: Sequence[SourceFile], limit: int) -> list[FileRange]:
    """The plain twin: records are counted file after file."""
    left: dict[str, int] = {}
    ranges = []
    for file in files:
        missing = left.setdefault(file.split, limit)
        if missing == 0:
            continue
        found = min(missing, file.size // 10)
        ranges.append(FileRange(file, max_line=2 * missing - 1 if found == missing else None))
        left[file.split] -= found
    return ranges


FILES = st.fixed_dictionaries(
    {split: st.lists(st.integers(0, 30), max_size=40) for split in ("train", "validation")}
).map(
    lambda sizes: [
        source_file(split, i, size) for split, each in sizes.items() for i, size in enumerate(each)
    ]
)


@given(files=FILES, limit=st.integers(1, 500), group_bytes=st.integers(10, 400))
def test_rounds_find_what_reading_file_after_file_finds(
    files: list[SourceFile], limit: int, group_bytes: int
) -> None:
    reading = Reading()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ranges, "GROUP_BYTES", group_bytes)
        patch.setattr(file_ranges, "GROUP_FILES", 3)
        patch.setattr(limits, "count_records", reading.count)
        found = limits.first_records(files, limit, reading.settings, reading.run)
    assert found == one_after_the_other(files, limit)


@pytest.mark.parametrize("limit", [5, 5_000, 90_000])
def test_little_more_is_read_than_the_limit_needs_in_few_rounds(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading()
    files = [source_file("train", number, 100) for number in range(1000)]
    monkeypatch.setattr(file_ranges, "GROUP_BYTES", 4000)
    monkeypatch.setattr(limits, "count_records", reading.count)
    found = limits.first_records(files, limit, reading.settings, reading.run)
    assert found == one_after_the_other(files, limit)
    assert sum(reading.bytes_read) <= max(2 * 10 * limit, 4000) + 1000
    assert len(reading.steps) <= 6


def test_a_file_that_kills_its_workers_has_no_records_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading()
    files = [source_file("train", number, 10) for number in range(3)]
    monkeypatch.setattr(file_ranges, "GROUP_BYTES", 100)
    monkeypatch.setattr(limits, "count_records", reading.count)

    def run(step: Step) -> list[TaskResult]:
        assert step.skip is not None
        first, *others = limits.count_here(step)
        if step.name == "acquire.count-1":
            first = TaskResult(first.task_id, (), step.skip(step.tasks[0], step.settings, None), 0.0)
        return [first, *others]

    found = limits.first_records(files, 15, reading.settings, run)
    assert [(chosen.file.name, chosen.max_line) for chosen in found] == [
        ("train/0000.jsonl", None),
        ("train/0001.jsonl", None),
        ("train/0002.jsonl", 9),
    ]
