"""dedupe-report at size: its CPU by document as the corpus grows, over members and pairs that are made directly.

    python -m tests.benchmarks bench_report

Of BTLM_BENCH_DOCUMENTS documents (default 10^6, then ten times as many), 23 % are in components of two, a text of 500 to 3,000
bytes and one that differs in a few places, anywhere in the corpus: so every group has members in every file. Eight rules,
one process. Disk: 1.1 KB a document.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import by_group, by_ordinal
from btlm_data.dedupe import compare, decided, groups, members, report
from btlm_data.dedupe.parts import Parts
from btlm_data.engine.base import EngineSettings
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.runner import Runner
from btlm_data.kernels import stretches
from btlm_data.locations import Locations
from btlm_data.recipe.models import DedupeSettings
from btlm_data.storage import open_store
from btlm_data.task import Task
from btlm_data.task_files import TaskFiles
from tests.benchmarks.bench_linear import Silent

DOCUMENTS = int(os.environ.get("BTLM_BENCH_DOCUMENTS", "1_000_000"))
SHARE = 0.23  # of the documents that are in components; measured on 451 MB of documentation
BANDS = 16


def make(folder: Path, num_documents: int) -> int:
    """A work folder with a finished deduplication; returns the bytes of its texts."""
    store = open_store(folder)
    store.write("work-folder.json", b"{}\n")
    draw = np.random.default_rng(1)
    pool = np.frombuffer(
        b" ".join(b"word%d" % number for number in draw.integers(0, 50_000, 10**6)).replace(b"1", b"a"),
        np.uint8,
    )
    count = round(num_documents * SHARE / 2)
    of_component = draw.permutation(2 * count).reshape(count, 2)
    first, other = of_component.min(axis=1), of_component.max(axis=1)
    order = np.argsort(first)
    first, other = first[order], other[order]
    lengths = draw.integers(500, 3000, count)
    starts = draw.integers(0, len(pool) - 3000, count)
    changes = draw.integers(0, 40, count) * lengths // 6000
    cluster = np.empty(2 * count, np.int64)
    cluster[first] = cluster[other] = np.arange(count)
    units = np.array([groups.units(length) for length in lengths[cluster].tolist()], np.uint32)
    assigned, num_groups = groups.assign(first[cluster].astype(np.uint32), units, Parts(2 * count, 1))
    files = TaskFiles(Locations(str(folder), str(folder)).open(), Task("made"))
    total = int(lengths.sum()) * 2
    ends = np.cumsum(lengths[cluster] + groups.ROW_BYTES)
    for number, low in enumerate(range(0, int(ends[-1]), members.FILE_BYTES)):
        begin, end = np.searchsorted(ends, [low, low + members.FILE_BYTES], side="right")
        rows = np.arange(begin, end)
        of = cluster[rows]
        text = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[of])])
        utf8 = np.empty(int(text[-1]), np.uint8)
        stretches.copy(pool, starts[of], lengths[of], utf8, text[:-1])
        copies = np.flatnonzero(rows == other[of])
        changed = np.repeat(copies, changes[of[copies]])
        utf8[text[changed] + draw.integers(0, 500, len(changed))] = ord("z")
        records = np.zeros(len(rows), members.row_type(BANDS))
        for field in ("ordinal", "root", "best", "line", "offset"):
            records[field] = rows / SHARE
        records["cluster"], records["bytes"] = first[of] / SHARE, lengths[of]
        records["split"], records["keys"] = report.TRAIN, of[:, None]
        made = members.Members(records, assigned[rows], members.Texts.of(utf8, text))
        writer = members.MembersWriter(files, f"{number:06d}")
        writer.add(made, ["a.jsonl"], ["web"])
        writer.flush()
    _finish(files, (first, other, assigned), num_groups, (num_documents, total))
    return total


def _finish(
    files: TaskFiles,
    pairs: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
    num_groups: int,
    amounts: tuple[int, int],
) -> None:
    """Put together what belongs to a group, as the stage does, and say that deduplication is done."""
    first, other, assigned = pairs
    edges = np.empty(len(other), compare.EDGE)
    edges["first"], edges["other"] = first / SHARE, other / SHARE
    no_index = np.empty(0, compare.FOREIGN), np.empty(0, np.uint32)
    piece = by_group.piece_of({"edges": (edges, assigned[other]), "index": no_index})
    pairs_file = by_group.write(files, "dedupe/pairs/000000-00000.cols", [piece])
    written = [file for file in files.written if file != pairs_file]
    work = files.work
    components = by_ordinal.write_list(work, "dedupe/components.json", [])
    locations = Locations(work.url, work.url)
    with LocalEngine(EngineSettings(1)) as engine:
        runner = Runner(locations, locations.open(), engine, Silent())
        listed = by_group.gathered(runner, "dedupe.members", written, num_groups, 2 * 10**9)
    decided.write(
        work,
        decided.Decided(
            DedupeSettings(),
            num_groups,
            components,
            by_group.write_list(work, "dedupe/members.json", listed),
            by_group.write_list(
                work, "dedupe/pairs.json", [by_group.GroupedFile(pairs_file, 1, num_groups + 1)]
            ),
            {"web": amounts},
        ),
    )


def measure(num_documents: int) -> tuple[float, float, int]:
    """CPU seconds, seconds by the clock, and bytes of text."""
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as name:
        num_bytes = make(Path(name), num_documents)
        report.make(name, [], [])  # compile, and read once
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        made = report.make(name, [], [])
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert all(outcome.removed for outcome in made.outcomes[1:])
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return cpu, time.monotonic() - begun, num_bytes


def run() -> list[dict[str, Any]]:
    few, _, few_bytes = measure(DOCUMENTS)
    many, _, many_bytes = measure(10 * DOCUMENTS)
    name = f"dedupe-report of {10 * DOCUMENTS:,} documents, a MB of text, against {DOCUMENTS:,}"
    return [
        {
            "name": name,
            "ours": many * 1e9 / many_bytes,
            "theirs": few * 1e9 / few_bytes,
            "ratio": many / many_bytes * few_bytes / few,
            "unit": "ms CPU a MB",
            "budget": "<= 1.1",
        }
    ]


if __name__ == "__main__":
    for row in run():
        print(row)
