"""Read a prepared dataset again, all of it, and hold it against everything it says of itself.

Each check is one line: passed, failed (with the exact place: file, row, plane, position, value, what was expected), or not
applicable. A check that cannot be made (shards that others made have no ledger) is reported so, never as passed. Memory is bounded:
what lies in different files (samples that follow each other, the ends of documents) is compared through prints
(kernels/checks.py), and only where a print differs are rows read one by one to name the place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.errors import DataError
from btlm_data.formats import shards
from btlm_data.formats.manifest import FILE_NAME, STAGES
from btlm_data.inspection.dataset import FileEntry, Listed, Manifest, Opened, SplitEntry, layout_of, open_path, reading
from btlm_data.inspection.lookup import DocumentTable, destinations, origins
from btlm_data.task import Amount

BUCKETS = 4096  # of a print: after a mismatch, at most one in this many samples is read again
PIECE_BYTES = 16 << 20  # of shard data in memory per thread
KEYS_IN_MEMORY = 16_000_000  # of documents compared at once between sets
MAX_THREADS = 8
PLANES = ("input_ids", "attention_mask", "labels", "attention_span", "position_ids")
MAX_TOKEN = 2**31  # ids are int32 for every reader


@dataclass(frozen=True)
class Check:
    """One line. ok: None where the check could not be made; detail says what was compared, or why not. place: the first fault."""

    name: str
    ok: bool | None
    detail: str
    place: str | None = None


def verify(path: Path, report_line: Callable[[Check], None]) -> list[Check]:
    """Check the dataset, split or shard at `path`; each check is reported as soon as it is made, and all are returned.

    Raises DataError only if there is nothing at `path`; every other fault is a failed check.
    """
    opened = open_path(path)
    checks: list[Check] = []

    def report(check: Check) -> None:
        checks.append(check)
        report_line(check)

    if opened.sets is None:
        _verify_set(opened, report, "")
    else:
        _verify_sets(opened, report)
    return checks


def passed(checks: Iterable[Check]) -> bool:
    """Whether no check failed."""
    return all(check.ok is not False for check in checks)


Report = Callable[[Check], None]


def _verify_sets(opened: Opened, report: Report) -> None:
    assert opened.sets is not None
    found: dict[str, Opened] = {}
    problems: list[str] = []
    for name in opened.sets.sets:
        folder = opened.root / name
        try:
            if not (folder / FILE_NAME).exists():
                problems.append(f"{name}/{FILE_NAME}: missing")
            else:
                wanted = opened.sets.sha256.get(name)
                if wanted is not None and (digest := _sha256(folder / FILE_NAME)) != wanted:
                    problems.append(f"{name}/{FILE_NAME}: sha256 {digest}, expected {wanted}")
                found[name] = open_path(folder)
        except DataError as error:
            problems.append(str(error))
    _tell(report, "sets", problems, f"{len(opened.sets.sets)} sets: {', '.join(opened.sets.sets)}")
    for name, one in found.items():
        _verify_set(one, report, f"{name}: ")
    manifests = {name: one.manifest for name, one in found.items()}
    if len(found) < len(opened.sets.sets) or not all(manifests.values()):
        report(Check("sets disjoint", None, "not checked: not every set has a readable dataset.json"))
    elif not any(m.set.share is not None for m in manifests.values() if m):
        report(Check("sets disjoint", None, "not applicable: every set holds all documents"))
    else:
        groups = [(name, [(split, one.documents_path(split)) for split in one.splits]) for name, one in found.items()]
        _check_disjoint(report, "sets disjoint", groups, "no document is in two sets")


def _verify_set(opened: Opened, report: Report, prefix: str) -> None:
    def tell(check: Check) -> None:
        report(Check(prefix + check.name, check.ok, check.detail, check.place))

    manifest = opened.manifest
    if opened.problem is not None:
        tell(Check("manifest", False, "dataset.json cannot be used; only what the shards show by themselves is checked", opened.problem))
    elif manifest is None:
        tell(Check("manifest", None, "not applicable: no dataset.json (shards that others made)"))
    else:
        tell(Check("manifest", True, f"format version {manifest.format_version}, written by btlm-data {manifest.version}"))
    jobs = _jobs(opened)
    if manifest is not None:
        _check_files(opened, manifest, tell)
    scans = _scan_all(jobs)
    _check_shards(opened, jobs, scans, tell)
    if manifest is None:
        for name in (
            "checksums",
            "label shift across samples",
            "ends of documents",
            "token sums",
            "documents",
            "ledger",
            "splits disjoint",
        ):
            tell(Check(name, None, "not applicable: only a dataset.json could say what to expect"))
        return
    _check_streams(opened, manifest, jobs, scans, tell)
    _check_ledger(manifest, tell)
    tables = [(split, [(split, opened.documents_path(split))]) for split in manifest.splits]
    if opened.chosen is not None:
        tell(Check("splits disjoint", None, "not checked: one split was named"))
    elif len(tables) < 2:
        tell(Check("splits disjoint", None, "not applicable: there is one split"))
    else:
        _check_disjoint(tell, "splits disjoint", tables, "no document is in two splits")


def _tell(report: Report, name: str, problems: Sequence[str], detail: str) -> None:
    """Report a check by the problems it found."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        report(Check(name, False, f"{len(problems)} {'fault' if len(problems) == 1 else 'faults'}", problems[0] + more))
    else:
        report(Check(name, True, detail))


