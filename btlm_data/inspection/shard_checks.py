"""Check everything that a shard shows by itself: layout, counts, masks, padding, label shift, token ids."""

from __future__ import annotations

from collections.abc import Sequence

from btlm_data.formats.dataset import FILE_NAME
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats import reader as shards
from btlm_data.formats.shard_formats.base import row_shape
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.scan import Job, Scan, describe, readable_layout
from btlm_data.wording import counted


def check_shards(opened: Opened, jobs: Sequence[Job], scans: Sequence[Scan], tell: Report) -> None:
    """Everything a shard shows by itself."""
    manifest = opened.manifest
    both = list(zip(jobs, scans, strict=True))
    problems = [
        scan.error.removesuffix(" Restore it or prepare the dataset again.") for _, scan in both if scan.error
    ]
    tell_problems(tell, "readable", problems, f"{counted(len(both), 'shard')} read to the last byte")
    tell_problems(tell, "layout", _layout_problems(opened, both), _layout_detail(both))
    tell_problems(tell, "counts", _count_problems(opened, both), _count_detail(both))

    def rules(name: str, of: Sequence[str], detail: str) -> None:
        faults = [(job, scan.faults[rule], rule) for job, scan in both for rule in of if rule in scan.faults]
        if not faults:
            tell(Check(name, True, detail))
            return
        rows = sum(fault[0] for _, fault, _ in faults)
        tell(Check(name, False, f"{counted(rows, 'row')} at fault", describe(*faults[0])))

    kinds = {scan.layout.format_name for scan in scans if scan.layout is not None}
    rows = sum(
        scan.layout.shape[0]
        for scan in scans
        if scan.layout is not None and scan.layout.format_name in ("sample", "vsl")
    )
    if not kinds & {"sample", "vsl"}:
        for name in ("mask", "padding", "label shift"):
            tell(Check(name, None, "not made: no shard holds samples (corpus shards are bare tokens)"))
    else:
        if manifest is None:
            rules("mask", ["mask value"], f"0 or 1 in {counted(rows, 'row')}")
            tell(
                Check(
                    "padding",
                    None,
                    "not made: only a dataset.json could say which positions are padded",
                )
            )
        elif manifest.format == "vsl":
            rules(
                "mask",
                ["mask value", "mask order", "crossing"],
                f"0 or 1 in {counted(rows, 'row')}, real positions first",
            )
            rules("padding", ["padding"], "zero in every plane")
            rules(
                "document borders",
                ["span", "position"],
                "positions restart and spans end with each part of a document",
            )
        else:
            rules(
                "mask",
                ["mask value", "mask order"],
                f"0 or 1 in {counted(rows, 'row')}, real positions first",
            )
            rules(
                "padding", ["real", "padding"], "only in the last sample of the stream, zero in every plane"
            )
        rules("label shift", ["shift"], f"labels[t] = input_ids[t + 1] inside {counted(rows, 'row')}")
        if manifest is None and "vsl" in kinds:
            rules(
                "document borders",
                ["span", "position"],
                "positions restart and spans end with each part of a document",
            )
    if manifest is not None and manifest.format not in ("sample", "corpus", "vsl"):
        for rule in get_format(manifest.format).rules:
            if rule != "token":
                rules(rule, [rule], f"kept by every row of the {manifest.format} format")
    known = opened.vocab_size
    rules(
        "token ids",
        ["token"],
        f"all from 0 to {known - 1}" if known else "none negative (the vocabulary's size is unknown)",
    )


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
                f"{name}: data of shape {layout.shape} and type {layout.dtype}, expected (n, 3, L), (n, "
                "5, L) or (n,) integers"
            )
            continue
        manifest = opened.manifest
        if manifest is not None:
            row = row_shape(get_format(manifest.format), manifest.seq_len)
            if layout.shape[1:] != row:
                expected = ", ".join(["n", *map(str, row)])
                problems.append(f"{name}: data of shape {layout.shape}, expected ({expected})")
            if layout.dtype != manifest.shard_dtype:
                problems.append(f"{name}: data of type {layout.dtype}, expected {manifest.shard_dtype}")
        first = first or layout
        if (layout.shape[1:], layout.dtype) != (first.shape[1:], first.dtype):
            problems.append(
                f"{name}: rows of {layout.shape[1:]} {layout.dtype}, but {first.shape[1:]} {first.dtype} "
                "in the first shard"
            )
    return problems


def _layout_detail(both: Sequence[tuple[Job, Scan]]) -> str:
    kinds = sorted(
        {
            f"{s.layout.format_name} {s.layout.dtype} {'x'.join(map(str, s.layout.shape[1:]))}".strip()
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
    return problems


def _count_detail(both: Sequence[tuple[Job, Scan]]) -> str:
    rows = sum(scan.layout.shape[0] for _, scan in both if scan.layout is not None and scan.layout.shape)
    return f"{counted(rows, 'row')} in {counted(len(both), 'shard')}, as dataset.json says"
