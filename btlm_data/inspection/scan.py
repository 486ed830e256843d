"""Read every shard of a dataset once: hash it, and check each row by the rules of its layout.

Shards are read side by side in threads, in pieces of a few megabytes; what comes back per shard is small
regardless of its size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.dataset import ShardFile, Split
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats import reader as shards
from btlm_data.formats.shard_formats.base import RowContext, row_shape
from btlm_data.inspection.lookup import origins
from btlm_data.inspection.opening import Opened, layout_of
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.split_view import SplitView
from btlm_data.storage import digest

BUCKETS = 4096  # of a print: after a mismatch, at most one in this many samples is read again
PIECE_BYTES = 16 << 20  # of shard data in memory per thread
MAX_THREADS = 8
PLANES = ("input_ids", "attention_mask", "labels", "attention_span", "position_ids")
MAX_TOKEN = 2**31  # ids are int32 for every reader


class Job(msgspec.Struct, frozen=True):
    """One shard to read, and what it should be. num_samples: of the whole split, None where the order is
    unknown.
    """

    opened: Opened
    split: str
    path: Path
    first_row: int
    entry: ShardFile | None
    split_entry: Split | None
    num_samples: int | None
    seq_len: int | None
    vocab_size: int
    eos_id: int
    masks: Masks | None = None  # of documents that were forgotten

    @property
    def bucket(self) -> int:
        """Samples (corpus: tokens) of one bucket of the prints."""
        return max(1, -(-(self.num_samples or 0) // BUCKETS))


class Scan(msgspec.Struct):
    """What reading one shard found. faults: rule -> [faulty rows, first row, its plane * L + position]."""

    layout: shards.ShardLayout | None = None
    error: str | None = None
    sha256: str | None = None
    xxh3: str | None = None
    unmasked: str | None = None  # a place of a forgotten document that is not masked
    real: int = 0
    eos: int = 0
    faults: dict[str, list[int]] = msgspec.field(default_factory=dict)
    ends: npt.NDArray[np.uint64] = msgspec.field(default_factory=lambda: np.zeros(BUCKETS, np.uint64))
    borders: npt.NDArray[np.uint64] = msgspec.field(default_factory=lambda: np.zeros(BUCKETS, np.uint64))

    def fault(self, rule: str, rows: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]) -> None:
        """Add faulty rows of one rule. rows, codes: (n,) int64."""
        if len(rows):
            if rule in self.faults:
                self.faults[rule][0] += len(rows)
            else:
                self.faults[rule] = [len(rows), int(rows[0]), int(codes[0])]


def plan_jobs(opened: Opened) -> list[Job]:
    """A job per shard that the path names and, where there is a manifest, lists."""
    manifest = opened.manifest
    jobs = []
    for split, files in opened.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        entry = manifest.splits.get(split) if manifest else None
        masks = _masks(opened, split) if entry is not None else None
        listed = {file.name: file for file in entry.files} if entry else {}
        first, num_samples = 0, None
        if entry is not None and manifest is not None and get_format(manifest.format).follows_stream:
            num_samples = sum(file.n_examples for file in entry.files)
        for path in files:
            file = listed.get(path.name)
            if entry is not None and file is None:
                continue  # reported by `files`
            if opened.only is None or path == opened.only:
                jobs.append(
                    Job(
                        opened=opened,
                        split=split,
                        path=path,
                        first_row=first,
                        entry=file,
                        split_entry=entry,
                        num_samples=num_samples,
                        seq_len=manifest.seq_len if manifest else None,
                        vocab_size=min(opened.vocab_size or MAX_TOKEN, MAX_TOKEN),
                        eos_id=-1 if opened.eos_id is None else opened.eos_id,
                        masks=masks,
                    )
                )
            first += file.n_examples if file else 0
    return jobs


def _masks(opened: Opened, split: str) -> Masks | None:
    """The places of forgotten documents; None where there are none, or their table cannot be read
    (`documents` says so).
    """
    manifest = opened.manifest
    if manifest is None or "forgotten" not in manifest.other_inputs:
        return None
    try:
        return Masks(SplitView(opened.root, manifest, split))
    except DataError:
        return None


def scan_all(jobs: Sequence[Job]) -> list[Scan]:
    """Read every shard once, several at a time: inflating and hashing do not hold the interpreter's lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(MAX_THREADS, cores, max(1, len(jobs)))) as pool:
        return list(pool.map(_scan, jobs))


