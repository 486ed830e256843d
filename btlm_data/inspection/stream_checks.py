"""What only all shards of a split together show: whether samples follow each other, and documents end where
they should.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.dataset import FILE_NAME, Dataset, Split
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import row_shape
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.opening import Opened, OpenShards
from btlm_data.inspection.scan import BUCKETS, Job, Scan
from btlm_data.inspection.split_stream import SplitStream, stream_of
from btlm_data.task import Amount
from btlm_data.wording import counted


def check_streams(
    opened: Opened, manifest: Dataset, jobs: Sequence[Job], scans: Sequence[Scan], tell: Report
) -> None:
    """What only all shards of a split together show, and the table of documents."""
    with OpenShards() as shards:
        _check_streams(opened, manifest, jobs, scans, tell, shards)


def _check_streams(
    opened: Opened,
    manifest: Dataset,
    jobs: Sequence[Job],
    scans: Sequence[Scan],
    tell: Report,
    shards: OpenShards,
) -> None:
    if opened.only is not None:
        for name in ("label shift across samples", "ends of documents", "token sums", "documents"):
            tell(Check(name, None, "not made: one shard was named"))
        return
    across: list[str] = []
    ends: list[str] = []
    sums: list[str] = []
    documents: list[str] = []
    unread: list[str] = []
    totals = [0, 0, 0]
    shard_format = get_format(manifest.format)
    for split, entry in manifest.splits.items():
        if opened.chosen is not None and split != opened.chosen:
            continue
        of_split = [(job, scan) for job, scan in zip(jobs, scans, strict=True) if job.split == split]
        whole = _whole(manifest, entry, of_split)
        if not whole:
            unread.append(split)
        sums += _sum_problems(opened, split, entry, of_split)
        stream = stream_of(opened, manifest, split, shards)
        total_ends = np.zeros(BUCKETS, np.uint64)
        borders = np.zeros(BUCKETS, np.uint64)
        for _, scan in of_split:
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
            eos_labels = sum(scan.eos for _, scan in of_split)
            if table is not None and eos_labels != table.num_filled:
                ends.append(
                    f"{split}: EOS is a label {eos_labels} times, but {table.num_filled} documents have tokens"
                )
        elif table is not None and shard_format.follows_stream and total_ends.any():
            ends.append(
                _find_end(stream, table.table, int(np.flatnonzero(total_ends)[0]), manifest.tokenizer.eos_id)
            )
    missing = f"not made: shards of {', '.join(unread)} are missing, damaged or of another shape"
    if manifest.format != "sample":
        tell(Check("label shift across samples", None, f"not made: the {manifest.format} format has none"))
    elif unread and not across:
        tell(Check("label shift across samples", None, missing))
    else:
        tell_problems(
            tell,
            "label shift across samples",
            across,
            f"the last label of each of {counted(totals[0], 'sample')} is the first input of the next",
        )
    if not shard_format.follows_stream and manifest.format != "vsl":
        tell(
            Check("ends of documents", None, f"not made: the {manifest.format} format is not in stream order")
        )
    elif (unread or any("documents.parquet" in problem for problem in documents)) and not ends:
        tell(
            Check("ends of documents", None, missing if unread else "not made: documents.parquet is at fault")
        )
    else:
        tell_problems(
            tell,
            "ends of documents",
            ends,
            f"EOS ends each of {counted(totals[1], 'document')} and is nowhere else",
        )
    tell_problems(
        tell,
        "token sums",
        sums,
        f"{counted(totals[2], 'token')} in the streams; each shard and split has what dataset.json says",
    )
    tell_problems(
        tell,
        "documents",
        documents,
        f"{counted(totals[1], 'document')}, one after the other from the first token to the last",
    )


def _whole(manifest: Dataset, entry: Split, of_split: Sequence[tuple[Job, Scan]]) -> bool:
    """Whether every listed shard was read and has the rows and shape that the stream needs."""
    planes = row_shape(get_format(manifest.format), manifest.seq_len)
    if len(of_split) != len(entry.files):
        return False
    return all(
        scan.error is None
        and scan.layout is not None
        and job.entry is not None
        and scan.layout.shape == (job.entry.n_examples, *planes)
        for job, scan in of_split
    )


def _sum_problems(
    opened: Opened, split: str, entry: Split, of_split: Sequence[tuple[Job, Scan]]
) -> list[str]:
    problems = []
    for job, scan in of_split:
        if (
            scan.error is None
            and scan.layout is not None
            and job.entry is not None
            and scan.real != job.entry.tokens
        ):
            problems.append(
                f"{opened.name(job.path)}: {scan.real} label positions, {FILE_NAME} says {job.entry.tokens}"
            )
    listed = sum(file.tokens for file in entry.files)
    if listed != entry.label_tokens:
        problems.append(
            f"{FILE_NAME} splits.{split}.label_tokens: {entry.label_tokens}, its files add up to {listed}"
        )
    return problems


class _Table(msgspec.Struct, frozen=True):
    """A table of documents whose offsets are right; num_filled: documents with a token besides EOS."""

    table: DocumentTable
    num_filled: int


def _check_table(
    opened: Opened,
    split: str,
    entry: Split,
    manifest: Dataset,
    stream: SplitStream,
    ends: npt.NDArray[np.uint64],
    problems: list[str],
) -> _Table | None:
    """Check documents.parquet row by row, and take the end of each document out of the print `ends`."""
    from btlm_data.kernels.checks import Prints, subtract_positions

    name = f"{split}/documents.parquet"
    inputs = {file.name for file in manifest.inputs}
    by_source: dict[str, Amount] = {}
    expected = num_filled = 0
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
                problems.append(
                    f"{name} row {first + k}, stream_offset: {offsets[k]}, expected {wanted[k]} (after "
                    "the document before it)"
                )
                return None
            expected = int(following[-1]) if len(following) else expected
            num_filled += int((tokens > 0).sum())
            last = following - 1
            if get_format(manifest.format).follows_stream:
                inside = last[last < stream.covered].astype(np.uint64)
                subtract_positions(inside, stream.num_inputs, Prints(ends, ends, stream.bucket_tokens))
            _count_sources(columns, tokens, by_source)
            codes, names = columns["file"]
            for code in np.unique(codes).tolist():
                if inputs and names[code] not in inputs:
                    row = first + int(np.flatnonzero(codes == code)[0])
                    problems.append(
                        f"{name} row {row}, file: {names[code]!r} is not among the inputs in {FILE_NAME}"
                    )
    except DataError as error:
        problems.append(f"{name}: {error}")
        return None
    if expected != entry.stream_tokens:
        problems.append(
            f"{name}: {expected} tokens with EOS, {FILE_NAME} says {entry.stream_tokens} in the stream of "
            f"{split}"
        )
    problems += _source_problems(manifest, split, by_source)
    return _Table(table, num_filled)


def _count_sources(
    columns: dict[str, Any], tokens: npt.NDArray[np.int64], by_source: dict[str, Amount]
) -> None:
    codes, names = columns["source"]
    documents = np.bincount(codes, minlength=len(names))
    # Sums of a row group in float64 are exact: below 2^53.
    size = np.bincount(codes, columns["bytes"].astype(np.float64), len(names))
    count = np.bincount(codes, tokens + 1, len(names))
    for k, name in enumerate(names):
        amount = Amount(int(documents[k]), int(size[k]), int(count[k]))
        by_source[name] = by_source.get(name, Amount()).plus(amount)


def _source_problems(manifest: Dataset, split: str, by_source: dict[str, Amount]) -> list[str]:
    """The table against what the ledger says came out of the shuffle."""
    stated = {
        entry.source: entry.out.amount
        for entry in manifest.ledger
        if (entry.stage, entry.split) == ("shuffle", split)
    }
    if not stated:
        return []
    problems = []
    for source in sorted({*stated, *by_source}):
        for unit, number, wanted in zip(
            Amount._fields, by_source.get(source, Amount()), stated.get(source, Amount()), strict=True
        ):
            if number != wanted:
                problems.append(
                    f"{split}/documents.parquet: {number} {unit} of {source}, the ledger (shuffle, out) "
                    f"says {wanted}"
                )
    return problems


def _find_break(stream: SplitStream, bucket: int) -> str:
    """The first pair of samples in a bucket whose border does not match."""
    last = min((bucket + 1) * stream.bucket, stream.num_rows)
    try:
        before: npt.NDArray[Any] | None = None
        for sample in range(max(1, bucket * stream.bucket), last):
            before = stream.read(sample - 1) if before is None else before
            after = stream.read(sample)
            real = int((before[1] == 1).sum())
            if real and before[2][real - 1] != after[0][0]:
                (file, row), (next_file, next_row) = stream.locate(sample - 1), stream.locate(sample)
                return (
                    f"{stream.opened.name(file)} row {row}, labels position {real - 1}: "
                    f"{int(before[2][real - 1])}, expected "
                    f"{int(after[0][0])}, the first input of the next sample of the stream "
                    f"({stream.opened.name(next_file)} row {next_row})"
                )
            before = after
    except DataError as error:
        return str(error)
    samples = f"{stream.split}: samples {bucket * stream.bucket} to {last - 1} of the stream"
    return f"{samples} do not follow each other"


def _find_end(stream: SplitStream, table: DocumentTable, bucket: int, eos_id: int) -> str:
    """The first position of a bucket that is EOS where no document ends, or the other way round."""
    last = min((bucket + 1) * stream.bucket, stream.num_rows)
    try:
        for sample in range(bucket * stream.bucket, last):
            start, ids = _positions(stream, sample)
            stop = start + len(ids)
            documents = {d["stream_offset"] + d["tokens"]: d for d in table.between(start, stop)}
            ends = {start + int(t) for t in np.flatnonzero(ids == eos_id)}
            wanted = {position for position in documents if start <= position < stop}
            if wrong := ends ^ wanted:
                position = min(wrong)
                return _end_fault(
                    stream, position, sample, int(ids[position - start]), eos_id, documents.get(position)
                )
    except DataError as error:
        return str(error)
    samples = f"samples {bucket * stream.bucket} to {last - 1} of the stream"
    return f"{stream.split}: EOS and the documents' ends differ among {samples}"


def _positions(stream: SplitStream, sample: int) -> tuple[int, npt.NDArray[Any]]:
    """What a sample adds to the print of ends: its first stream position, and its ids from there on (the last
    sample's last label too).
    """
    if stream.corpus:
        path, row = stream.locate(sample)
        return sample, np.asarray(stream.shards.read(path, row, row + 1, axes=1))
    planes = stream.read(sample)
    real = int((planes[1] == 1).sum())
    ids = planes[0][:real]
    if sample == stream.num_rows - 1 and real:
        ids = np.append(ids, planes[2][real - 1])
    return sample * stream.seq_len, ids


def _end_fault(
    stream: SplitStream, position: int, sample: int, value: int, eos_id: int, document: dict[str, Any] | None
) -> str:
    if stream.corpus:
        path, row = stream.locate(position)
        location = f"{stream.opened.name(path)} token {row}"
    else:
        path, row = stream.locate(sample)
        t = position - sample * stream.seq_len
        real = min(stream.seq_len, stream.entry.stream_tokens - 1 - sample * stream.seq_len)
        plane = f"labels position {t - 1}" if t >= real else f"input_ids position {t}"
        location = f"{stream.opened.name(path)} row {row}, {plane}"
    if document is None:
        return f"{location}: EOS ({eos_id}), but no document of documents.parquet ends there"
    line = f"{document['file']} line {document['line'] + 1}"
    return f"{location}: {value}, expected EOS ({eos_id}): document {document['row']} ({line}) ends there"