# Reading shards -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One shard to read, and what it should be. num_samples: of the whole split, None where the order is unknown."""

    opened: Opened
    split: str
    path: Path
    first_row: int
    entry: FileEntry | None
    split_entry: SplitEntry | None
    num_samples: int | None
    seq_len: int | None
    vocab_size: int
    eos_id: int

    @property
    def bucket(self) -> int:
        """Samples (corpus: tokens) of one bucket of the prints."""
        return max(1, -(-(self.num_samples or 0) // BUCKETS))


@dataclass
class _Scan:
    """What reading one shard found. faults: rule -> [faulty rows, first row, its plane * L + position]."""

    layout: shards.ShardLayout | None = None
    error: str | None = None
    sha256: str | None = None
    real: int = 0
    eos: int = 0
    used: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)
    ends: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(BUCKETS, np.uint64))
    borders: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(BUCKETS, np.uint64))

    def fault(self, rule: str, rows: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]) -> None:
        """Add faulty rows of one rule."""
        if len(rows):
            if rule in self.faults:
                self.faults[rule][0] += len(rows)
            else:
                self.faults[rule] = [len(rows), int(rows[0]), int(codes[0])]


def _jobs(opened: Opened) -> list[_Job]:
    manifest = opened.manifest
    jobs = []
    for split, files in opened.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        entry = manifest.splits.get(split) if manifest else None
        listed = {file.name: file for file in entry.files} if entry else {}
        first, num_samples = 0, None
        if entry is not None and manifest is not None and manifest.format != "vsl":
            num_samples = sum(file.n_examples for file in entry.files)
        for path in files:
            file = listed.get(path.name)
            if entry is not None and file is None:
                continue  # reported by `files`
            if opened.only is None or path == opened.only:
                jobs.append(
                    _Job(
                        opened, split, path, first, file, entry, num_samples, manifest.seq_len if manifest else None,
                        min(opened.vocab_size or MAX_TOKEN, MAX_TOKEN), -1 if opened.eos_id is None else opened.eos_id,
                    )
                )  # fmt: skip
            first += file.n_examples if file else 0
    return jobs