def _scan(job: Job) -> Scan:
    scan = Scan()
    try:
        if job.entry is not None:
            scan.sha256, scan.xxh3 = checksums_of(job.path, job.entry.bytes)
        scan.layout = layout_of(job.path)
        if not readable_layout(scan.layout):
            return scan
        _scan_rows(job, scan, scan.layout)
    except DataError as error:
        scan.error = str(error)
    except OSError as error:
        scan.error = f"{job.path} cannot be read: {error.strerror or error}"
    return scan


def readable_layout(layout: shards.ShardLayout) -> bool:
    """Whether the rows can be checked: those of a known format, of integers."""
    return (
        layout.shard_format is not None
        and np.dtype(layout.dtype).kind in "iu"
        and np.dtype(layout.dtype).itemsize <= 8
    )


def _pieces(path: Path) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    iterator = shards.iter_chunks(path, PIECE_BYTES)
    while True:
        with reading(path):  # around the read only: what the body raises is its own fault
            piece = next(iterator, None)
        if piece is None:
            return
        yield piece


def _scan_rows(job: Job, scan: Scan, layout: shards.ShardLayout) -> None:
    from btlm_data.kernels import checks

    shard_format = layout.shard_format
    assert shard_format is not None
    is_ours = job.opened.manifest is not None
    # With more rows than listed, which `counts` reports, rows are not where they should be.
    is_known = (
        is_ours
        and shard_format.follows_stream
        and job.num_samples is not None
        and layout.shape[1:] == row_shape(shard_format, job.seq_len or 0)
        and job.first_row + layout.shape[0] <= job.num_samples
    )
    num_labels = max(0, job.split_entry.stream_tokens - 1) if job.split_entry else 0
    vocabulary = checks.Vocabulary(job.vocab_size, job.eos_id)
    prints = checks.Prints(scan.ends, scan.borders, job.bucket)
    for start, rows in _pieces(job.path):
        first = job.first_row + start
        if job.masks is not None and job.masks.by_row:
            rows = np.array(rows)
            scan.unmasked = scan.unmasked or job.masks.undo(rows, first)
        order = None
        if is_known and shard_format.planes:
            row_numbers = np.arange(first, first + len(rows), dtype=np.uint64)
            order = origins(job.opened, job.split, row_numbers, job.num_samples or 1)
        context = RowContext(first, is_known, order, job.num_samples or 0, num_labels, is_ours)
        checked = shard_format.check(rows, context, vocabulary, prints)
        scan.real += checked.num_labels
        scan.eos += checked.num_ends
        for fault in checked.faults:
            scan.fault(fault.rule, fault.rows + start, fault.codes)


def checksums_of(path: Path, size: int) -> tuple[str | None, str | None]:
    """Hex SHA-256 and XXH3 of a regular file of `size` bytes; None, unread, if it has more or fewer. Raises DataError for what is
    none.
    """
    require_regular(path)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            return None, None
        return digest.both_of_stream(file)


def describe(job: Job, fault: Sequence[int], rule: str) -> str:
    """The exact place of a fault, its value and what was expected, by reading the row again."""
    _, row, code = fault
    name = job.opened.name(job.path)
    try:
        with reading(job.path):
            data = shards.read_rows(job.path, row, row + 1)[0]
    except DataError:
        return f"{name} row {row}"
    bound = f"an id from 0 to {job.vocab_size - 1}"
    if np.ndim(data) == 0:
        return f"{name} token {row}: {int(data)}, expected {bound}"
    length = data.shape[1]
    plane, t = divmod(int(code), length) if code < data.size else (1, length)
    if rule == "real":
        real = int((data[1] == 1).sum())
        return f"{name} row {row}: {real} real positions, expected {_expected_real(job, row, length)}"
    if rule == "span":
        expected = "one less than before within a document, 0 at its end"
    elif rule == "position":
        expected = "0" if t == 0 or data[3][t - 1] == 0 else str(int(data[4][t - 1]) + 1)
    elif rule == "shift":
        expected = f"the next input {int(data[0][t + 1])}"
    else:
        expected = {
            "mask value": "0 or 1",
            "mask order": "1" if data.shape[0] == 5 else "0 as before it",
            "padding": "0 where the mask is 0",
            "token": bound,
            "crossing": "0 where the input is EOS",
        }[rule]
    return f"{name} row {row}, {PLANES[plane]} position {t}: {int(data[plane][t])}, expected {expected}"


def _expected_real(job: Job, row: int, length: int) -> int:
    order = origins(job.opened, job.split, np.array([job.first_row + row], np.uint64), job.num_samples or 1)
    labels = max(0, job.split_entry.stream_tokens - 1) if job.split_entry else 0
    return length if order is None else int(np.clip(labels - int(order[0]) * length, 0, length))
