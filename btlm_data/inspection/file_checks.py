"""Check the files of a dataset: that each is there, whole and listed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from btlm_data.errors import DataError
from btlm_data.formats import pages
from btlm_data.formats.dataset import FILE_NAME, Dataset
from btlm_data.formats.sealed_json import read_small
from btlm_data.inspection.check import Report, tell_problems
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.scan import Job, Scan, checksums_of
from btlm_data.wording import counted

_HDF5_VERSION_0 = b"\x89HDF\r\n\x1a\n\0"


def check_files(opened: Opened, manifest: Dataset, tell: Report) -> None:
    """What is listed is there with its size; nothing else is a shard."""
    problems: list[str] = []
    count = size = 0
    for split, entry in manifest.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        for file in (*entry.files, entry.documents_file):
            path = opened.root / split / file.name
            if opened.only is not None and path != opened.only:
                continue
            count, size = count + 1, size + file.bytes
            _check_size(path, f"{split}/{file.name}", file.bytes, problems)
        listed = {file.name for file in entry.files}
        problems += [
            f"{split}/{path.name}: a shard that {FILE_NAME} does not list"
            for path in opened.splits[split]
            if path.name not in listed
        ]
    if opened.chosen is None:
        for output in manifest.outputs:
            count, size = count + 1, size + output.bytes
            _check_size(opened.root / output.name, output.name, output.bytes, problems)
        for folder in sorted(
            p
            for p in opened.root.iterdir()
            if p.is_dir() and not p.name.startswith(".") and p.name not in manifest.splits
        ):
            problems += [
                f"{folder.name}/{path.name}: a shard outside every split"
                for path in sorted(folder.glob("*.h5"))
            ]
    tell_problems(tell, "files", problems, f"{counted(count, 'file')}, {size:,} bytes; no other shard")


def check_pages(root: Path, checksum: str, tell: Report) -> None:
    """Pages beside the dataset are as this program wrote them, and about this dataset. A card is for people
    to complete.
    """
    problems: list[str] = []
    names: list[str] = []
    for name in pages.PAGES:
        path = root / name
        if not path.exists():
            continue
        try:
            seal = pages.seal_of(read_small(path, pages.MAX_BYTES))
        except DataError as error:
            problems.append(str(error))
            continue
        again = "Remove it; the same `btlm-data prepare` writes it again"
        if name == pages.CARD and (seal is None or not seal.holds):
            names.append(f"{name}, which a person changed")
        elif seal is None or not seal.holds:
            problems.append(f"{name}: it is not as btlm-data wrote it. {again}")
        elif seal.dataset != checksum:
            problems.append(f"{name}: it is about another dataset. {again}")
        else:
            names.append(name)
    if names or problems:
        tell_problems(tell, "pages", problems, f"{', '.join(names)}: as written, about this dataset")


def _check_size(path: Path, name: str, expected: int, problems: list[str]) -> None:
    if not path.is_file():
        problems.append(f"{name}: missing")
    elif (size := path.stat().st_size) != expected:
        problems.append(f"{name}: {size:,} bytes, expected {expected:,}")


def check_checksums(
    opened: Opened, manifest: Dataset, jobs: Sequence[Job], scans: Sequence[Scan], tell: Report
) -> None:
    """The SHA-256 of every file of the dataset."""
    problems, count = [], 0
    for job, scan in zip(jobs, scans, strict=True):
        if job.entry is not None and scan.sha256 is not None:
            count += 1
            if scan.sha256 != job.entry.sha256 and _is_only_marked(job.path, job.entry.sha256):
                problems.append(
                    f"{opened.name(job.path)}: its data are right, but a program has it open for writing, or was ended "
                    "meanwhile (HDF5's mark at bytes 20 to 23). Close it there; if no program has it, open it once with "
                    "h5py.File(name, 'r+') and close it"
                )
            elif scan.sha256 != job.entry.sha256:
                problems.append(f"{opened.name(job.path)}: sha256 {scan.sha256}, expected {job.entry.sha256}")
            elif job.entry.xxh3 not in (None, scan.xxh3):
                problems.append(f"{opened.name(job.path)}: xxh3 {scan.xxh3}, expected {job.entry.xxh3}")
    count += _check_other_checksums(opened, manifest, problems)
    tell_problems(tell, "checksums", problems, f"{counted(count, 'file')} with the recorded SHA-256")


def _is_only_marked(path: Path, sha256: str) -> bool:
    """Whether the file would have this checksum without the flags by which HDF5 says that it is open for writing.

    They are bytes 20 to 23 of a superblock of version 0 (HDF5 File Format Specification, section II.A).
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            head = file.read(24)
            if head[:9] != _HDF5_VERSION_0 or not any(head[20:]):
                return False
            digest.update(head[:20] + bytes(4))
            while piece := file.read(2**20):
                digest.update(piece)
    except OSError:
        return False
    return digest.hexdigest() == sha256


def _check_other_checksums(opened: Opened, manifest: Dataset, problems: list[str]) -> int:
    """Files that are no shards; returns how many were compared."""
    if opened.only is not None:
        return 0
    wanted = {
        file.name: file
        for file in manifest.stored()
        if not file.name.endswith(".h5")
        and (opened.chosen is None or file.name.startswith(f"{opened.chosen}/"))
    }
    count = 0
    for name, file in wanted.items():
        try:
            computed, _ = checksums_of(opened.root / name, file.bytes)
        except (OSError, DataError):
            continue  # reported by `files`, as is another size
        if computed is None:
            continue
        count += 1
        if computed != file.sha256:
            problems.append(f"{name}: sha256 {computed}, expected {file.sha256}")
    return count
