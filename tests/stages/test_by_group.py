"""Rows put together by group: every row of a group is found once, in few files, however many wrote them."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data import by_group
from btlm_data.dedupe import groups, members
from btlm_data.errors import DataError
from btlm_data.locations import Locations
from btlm_data.task import Task
from btlm_data.task_files import TaskFiles
from tests.stages.runs import Context

RECORD = np.dtype([("number", "<u4"), ("length", "<u2")])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything shrunk, so that a few kilobytes are moved as terabytes are."""
    for name, value in (("MOST_FILES", 4), ("PIECE_BYTES", 60), ("_LEAST_FILE", 600), ("_MOST_RANGES", 5)):
        monkeypatch.setattr(by_group, name, value)


def written(folder: Path, wanted: list[list[tuple[int, int]]]) -> tuple[TaskFiles, list[Any]]:
    """A file for each list of (group, length): a record for each, numbered through, and a text of as many bytes."""
    files = TaskFiles(Locations(str(folder), str(folder)).open(), Task("made"))
    number = 0
    for name, listed in enumerate(wanted):
        if not listed:
            continue
        of_group = np.array([group for group, _ in listed], np.uint32)
        records = np.array([(number + k, length) for k, (_, length) in enumerate(listed)], RECORD)
        number += len(listed)
        piece = by_group.piece_of({"records": (records, of_group)})
        order = np.argsort(of_group, kind="stable")
        texts = [bytes([int(one["number"]) % 251]) * int(one["length"]) for one in records[order]]
        ends = np.cumsum([0, *map(len, texts)])
        begins = piece.bounds
        sizes = np.stack([np.diff(begins), np.diff(ends[begins // RECORD.itemsize])], axis=1)
        bounds = by_group.bounds_of(sizes)
        out = np.empty(bounds[-1], np.uint8)
        by_group.copy_table(piece.of("records")[0], begins[:-1], sizes, bounds, 0, out)
        text_begins = ends[begins[:-1] // RECORD.itemsize]
        by_group.copy_table(np.frombuffer(b"".join(texts), np.uint8), text_begins, sizes, bounds, 1, out)
        with_texts = by_group.Piece(piece.groups, ("records", "texts"), bounds, out)
        by_group.write(files, f"made/{name:04d}.cols", [with_texts])
    return files, files.written


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda num_groups: st.lists(
            st.lists(st.tuples(st.integers(1, num_groups), st.integers(0, 40)), max_size=20), max_size=40
        )
    ),
    st.booleans(),
)
@pytest.mark.usefixtures("small")
def test_each_group_finds_its_rows_in_few_files(wanted: list[list[tuple[int, int]]], in_order: bool) -> None:
    num_groups = max((group for listed in wanted for group, _ in listed), default=0)
    expected: dict[int, set[tuple[int, bytes]]] = defaultdict(set)
    number = 0
    for listed in wanted:
        for group, length in listed:
            expected[group].add((number, bytes([number % 251]) * length))
            number += 1
    with TemporaryDirectory() as name:
        folder = Path(name)
        files, artifacts = written(folder, wanted)
        with Context(folder).runner() as runner:
            held = by_group.gathered(runner, "made", artifacts, num_groups, 1, in_order=in_order)
            listed_files = by_group.write_list(runner.stores.work, "made.json", held)
        files.allow([listed_files])
        for group in range(1, num_groups + 1):
            having = [file for file in held if file.first <= group < file.end]
            assert len(having) <= 4 or all(file.end - file.first == 1 for file in having)
            found: list[tuple[int, bytes]] = []
            for piece in by_group.of_group(files, listed_files, group):
                table, utf8 = piece.of("records", "texts")
                records = by_group.as_records(table, RECORD)
                texts, begin = utf8.tobytes(), 0
                for record in records:
                    found.append((int(record["number"]), texts[begin : begin + int(record["length"])]))
                    begin += int(record["length"])
                assert begin == len(texts)
            assert len(found) == len(expected[group])
            assert set(found) == expected[group]
            if in_order:
                assert found == sorted(found)


@pytest.mark.usefixtures("small")
def test_only_what_was_moved_once_more_is_removed(tmp_path: Path) -> None:
    """Some ranges need a pass more than others, and another run with less memory has left passes of its own."""
    wanted = [[(group, 30) for group in range(1, 9 if number < 6 else 3)] for number in range(20)]
    _, artifacts = written(tmp_path, wanted)
    with Context(tmp_path).runner() as runner:
        work = runner.stores.work
        by_group.discard_passed(work, "made")  # before there is a list
        by_group.write_list(work, "made.json", [by_group.GroupedFile(file, 1, 9) for file in artifacts])
        by_group.discard_passed(work, "made")
        assert all(work.size(artifact.name) == artifact.size for artifact in artifacts)
        work.write("made-9/left.cols", b"of another run")
        held = by_group.gathered(runner, "made", artifacts, 8, 1)
        by_group.write_list(work, "made.json", held)
        assert len({file.file.name.partition("/")[0] for file in held}) > 1
        by_group.discard_passed(work, "made")
        assert all(work.size(file.file.name) == file.file.size for file in held)
        left = {entry.name for entry in work.list("") if entry.name.startswith("made")}
        assert left == {"made.json", *(file.file.name for file in held)}


@pytest.mark.parametrize("num_files", [10, 3000, 10**6, 10**9])
@pytest.mark.parametrize("mean_bytes", [100, 30_000, 33 * 10**6, 250 * 10**6])
@pytest.mark.parametrize("memory", [10**6, 2 * 10**9, 10**12])
def test_passes_grow_with_the_logarithm(num_files: int, mean_bytes: int, memory: int) -> None:
    """As `gathered` goes on, on paper: every pass leaves far fewer files to a range, or far fewer groups."""
    num_groups = max(1, num_files * mean_bytes // groups.GROUP_BYTES)
    passes = by_group.passes_of(num_files, mean_bytes, num_groups, memory)
    assert len(passes) <= 1 + math.log(num_files, 8)
    for each in passes:
        assert each.opens <= by_group._MOST_RANGES * num_files * (1 + math.log(num_files, 8))
    last = passes[-1] if passes else by_group.Pass(0, 0, num_files, num_groups)
    assert last.files <= by_group.MOST_FILES or last.num_groups == 1


def test_reads_of_a_group_are_long_enough() -> None:
    """Two reads for each file that a group looks into; rows alone are still long where texts are not read."""
    assert groups.GROUP_BYTES / (2 * by_group.MOST_FILES) >= 64_000
    rows_share = members.row_type(16).itemsize / (groups.ROW_BYTES + 4000)  # of documents of 4,000 bytes
    assert rows_share * groups.GROUP_BYTES / by_group.MOST_FILES >= 64_000


def test_a_table_that_ends_within_a_record_is_refused() -> None:
    with pytest.raises(DataError, match="no records of 6"):
        by_group.as_records(np.zeros(7, np.uint8), RECORD)


def test_rows_that_number_other_names_are_refused() -> None:
    rows = np.zeros(2, members.row_type(3))
    rows["source"] = [1, 2]
    for count, problem in ((2, "source column"), (3, "for 3 documents")):
        names = np.frombuffer(b'[%d,["a.jsonl","web"]],' % count, np.uint8)
        stored = np.concatenate([rows.view(np.uint8), names])
        bounds = np.array([0, rows.nbytes, len(stored), len(stored)])
        piece = by_group.Piece(np.array([1], np.uint32), members.TABLES, bounds, stored)
        with pytest.raises(DataError, match=problem):
            members._rows_of_piece(piece, {})