def _scan_all(jobs: Sequence[_Job]) -> list[_Scan]:
    """Read every shard once, several at a time: decompression and hashing run without the interpreter's lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(MAX_THREADS, cores, max(1, len(jobs)))) as pool:
        return list(pool.map(_scan, jobs))


def _scan(job: _Job) -> _Scan:
    scan = _Scan()
    try:
        if job.entry is not None:
            scan.sha256 = _sha256(job.path)
        scan.layout = layout_of(job.path)
        if not _readable_layout(scan.layout):
            return scan
        if scan.layout.layout == "corpus":
            _scan_corpus(job, scan)
        else:
            _scan_rows(job, scan, scan.layout)
    except DataError as error:
        scan.error = str(error)
    except OSError as error:
        scan.error = f"{job.path} cannot be read: {error.strerror or error}"
    return scan


def _readable_layout(layout: shards.ShardLayout) -> bool:
    return layout.layout != "other" and np.dtype(layout.dtype).kind in "iu" and np.dtype(layout.dtype).itemsize <= 8


def _pieces(path: Path) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    iterator = shards.iter_chunks(path, PIECE_BYTES)
    while True:
        with reading(path):  # around the read only: what the body raises is its own fault
            piece = next(iterator, None)
        if piece is None:
            return
        yield piece


def _scan_rows(job: _Job, scan: _Scan, layout: shards.ShardLayout) -> None:
    from btlm_data.kernels import checks

    length, strict = layout.shape[2], job.opened.manifest is not None
    vsl = layout.layout == "vsl"
    known_order = strict and not vsl and job.num_samples is not None and length == job.seq_len
    if known_order and job.first_row + layout.shape[0] > (job.num_samples or 0):
        known_order = False  # more rows than listed: `counts` says so
    labels = max(0, job.split_entry.stream_tokens - 1) if job.split_entry else 0
    for start, rows in _pieces(job.path):
        n = len(rows)
        bad = np.empty((n, checks.VSL_RULES if vsl else checks.SAMPLE_RULES), np.int64)
        real, eos, used = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
        order = np.full(n, -1, np.int64)
        if vsl:
            checks.scan_vsl(rows, job.vocab_size, job.eos_id, bad, real, eos, used)
            scan.used += int(used.sum())
        else:
            if known_order:
                places = np.arange(job.first_row + start, job.first_row + start + n, dtype=np.uint64)
                found = origins(job.opened, job.split, places, job.num_samples or 1)
                order = order if found is None else found
            checks.scan_samples(
                rows, order, job.num_samples or 1, job.bucket, job.vocab_size, job.eos_id, scan.ends, scan.borders, bad, real, eos
            )
        scan.real += int(real.sum())
        scan.eos += int(eos.sum())
        for rule, name in enumerate(("mask value", "mask order", "padding", "shift", "token", "span", "position", "crossing")):
            if rule >= bad.shape[1] or (not strict and name in ("mask order", "padding", "crossing")):
                continue
            where = np.flatnonzero(bad[:, rule] >= 0)
            scan.fault(name, where + start, bad[where, rule])
        if known_order:
            expected = np.clip(labels - order * length, 0, length)
            where = np.flatnonzero(real != expected)
            scan.fault("real", where + start, length + np.minimum(real, expected)[where])


def _scan_corpus(job: _Job, scan: _Scan) -> None:
    from btlm_data.kernels import checks

    # A stream longer than listed would leave the prints' buckets; `counts` reports it.
    bounded = job.num_samples is not None and job.first_row + (scan.layout.shape[0] if scan.layout else 0) <= job.num_samples
    for start, tokens in _pieces(job.path):
        bucket = job.bucket if bounded else 2**62
        bad, eos = checks.scan_stream(tokens, job.first_row + start, bucket, job.vocab_size, job.eos_id, scan.ends)
        scan.eos += eos
        if bad >= 0:
            scan.fault("token", np.array([start + bad]), np.zeros(1, np.int64))
    scan.real = scan.layout.shape[0] if scan.layout else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Files and shards ---------------------------------------------------------------------------------------------------


def _check_files(opened: Opened, manifest: Manifest, tell: Report) -> None:
    """What is listed is there with its size; nothing else is a shard."""
    problems: list[str] = []
    count = size = 0
    for split, entry in manifest.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        everything: list[FileEntry | Listed] = [*entry.files, *([entry.documents_file] if entry.documents_file else [])]
        for file in everything:
            path = opened.root / split / file.name
            if opened.only is not None and path != opened.only:
                continue
            count += 1
            size += file.bytes
            if not path.is_file():
                problems.append(f"{split}/{file.name}: missing")
            elif path.stat().st_size != file.bytes:
                problems.append(f"{split}/{file.name}: {path.stat().st_size} bytes, expected {file.bytes}")
        names = [file.name for file in entry.files]
        listed = set(names)
        twice = sorted(name for name in listed if names.count(name) > 1) if len(listed) < len(names) else []
        problems += [f"{FILE_NAME} splits.{split}.files: {name} is listed twice" for name in twice]
        problems += [
            f"{split}/{path.name}: a shard that {FILE_NAME} does not list" for path in opened.splits[split] if path.name not in listed
        ]
    if opened.chosen is None:
        count += len(manifest.outputs)
        problems += [f"{name}: missing" for name in manifest.outputs if not (opened.root / name).is_file()]
        for folder in sorted(
            p for p in opened.root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in manifest.splits
        ):
            problems += [f"{folder.name}/{path.name}: a shard outside of every split" for path in sorted(folder.glob("*.h5"))]
    _tell(tell, "files", problems, f"{count} files, {size} bytes, none unlisted")


def _check_shards(opened: Opened, jobs: Sequence[_Job], scans: Sequence[_Scan], tell: Report) -> None:
    """Everything a shard shows by itself."""
    manifest = opened.manifest
    both = list(zip(jobs, scans, strict=True))
    if manifest is not None:
        problems, count = [], 0
        for job, scan in both:
            if job.entry is not None and scan.sha256 is not None:
                count += 1
                if scan.sha256 != job.entry.sha256:
                    problems.append(f"{opened.name(job.path)}: sha256 {scan.sha256}, expected {job.entry.sha256}")
        count += _check_other_checksums(opened, manifest, problems)
        _tell(tell, "checksums", problems, f"{count} files have their sha256")
    problems = [scan.error.removesuffix(" Restore it or prepare the dataset again.") for _, scan in both if scan.error]
    _tell(tell, "readable", problems, f"{len(both)} shards read to the last byte")
    _tell(tell, "layout", _layout_problems(opened, both), _layout_detail(both))
    _tell(tell, "counts", _count_problems(opened, both), _count_detail(both))

    def rules(name: str, of: Sequence[str], detail: str) -> None:
        found = [(job, scan.faults[rule], rule) for job, scan in both for rule in of if rule in scan.faults]
        if not found:
            tell(Check(name, True, detail))
            return
        rows = sum(fault[0] for _, fault, _ in found)
        tell(Check(name, False, f"{rows} {'row' if rows == 1 else 'rows'} at fault", _describe(*found[0])))

    kinds = {scan.layout.layout for scan in scans if scan.layout is not None}
    rows = sum(scan.layout.shape[0] for scan in scans if scan.layout is not None and scan.layout.layout in ("sample", "vsl"))
    if not kinds & {"sample", "vsl"}:
        for name in ("mask", "padding", "label shift"):
            tell(Check(name, None, "not applicable: no shard holds samples (corpus shards are bare tokens)"))
    else:
        if manifest is None:
            rules("mask", ["mask value"], f"0 or 1 in {rows} rows")
            tell(Check("padding", None, "not applicable: only a dataset.json could say which positions are padded"))
        elif manifest.format == "vsl":
            rules("mask", ["mask value", "crossing"], f"0 or 1 in {rows} rows, and 0 where a document ends")
            rules("padding", ["padding"], "zero in every plane")
            rules("document borders", ["span", "position"], "positions restart and spans end with each part of a document")
        else:
            rules("mask", ["mask value", "mask order"], f"0 or 1 in {rows} rows, real positions first")
            rules("padding", ["real", "padding"], "only in the last sample of the stream, zero in every plane")
        rules("label shift", ["shift"], f"labels[t] = input_ids[t + 1] inside {rows} rows")
        if manifest is None and "vsl" in kinds:
            rules("document borders", ["span", "position"], "positions restart and spans end with each part of a document")
    known = opened.vocab_size
    rules("token ids", ["token"], f"all from 0 to {known - 1}" if known else "none negative (the vocabulary's size is unknown)")


def _check_other_checksums(opened: Opened, manifest: Manifest, problems: list[str]) -> int:
    """Files that are no shards; returns how many were compared."""
    if opened.only is not None:
        return 0
    wanted = {
        f"{split}/{entry.documents_file.name}": entry.documents_file.sha256
        for split, entry in manifest.splits.items()
        if entry.documents_file and opened.chosen in (None, split)
    }
    if opened.chosen is None:
        wanted |= {name: str(value.get("sha256")) for name, value in manifest.outputs.items() if value.get("sha256") is not None}
    count = 0
    for name, digest in wanted.items():
        try:
            found = _sha256(opened.root / name)
        except OSError:
            continue  # reported by `files`
        count += 1
        if found != digest:
            problems.append(f"{name}: sha256 {found}, expected {digest}")
    return count


def _layout_problems(opened: Opened, both: Sequence[tuple[_Job, _Scan]]) -> list[str]:
    """Shapes and types, against the manifest or (foreign) against the first shard, as readers need them."""
    problems = []
    first: shards.ShardLayout | None = None
    for job, scan in both:
        layout, name = scan.layout, opened.name(job.path)
        if layout is None:
            continue
        if not _readable_layout(layout):
            problems.append(f"{name}: data of shape {layout.shape} and type {layout.dtype}, expected (n, 3, L), (n, 5, L) or (n,) integers")
            continue
        manifest = opened.manifest
        if manifest is not None:
            planes = {"sample": (3, manifest.seq_len), "vsl": (5, manifest.seq_len), "corpus": ()}[manifest.format]
            if layout.shape[1:] != planes:
                problems.append(f"{name}: data of shape {layout.shape}, expected ({', '.join(['n', *map(str, planes)])})")
            if layout.dtype != manifest.shard_dtype:
                problems.append(f"{name}: data of type {layout.dtype}, expected {manifest.shard_dtype}")
        first = first or layout
        if (layout.shape[1:], layout.dtype) != (first.shape[1:], first.dtype):
            problems.append(f"{name}: rows of {layout.shape[1:]} {layout.dtype}, but {first.shape[1:]} {first.dtype} in the first shard")
    return problems


def _layout_detail(both: Sequence[tuple[_Job, _Scan]]) -> str:
    kinds = sorted({f"{s.layout.layout} {s.layout.dtype} {'x'.join(map(str, s.layout.shape[1:]))}".strip() for _, s in both if s.layout})
    return "; ".join(kinds) or "no shards"


def _count_problems(opened: Opened, both: Sequence[tuple[_Job, _Scan]]) -> list[str]:
    problems = []
    for job, scan in both:
        if scan.layout is None or not scan.layout.shape:
            continue
        rows, name = scan.layout.shape[0], opened.name(job.path)
        if scan.layout.n_examples is not None and scan.layout.n_examples != rows:
            problems.append(f"{name}: attribute n_examples is {scan.layout.n_examples}, data has {rows} rows")
        elif scan.layout.n_examples is None and opened.manifest is not None:
            problems.append(f"{name}: no attribute n_examples, expected {rows}")
        if job.entry is not None and job.entry.n_examples != rows:
            problems.append(f"{name}: {rows} rows, {FILE_NAME} says {job.entry.n_examples}")
    manifest = opened.manifest
    if manifest is None:
        return problems
    for split, entry in manifest.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        total = sum(file.n_examples for file in entry.files)
        if entry.samples is not None and total != entry.samples:
            problems.append(f"{FILE_NAME} splits.{split}.samples: {entry.samples}, its files add up to {total}")
        labels = max(0, entry.stream_tokens - 1)
        wanted = -(-labels // manifest.seq_len) if manifest.tail == "pad" else labels // manifest.seq_len
        if manifest.format == "sample" and total != wanted:
            problems.append(f"{FILE_NAME} splits.{split}: {total} samples, but {entry.stream_tokens} tokens make {wanted}")
        # A stream of one token has no label to learn, so not even a corpus is written of it.
        if manifest.format == "corpus" and total != (entry.stream_tokens if entry.stream_tokens > 1 else 0):
            problems.append(f"{FILE_NAME} splits.{split}: {total} tokens in files, {entry.stream_tokens} in the stream")
    return problems


def _count_detail(both: Sequence[tuple[_Job, _Scan]]) -> str:
    rows = sum(scan.layout.shape[0] for _, scan in both if scan.layout is not None and scan.layout.shape)
    return f"{rows} rows in {len(both)} shards, as said"


def _describe(job: _Job, fault: Sequence[int], rule: str) -> str:
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
        found = int((data[1] == 1).sum())
        return f"{name} row {row}: {found} real positions, expected {_expected_real(job, row, length)}"
    if rule == "span":
        expected = "one less than before within a document, 0 at its end"
    elif rule == "position":
        expected = "0" if t == 0 or data[3][t - 1] == 0 else str(int(data[4][t - 1]) + 1)
    elif rule == "shift":
        expected = f"the next input {int(data[0][t + 1])}"
    else:
        expected = {
            "mask value": "0 or 1", "mask order": "0 as before it", "padding": "0 where the mask is 0", "token": bound,
            "crossing": "0 where a document ends",
        }[rule]  # fmt: skip
    return f"{name} row {row}, {PLANES[plane]} position {t}: {int(data[plane][t])}, expected {expected}"


def _expected_real(job: _Job, row: int, length: int) -> int:
    order = origins(job.opened, job.split, np.array([job.first_row + row], np.uint64), job.num_samples or 1)
    labels = max(0, job.split_entry.stream_tokens - 1) if job.split_entry else 0
    return length if order is None else int(np.clip(labels - int(order[0]) * length, 0, length))


# The stream ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stream:
    """One split as its shards give it back: every row's place in the stream."""

    opened: Opened
    split: str
    entry: SplitEntry
    seq_len: int
    corpus: bool
    num_rows: int

    @property
    def bucket(self) -> int:
        """Rows of a bucket of the prints, as for _Job."""
        return max(1, -(-self.num_rows // BUCKETS))

    @property
    def bucket_tokens(self) -> int:
        """Stream positions of a bucket."""
        return self.bucket if self.corpus else self.bucket * self.seq_len

    @property
    def covered(self) -> int:
        """Stream positions that are in the shards, as input or label: all but what an unpadded tail leaves out."""
        if self.corpus or not self.num_rows:
            return self.num_rows
        return min(self.entry.stream_tokens, self.num_rows * self.seq_len + 1)

    def place(self, sample: int) -> tuple[Path, int]:
        """File and row of a sample of the stream (corpus: of a token)."""
        found = destinations(self.opened, self.split, np.array([sample], np.uint64), max(1, self.num_rows))
        row = sample if found is None else int(found[0])
        for file in self.entry.files:
            if row < file.n_examples:
                return self.opened.root / self.split / file.name, row
            row -= file.n_examples
        raise AssertionError(f"no row for sample {sample}")

    def read(self, sample: int) -> npt.NDArray[Any]:
        """Planes of a sample of the stream."""
        path, row = self.place(sample)
        with reading(path):
            return np.asarray(shards.read_rows(path, row, row + 1)[0])


def _check_streams(opened: Opened, manifest: Manifest, jobs: Sequence[_Job], scans: Sequence[_Scan], tell: Report) -> None:
    """What only all shards of a split together show, and the table of documents."""
    if opened.only is not None:
        for name in ("label shift across samples", "ends of documents", "token sums", "documents"):
            tell(Check(name, None, "not checked: one shard was named"))
        return
    across: list[str] = []
    ends: list[str] = []
    sums: list[str] = []
    documents: list[str] = []
    unread: list[str] = []
    totals = [0, 0, 0]
    for split, entry in manifest.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        mine = [(job, scan) for job, scan in zip(jobs, scans, strict=True) if job.split == split]
        whole = _whole(manifest, entry, mine)
        if not whole:
            unread.append(split)
        sums += _sum_problems(opened, split, entry, mine)
        stream = _Stream(opened, split, entry, manifest.seq_len, manifest.format == "corpus", sum(f.n_examples for f in entry.files))
        total_ends = np.zeros(BUCKETS, np.uint64)
        borders = np.zeros(BUCKETS, np.uint64)
        for _, scan in mine:
            total_ends += scan.ends
            borders += scan.borders
        table = _check_table(opened, split, entry, manifest, stream, total_ends, documents)
        totals[0] += stream.num_rows
        totals[1] += entry.documents
        totals[2] += entry.stream_tokens
        if not whole:
            continue
        if manifest.format == "sample" and borders.any():
            across.append(_find_break(stream, int(np.flatnonzero(borders)[0])))
        if manifest.format == "vsl":
            found = sum(scan.eos for _, scan in mine)
            if found != entry.documents:
                ends.append(f"{split}: {found} EOS tokens in the shards, {FILE_NAME} says {entry.documents} documents")
        elif table is not None and total_ends.any():
            ends.append(_find_end(stream, table, int(np.flatnonzero(total_ends)[0]), manifest.tokenizer.eos_id))
    missing = f"not checked: shards of {', '.join(unread)} are missing, damaged or of another shape"
    if manifest.format != "sample":
        tell(Check("label shift across samples", None, f"not applicable to the {manifest.format} format"))
    elif unread and not across:
        tell(Check("label shift across samples", None, missing))
    else:
        _tell(tell, "label shift across samples", across, f"the last label of each of {totals[0]} samples is the next one's first input")
    if (unread or any("documents.parquet" in problem for problem in documents)) and not ends:
        tell(Check("ends of documents", None, missing if unread else "not checked: documents.parquet is at fault"))
    else:
        _tell(tell, "ends of documents", ends, f"EOS ends each of {totals[1]} documents and stands nowhere else")
    _tell(tell, "token sums", sums, f"{totals[2]} tokens in the streams, each shard and split as said")
    _tell(tell, "documents", documents, f"{totals[1]} documents, one after the other from the first token to the last")


def _whole(manifest: Manifest, entry: SplitEntry, mine: Sequence[tuple[_Job, _Scan]]) -> bool:
    """Whether every listed shard was read and has the rows and shape that the stream needs."""
    planes = {"sample": (3, manifest.seq_len), "vsl": (5, manifest.seq_len), "corpus": ()}[manifest.format]
    if len(mine) != len(entry.files):
        return False
    return all(
        scan.error is None and scan.layout is not None and job.entry is not None and scan.layout.shape == (job.entry.n_examples, *planes)
        for job, scan in mine
    )


def _sum_problems(opened: Opened, split: str, entry: SplitEntry, mine: Sequence[tuple[_Job, _Scan]]) -> list[str]:
    problems = []
    for job, scan in mine:
        if scan.error is None and scan.layout is not None and job.entry is not None and scan.real != job.entry.tokens:
            problems.append(f"{opened.name(job.path)}: {scan.real} label positions, {FILE_NAME} says {job.entry.tokens}")
    listed = sum(file.tokens for file in entry.files)
    if listed != entry.label_tokens:
        problems.append(f"{FILE_NAME} splits.{split}.label_tokens: {entry.label_tokens}, its files add up to {listed}")
    return problems


def _check_table(
    opened: Opened, split: str, entry: SplitEntry, manifest: Manifest, stream: _Stream, ends: npt.NDArray[np.uint64], problems: list[str]
) -> DocumentTable | None:
    """Check documents.parquet row by row, and take the end of each document out of the print `ends`."""
    from btlm_data.kernels.checks import subtract_positions

    name = f"{split}/documents.parquet"
    inputs = {file.name for file in manifest.inputs}
    by_source: dict[str, Amount] = {}
    expected = 0
    try:
        table = DocumentTable(opened.documents_path(split))
        if table.num_rows != entry.documents:
            problems.append(f"{name}: {table.num_rows} rows, {FILE_NAME} says {entry.documents} documents")
        for first, columns in table.batches(("stream_offset", "tokens", "file", "source", "bytes")):
            tokens = columns["tokens"].astype(np.int64)
            following = expected + np.cumsum(tokens + 1)
            wanted = following - tokens - 1
            offsets = columns["stream_offset"].astype(np.int64)
            wrong = np.flatnonzero(offsets != wanted)
            if len(wrong):
                k = int(wrong[0])
                problems.append(f"{name} row {first + k}, stream_offset: {offsets[k]}, expected {wanted[k]} (after the document before it)")
                return None
            expected = int(following[-1]) if len(following) else expected
            last = following - 1
            if manifest.format != "vsl":
                subtract_positions(last[last < stream.covered].astype(np.uint64), stream.bucket_tokens, ends)
            _count_sources(columns, tokens, by_source)
            codes, names = columns["file"]
            for code in np.unique(codes).tolist():
                if inputs and names[code] not in inputs:
                    row = first + int(np.flatnonzero(codes == code)[0])
                    problems.append(f"{name} row {row}, file: {names[code]!r} is not among the inputs in {FILE_NAME}")
    except DataError as error:
        problems.append(f"{name}: {error}")
        return None
    if expected != entry.stream_tokens:
        problems.append(f"{name}: {expected} tokens with EOS, {FILE_NAME} says {entry.stream_tokens} in the stream of {split}")
    problems += _source_problems(manifest, split, by_source)
    return table


def _count_sources(columns: dict[str, Any], tokens: npt.NDArray[np.int64], by_source: dict[str, Amount]) -> None:
    codes, names = columns["source"]
    documents = np.bincount(codes, minlength=len(names))
    # Sums of a row group in float64 are exact: below 2^53.
    size = np.bincount(codes, columns["bytes"].astype(np.float64), len(names))
    count = np.bincount(codes, tokens + 1, len(names))
    for k, name in enumerate(names):
        amount = Amount(int(documents[k]), int(size[k]), int(count[k]))
        by_source[name] = by_source.get(name, Amount()).plus(amount)


def _source_problems(manifest: Manifest, split: str, by_source: dict[str, Amount]) -> list[str]:
    """The table against what the ledger says came out of the shuffle."""
    said = {entry.source: entry.out.amount for entry in manifest.ledger if (entry.stage, entry.split) == ("shuffle", split)}
    if not said:
        return []
    problems = []
    for source in sorted({*said, *by_source}):
        for unit, found, wanted in zip(Amount._fields, by_source.get(source, Amount()), said.get(source, Amount()), strict=True):
            if found != wanted:
                problems.append(f"{split}/documents.parquet: {found} {unit} of {source}, the ledger (shuffle, out) says {wanted}")
    return problems


def _find_break(stream: _Stream, bucket: int) -> str:
    """The first pair of samples in a bucket whose border does not match."""
    last = min((bucket + 1) * stream.bucket, stream.num_rows)
    try:
        before: npt.NDArray[Any] | None = None
        for sample in range(max(1, bucket * stream.bucket), last):
            before = stream.read(sample - 1) if before is None else before
            after = stream.read(sample)
            real = int((before[1] == 1).sum())
            if real and before[2][real - 1] != after[0][0]:
                (file, row), (next_file, next_row) = stream.place(sample - 1), stream.place(sample)
                return (
                    f"{stream.opened.name(file)} row {row}, labels position {real - 1}: {int(before[2][real - 1])}, expected "
                    f"{int(after[0][0])}, the first input of the next sample of the stream ({stream.opened.name(next_file)} row {next_row})"
                )
            before = after
    except DataError as error:
        return str(error)
    return f"{stream.split}: samples {bucket * stream.bucket} to {last - 1} of the stream do not follow each other"


def _find_end(stream: _Stream, table: DocumentTable, bucket: int, eos_id: int) -> str:
    """The first position of a bucket that is EOS where no document ends, or the other way round."""
    last = min((bucket + 1) * stream.bucket, stream.num_rows)
    try:
        for sample in range(bucket * stream.bucket, last):
            start, ids = _positions(stream, sample)
            stop = start + len(ids)
            documents = {d["stream_offset"] + d["tokens"]: d for d in table.between(start, stop)}
            found = {start + int(t) for t in np.flatnonzero(ids == eos_id)}
            wanted = {position for position in documents if start <= position < stop}
            if wrong := found ^ wanted:
                position = min(wrong)
                return _end_fault(stream, position, sample, int(ids[position - start]), eos_id, documents.get(position))
    except DataError as error:
        return str(error)
    return f"{stream.split}: EOS and the documents' ends differ among samples {bucket * stream.bucket} to {last - 1} of the stream"


def _positions(stream: _Stream, sample: int) -> tuple[int, npt.NDArray[Any]]:
    """What a sample adds to the print of ends: its first stream position, and its ids from there on (the last sample's last label too)."""
    if stream.corpus:
        path, row = stream.place(sample)
        with reading(path):
            return sample, np.asarray(shards.read_rows(path, row, row + 1))
    planes = stream.read(sample)
    real = int((planes[1] == 1).sum())
    ids = planes[0][:real]
    if sample == stream.num_rows - 1 and real:
        ids = np.append(ids, planes[2][real - 1])
    return sample * stream.seq_len, ids


def _end_fault(stream: _Stream, position: int, sample: int, value: int, eos_id: int, document: dict[str, Any] | None) -> str:
    if stream.corpus:
        path, row = stream.place(position)
        place = f"{stream.opened.name(path)} token {row}"
    else:
        path, row = stream.place(sample)
        t = position - sample * stream.seq_len
        real = min(stream.seq_len, stream.entry.stream_tokens - 1 - sample * stream.seq_len)
        plane = f"labels position {t - 1}" if t >= real else f"input_ids position {t}"
        place = f"{stream.opened.name(path)} row {row}, {plane}"
    if document is None:
        return f"{place}: EOS ({eos_id}), but no document of documents.parquet ends there"
    return (
        f"{place}: {value}, expected EOS ({eos_id}): document {document['row']} ({document['file']} line {document['line'] + 1}) ends there"
    )


# The ledger ---------------------------------------------------------------------------------------------------------


def _check_ledger(manifest: Manifest, tell: Report) -> None:
    """Each entry balances: in + added = out + dropped ; each stage's out is the next one's in; the last out is what is there."""
    problems = [problem for entry in manifest.ledger for problem in _entry_problems(entry)]
    unknown = sorted({entry.stage for entry in manifest.ledger} - set(STAGES))
    problems += [f"{FILE_NAME} ledger: unknown stage {stage!r}" for stage in unknown]
    keys = [(entry.stage, entry.split, entry.source) for entry in manifest.ledger]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        problems.append(f"{FILE_NAME} ledger: two entries for {' '.join(twice)}")
    problems += _chain_problems(manifest) + _result_problems(manifest)
    _tell(tell, "ledger", problems, f"{len(manifest.ledger)} entries: in + added = out + dropped, and each stage hands on what it had")


def _entry_problems(entry: Any) -> Iterator[str]:
    # Tokens exist from `tokenize.out` on; from `pack` on nothing else can be told apart.
    units = {"tokenize": ("documents", "bytes"), "pack": ("tokens",), "shard": ("tokens",)}.get(entry.stage, Amount._fields)
    for unit in units:
        came = getattr(entry.came_in, unit) + sum(getattr(a, unit) for a in entry.added.values())
        went = getattr(entry.out, unit) + sum(getattr(a, unit) for a in entry.dropped.values())
        if came != went:
            yield f"{FILE_NAME} ledger, {entry.stage} {entry.split} {entry.source}: in + added is {came} {unit}, out + dropped {went}"


def _chain_problems(manifest: Manifest) -> list[str]:
    """Out of one stage against in of the next: per split and source, and in sum where sources are no longer told apart."""
    problems: list[str] = []
    sides: dict[tuple[str, str], dict[tuple[str, str], Amount]] = {}
    for entry in manifest.ledger:
        for side, amount in (("in", entry.came_in.amount), ("out", entry.out.amount)):
            cells = sides.setdefault((entry.stage, side), {})
            key = (entry.split, entry.source)
            cells[key] = cells.get(key, Amount()).plus(amount)
    present = [stage for stage in STAGES if (stage, "in") in sides]
    for before, after in pairwise(present):
        out, into = sides[before, "out"], sides[after, "in"]
        if any(source == "*" for _, source in into) and not any(source == "*" for _, source in out):
            out = _merge_sources(out)
        if after in ("pack", "shard"):
            units: tuple[str, ...] = ("tokens",)
        else:
            units = Amount._fields if STAGES.index(before) >= STAGES.index("tokenize") else ("documents", "bytes")
        for key in sorted({*out, *into}):
            gave, took = out.get(key, Amount()), into.get(key, Amount())
            problems += [
                f"{FILE_NAME} ledger, {key[0]} {key[1]}: {before} gave {getattr(gave, unit)} {unit}, {after} took {getattr(took, unit)}"
                for unit in units
                if getattr(gave, unit) != getattr(took, unit)
            ]
    return problems


def _merge_sources(cells: dict[tuple[str, str], Amount]) -> dict[tuple[str, str], Amount]:
    merged: dict[tuple[str, str], Amount] = {}
    for (split, _), amount in cells.items():
        merged[split, "*"] = merged.get((split, "*"), Amount()).plus(amount)
    return merged


def _result_problems(manifest: Manifest) -> list[str]:
    """The last stages against the splits."""
    problems: list[str] = []
    for split, entry in manifest.splits.items():
        for stage, unit, said, key in (
            ("shuffle", "documents", entry.documents, "documents"),
            ("shuffle", "tokens", entry.stream_tokens, "stream_tokens"),
            ("shard", "tokens", entry.label_tokens, "label_tokens"),
        ):
            mine = [getattr(e.out, unit) for e in manifest.ledger if (e.stage, e.split) == (stage, split)]
            if sum(mine) != said:
                problems.append(f"{FILE_NAME} ledger, {stage} {split}: out is {sum(mine)} {unit}, splits.{split}.{key} is {said}")
    return problems


# Disjoint documents -------------------------------------------------------------------------------------------------

_Group = tuple[str, list[tuple[str, Path]]]


def _check_disjoint(tell: Report, name: str, groups: Sequence[_Group], detail: str) -> None:
    """No document (file, offset) is in two groups. Keys are compared a range at a time, so that memory is bounded."""
    try:
        tables = [(number, label, split, DocumentTable(path)) for number, (label, parts) in enumerate(groups) for split, path in parts]
        total = sum(table.num_rows for *_, table in tables)
        parts = max(1, -(-total // KEYS_IN_MEMORY))
        for part in range(parts):
            for key in _shared_keys(tables, part, parts):
                if place := _shared_document(tables, key):
                    tell(Check(name, False, "a document is in two", place))
                    return
    except DataError as error:
        tell(Check(name, None, f"not checked: {error}"))
        return
    tell(Check(name, True, f"{detail} ({total} compared)"))


_Tables = list[tuple[int, str, str, DocumentTable]]


def _keys(columns: dict[str, Any]) -> npt.NDArray[np.uint64]:
    codes, names = columns["file"]
    keys = np.empty(len(codes), np.uint64)
    for code in np.unique(codes).tolist():
        mine = codes == code
        keys[mine] = seeding.document_keys(names[code], columns["offset"][mine].astype(np.uint64))
    return keys


def _shared_keys(tables: _Tables, part: int, parts: int) -> Iterator[int]:
    """Keys of one part that two groups have."""
    found: dict[int, list[npt.NDArray[np.uint64]]] = {}
    for number, _, _, table in tables:
        for _, columns in table.batches(("file", "offset")):
            keys = _keys(columns)
            found.setdefault(number, []).append(keys if parts == 1 else keys[keys % np.uint64(parts) == part])
    distinct = [np.unique(np.concatenate(keys)) for keys in found.values() if keys]  # a mix repeats documents within a group
    if distinct:
        everything = np.sort(np.concatenate(distinct))
        yield from np.unique(everything[1:][everything[1:] == everything[:-1]]).tolist()


def _shared_document(tables: _Tables, key: int) -> str | None:
    """Where the two are, or None if only their 64-bit keys are equal."""
    seen: dict[tuple[str, int], tuple[int, str]] = {}
    for number, label, split, table in tables:
        for first, columns in table.batches(("file", "offset")):
            for row in np.flatnonzero(_keys(columns) == np.uint64(key)).tolist():
                codes, names = columns["file"]
                document = (names[codes[row]], int(columns["offset"][row]))
                where = f"{label if label == split else f'{label}/{split}'}/documents.parquet row {first + row}"
                other = seen.setdefault(document, (number, where))
                if other[0] != number:
                    return f"{document[0]} offset {document[1]} is in {other[1]} and in {where}"
    return None
