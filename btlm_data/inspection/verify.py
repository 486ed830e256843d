"""Read a prepared dataset again, all of it, and hold it against everything it says of itself.

Each check is one line: passed, failed (with the exact place: file, row, plane, position, value, what was expected), or not
applicable. A check that cannot be made (shards that others made have no ledger) is reported so, never as passed. Memory is bounded:
what lies in different files (samples that follow each other, the ends of documents) is compared through prints
(kernels/checks.py), and only where a print differs are rows read one by one to name the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from btlm_data.errors import DataError
from btlm_data.formats.dataset import FILE_NAME, Dataset
from btlm_data.formats.shard_formats import reader as shards
from btlm_data.inspection.account_checks import check_disjoint, check_ledger
from btlm_data.inspection.check import Check, Report, line, tell_problems
from btlm_data.inspection.dataset import Opened, open_path
from btlm_data.inspection.scan import Job, Scan, describe, plan_jobs, readable_layout, scan_all, sha256_of
from btlm_data.inspection.stream_checks import check_streams

__all__ = ["Check", "line", "passed", "verify"]


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


def _verify_sets(opened: Opened, report: Report) -> None:
    assert opened.sets is not None
    found: dict[str, Opened] = {}
    problems: list[str] = []
    if opened.problem is not None:
        problems.append(opened.problem)
    for reference in opened.sets.sets:
        name, folder = reference.name, opened.root / reference.name
        try:
            if not (folder / FILE_NAME).exists():
                problems.append(f"{name}/{FILE_NAME}: missing")
                continue
            found[name] = open_path(folder)
            value = found[name].manifest
            if value is not None and value.checksum != reference.checksum:
                problems.append(
                    f"{name}/{FILE_NAME}: checksum {value.checksum}, expected {reference.checksum}"
                )
        except DataError as error:
            problems.append(str(error))
    tell_problems(report, "sets", problems, f"{len(opened.sets.names)} sets: {', '.join(opened.sets.names)}")
    for name, one in found.items():
        _verify_set(one, report, f"{name}: ")
    manifests = {name: one.manifest for name, one in found.items()}
    if len(found) < len(opened.sets.names) or not all(manifests.values()):
        report(Check("sets disjoint", None, "not checked: not every set has a readable dataset.json"))
    elif not any(m.set.share is not None for m in manifests.values() if m):
        report(Check("sets disjoint", None, "not applicable: every set holds all documents"))
    else:
        groups = [
            (name, [(split, one.documents_path(split)) for split in one.splits])
            for name, one in found.items()
        ]
        check_disjoint(report, "sets disjoint", groups, "no document is in two sets")


def _verify_set(opened: Opened, report: Report, prefix: str) -> None:
    def tell(check: Check) -> None:
        report(Check(prefix + check.name, check.ok, check.detail, check.place))

    manifest = opened.manifest
    if opened.problem is not None and manifest is None:
        without = "dataset.json cannot be used; only what the shards show by themselves is checked"
        tell(Check("manifest", False, without, opened.problem))
    elif opened.problem is not None:
        tell(Check("manifest", False, "dataset.json is not as it was written", opened.problem))
    elif manifest is None:
        tell(Check("manifest", None, "not applicable: no dataset.json (shards that others made)"))
    else:
        tell(
            Check(
                "manifest",
                True,
                f"format version {manifest.format_version}, checksum {manifest.checksum[:16]}",
            )
        )
    jobs = plan_jobs(opened)
    if manifest is not None:
        _check_files(opened, manifest, tell)
    scans = scan_all(jobs)
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
    check_streams(opened, manifest, jobs, scans, tell)
    check_ledger(manifest, tell)
    tables = [(split, [(split, opened.documents_path(split))]) for split in manifest.splits]
    if opened.chosen is not None:
        tell(Check("splits disjoint", None, "not checked: one split was named"))
    elif len(tables) < 2:
        tell(Check("splits disjoint", None, "not applicable: there is one split"))
    else:
        check_disjoint(tell, "splits disjoint", tables, "no document is in two splits")


def _check_files(opened: Opened, manifest: Dataset, tell: Report) -> None:
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
            count += 1
            size += file.bytes
            _check_size(path, f"{split}/{file.name}", file.bytes, problems)
        listed = {file.name for file in entry.files}
        problems += [
            f"{split}/{path.name}: a shard that {FILE_NAME} does not list"
            for path in opened.splits[split]
            if path.name not in listed
        ]
    if opened.chosen is None:
        count += len(manifest.outputs)
        for output in manifest.outputs:
            _check_size(opened.root / output.name, output.name, output.bytes, problems)
        for folder in sorted(
            p
            for p in opened.root.iterdir()
            if p.is_dir() and not p.name.startswith(".") and p.name not in manifest.splits
        ):
            problems += [
                f"{folder.name}/{path.name}: a shard outside of every split"
                for path in sorted(folder.glob("*.h5"))
            ]
    tell_problems(tell, "files", problems, f"{count} files, {size} bytes, none unlisted")


def _check_size(path: Path, name: str, expected: int, problems: list[str]) -> None:
    if not path.is_file():
        problems.append(f"{name}: missing")
    elif (size := path.stat().st_size) != expected:
        problems.append(f"{name}: {size} bytes, expected {expected}")


def _check_shards(opened: Opened, jobs: Sequence[Job], scans: Sequence[Scan], tell: Report) -> None:
    """Everything a shard shows by itself."""
    manifest = opened.manifest
    both = list(zip(jobs, scans, strict=True))
    if manifest is not None:
        problems, count = [], 0
        for job, scan in both:
            if job.entry is not None and scan.sha256 is not None:
                count += 1
                if scan.sha256 != job.entry.sha256:
                    problems.append(
                        f"{opened.name(job.path)}: sha256 {scan.sha256}, expected {job.entry.sha256}"
                    )
        count += _check_other_checksums(opened, manifest, problems)
        tell_problems(tell, "checksums", problems, f"{count} files have their sha256")
    problems = [
        scan.error.removesuffix(" Restore it or prepare the dataset again.") for _, scan in both if scan.error
    ]
    tell_problems(tell, "readable", problems, f"{len(both)} shards read to the last byte")
    tell_problems(tell, "layout", _layout_problems(opened, both), _layout_detail(both))
    tell_problems(tell, "counts", _count_problems(opened, both), _count_detail(both))

    def rules(name: str, of: Sequence[str], detail: str) -> None:
        found = [(job, scan.faults[rule], rule) for job, scan in both for rule in of if rule in scan.faults]
        if not found:
            tell(Check(name, True, detail))
            return
        rows = sum(fault[0] for _, fault, _ in found)
        tell(Check(name, False, f"{rows} {'row' if rows == 1 else 'rows'} at fault", describe(*found[0])))

    kinds = {scan.layout.layout for scan in scans if scan.layout is not None}
    rows = sum(
        scan.layout.shape[0]
        for scan in scans
        if scan.layout is not None and scan.layout.layout in ("sample", "vsl")
    )
    if not kinds & {"sample", "vsl"}:
        for name in ("mask", "padding", "label shift"):
            tell(Check(name, None, "not applicable: no shard holds samples (corpus shards are bare tokens)"))
    else:
        if manifest is None:
            rules("mask", ["mask value"], f"0 or 1 in {rows} rows")
            tell(
                Check(
                    "padding",
                    None,
                    "not applicable: only a dataset.json could say which positions are padded",
                )
            )
        elif manifest.format == "vsl":
            rules(
                "mask",
                ["mask value", "mask order", "crossing"],
                f"0 or 1 in {rows} rows, real positions first",
            )
            rules("padding", ["padding"], "zero in every plane")
            rules(
                "document borders",
                ["span", "position"],
                "positions restart and spans end with each part of a document",
            )
        else:
            rules("mask", ["mask value", "mask order"], f"0 or 1 in {rows} rows, real positions first")
            rules(
                "padding", ["real", "padding"], "only in the last sample of the stream, zero in every plane"
            )
        rules("label shift", ["shift"], f"labels[t] = input_ids[t + 1] inside {rows} rows")
        if manifest is None and "vsl" in kinds:
            rules(
                "document borders",
                ["span", "position"],
                "positions restart and spans end with each part of a document",
            )
    known = opened.vocab_size
    rules(
        "token ids",
        ["token"],
        f"all from 0 to {known - 1}" if known else "none negative (the vocabulary's size is unknown)",
    )


def _check_other_checksums(opened: Opened, manifest: Dataset, problems: list[str]) -> int:
    """Files that are no shards; returns how many were compared."""
    if opened.only is not None:
        return 0
    wanted = {
        file.name: file.sha256
        for file in manifest.stored()
        if not file.name.endswith(".h5")
        and (opened.chosen is None or file.name.startswith(f"{opened.chosen}/"))
    }
    count = 0
    for name, digest in wanted.items():
        try:
            found = sha256_of(opened.root / name)
        except OSError:
            continue  # reported by `files`
        count += 1
        if found != digest:
            problems.append(f"{name}: sha256 {found}, expected {digest}")
    return count


def _layout_problems(opened: Opened, both: Sequence[tuple[Job, Scan]]) -> list[str]:
    """Shapes and types, against the manifest or (foreign) against the first shard, as readers need them."""
    problems = []
    first: shards.ShardLayout | None = None
    for job, scan in both:
        layout, name = scan.layout, opened.name(job.path)
        if layout is None:
            continue
        if not readable_layout(layout):
            problems.append(
                f"{name}: data of shape {layout.shape} and type {layout.dtype}, expected (n, 3, L), (n, 5, L) or (n,) integers"
            )
            continue
        manifest = opened.manifest
        if manifest is not None:
            planes = {"sample": (3, manifest.seq_len), "vsl": (5, manifest.seq_len), "corpus": ()}[
                manifest.format
            ]
            if layout.shape[1:] != planes:
                problems.append(
                    f"{name}: data of shape {layout.shape}, expected ({', '.join(['n', *map(str, planes)])})"
                )
            if layout.dtype != manifest.shard_dtype:
                problems.append(f"{name}: data of type {layout.dtype}, expected {manifest.shard_dtype}")
        first = first or layout
        if (layout.shape[1:], layout.dtype) != (first.shape[1:], first.dtype):
            problems.append(
                f"{name}: rows of {layout.shape[1:]} {layout.dtype}, but {first.shape[1:]} {first.dtype} in the first shard"
            )
    return problems


def _layout_detail(both: Sequence[tuple[Job, Scan]]) -> str:
    kinds = sorted(
        {
            f"{s.layout.layout} {s.layout.dtype} {'x'.join(map(str, s.layout.shape[1:]))}".strip()
            for _, s in both
            if s.layout
        }
    )
    return "; ".join(kinds) or "no shards"


def _count_problems(opened: Opened, both: Sequence[tuple[Job, Scan]]) -> list[str]:
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
            problems.append(
                f"{FILE_NAME} splits.{split}.samples: {entry.samples}, its files add up to {total}"
            )
        labels = max(0, entry.stream_tokens - 1)
        wanted = -(-labels // manifest.seq_len) if manifest.tail == "pad" else labels // manifest.seq_len
        if manifest.format == "sample" and total != wanted:
            problems.append(
                f"{FILE_NAME} splits.{split}: {total} samples, but {entry.stream_tokens} tokens make {wanted}"
            )
        # A stream of one token has no label to learn, so not even a corpus is written of it.
        if manifest.format == "corpus" and total != (entry.stream_tokens if entry.stream_tokens > 1 else 0):
            problems.append(
                f"{FILE_NAME} splits.{split}: {total} tokens in files, {entry.stream_tokens} in the stream"
            )
    return problems


def _count_detail(both: Sequence[tuple[Job, Scan]]) -> str:
    rows = sum(scan.layout.shape[0] for _, scan in both if scan.layout is not None and scan.layout.shape)
    return f"{rows} rows in {len(both)} shards, as said"
