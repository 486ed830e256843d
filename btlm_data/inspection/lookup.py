"""From a sample back to its documents and its text.

A row of the shards is a sample of the stream (through the seeded order of formats/shard_formats/order.py), a
sample is a range of stream positions, and documents.parquet says which document is at each position:
`shards -> stream -> documents -> source file`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.guarded import reading
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats import reader as shards
from btlm_data.formats.shard_formats.base import ShardFormat
from btlm_data.inspection.opening import Opened, layout_of
from btlm_data.inspection.report import DocumentPart, Sample, Segment
from btlm_data.lineage.split_view import SplitView

if TYPE_CHECKING:
    from btlm_data.tokenizer import Tokenizer


# Where rows are ---------------------------------------------------------------------------------------------


class Rows(msgspec.Struct, frozen=True):
    """The rows of a split's shards (of one shard, where the path names one) as readers number them: files by
    name, then rows.

    first[k]: file k's first row. base: rows of the split before these. layout: the first readable shard's,
    None if there is none. problems: shards that could not be counted (only where no manifest counts them).
    """

    files: tuple[Path, ...]
    layout: shards.ShardLayout | None
    first: tuple[int, ...]
    total: int
    base: int = 0
    problems: tuple[str, ...] = ()

    @property
    def shard_format(self) -> ShardFormat | None:
        """The format whose rows these are; None if they are of no known one."""
        return self.layout.shard_format if self.layout is not None else None

    @property
    def are_tokens(self) -> bool:
        """Whether a row is one token of the stream itself."""
        return self.shard_format is not None and not self.shard_format.planes

    @property
    def have_parts(self) -> bool:
        """Whether a row is made of whole documents and parts, with positions of their own."""
        return self.shard_format is not None and "position_ids" in self.shard_format.planes

    def find(self, row: int) -> tuple[int, int]:
        """(file number, row in the file) of a row."""
        file = bisect_right(self.first, row) - 1
        return file, row - self.first[file]

    def end(self, file: int) -> int:
        """One past a file's last row."""
        return self.first[file + 1] if file + 1 < len(self.first) else self.total


def rows_of(opened: Opened, split: str) -> Rows:
    """Number the rows of a split by what the manifest says, or by opening each shard where nothing does."""
    entry = opened.manifest.splits.get(split) if opened.manifest else None
    layout: shards.ShardLayout | None = None
    counted: list[tuple[Path, int]] = []
    problems = []
    if entry is not None:
        counted = [(opened.root / split / file.name, file.n_examples) for file in entry.files]
        for path, _ in counted if opened.only is None else [(opened.only, 0)]:
            try:
                layout = layout_of(path)
                break
            except DataError as error:
                problems.append(str(error))
    else:
        for path in opened.splits.get(split, []):
            try:
                own = layout_of(path)
            except DataError as error:
                problems.append(str(error))
                continue
            layout = layout or own
            counted.append((path, own.shape[0] if own.shape else 0))
    base = 0
    if opened.only is not None:
        base = sum(count for path, count in counted if path.name < opened.only.name)
        counted = [(path, count) for path, count in counted if path.name == opened.only.name]
    first, total = [], 0
    for _, count in counted:
        first.append(total)
        total += count
    return Rows(tuple(path for path, _ in counted), layout, tuple(first), total, base, tuple(problems))


def origins(
    opened: Opened, split: str, rows: npt.NDArray[np.uint64], num_samples: int
) -> npt.NDArray[np.int64] | None:
    """Which samples of the stream are at `rows` of a split, (n,) int64; None where only the shards' writer
    knew.

    num_samples: all of the split's. rows must be below it.
    """
    manifest = opened.manifest
    if manifest is None or not get_format(manifest.format).follows_stream:
        return None
    order = manifest.sample_order(split, num_samples)
    return (
        rows.astype(np.int64) if order is None or not len(rows) else order.samples_at(rows).astype(np.int64)
    )


def destinations(
    opened: Opened, split: str, samples: npt.NDArray[np.uint64], num_samples: int
) -> npt.NDArray[np.int64] | None:
    """The inverse of `origins`: the row of each sample of the stream. samples: (n,) uint64; returns (n,)
    int64.
    """
    manifest = opened.manifest
    if manifest is None or not get_format(manifest.format).follows_stream:
        return None
    order = manifest.sample_order(split, num_samples)
    if order is None or not len(samples):
        return samples.astype(np.int64)
    return order.rows_of(samples).astype(np.int64)


# One sample -------------------------------------------------------------------------------------------------


def num_sequences(opened: Opened, rows: Rows) -> int:
    """Samples a reader makes of these rows; 0 if they are in no layout it knows."""
    shard_format = rows.shard_format
    if shard_format is None:
        return 0
    if shard_format.planes:
        return rows.total
    return max(0, -(-(rows.total - 1) // sequence_length(opened, rows)))


def sample(
    opened: Opened,
    split: str,
    number: int,
    rows: Rows,
    tokenizer: Tokenizer | None = None,
    table: DocumentTable | None = None,
) -> Sample:
    """One sample, with the documents it is made of.

    number: a row of `rows`; for a corpus, the number of the sequence a reader makes. Raises DataError if
    there is no such sample.
    """
    total = num_sequences(opened, rows)
    if not 0 <= number < total:
        which = f"The samples are 0 to {total - 1:,}." if total else "It has none."
        raise ConfigError(f"There is no sample {number} in {split}. {which} Name another with --sample.")
    length = sequence_length(opened, rows)
    content = planes(opened, rows, number)
    start: int | None
    stream_sample: int | None
    if rows.are_tokens:
        begin = number * length
        real = content.shape[1]
        file, row = rows.find(begin)
        start = rows.base + begin if opened.manifest is not None else None
        stream_sample = number if rows.base == 0 else None
    else:
        file, row = rows.find(number)
        real = extent(content)
        entry = opened.manifest.splits.get(split) if opened.manifest else None
        position = np.array([rows.base + number], np.uint64)
        origin = origins(opened, split, position, sum(f.n_examples for f in entry.files)) if entry else None
        stream_sample = None if origin is None else int(origin[0])
        start = None if stream_sample is None else stream_sample * length
    documents: list[DocumentPart] | None = None
    note = None
    if start is None and (opened.manifest is None or get_format(opened.manifest.format).follows_stream):
        note = (
            "there is no dataset.json, so documents cannot be named; borders are where EOS is, "
            "if its id is known"
        )
    elif start is None and table is not None:
        documents = _packed_documents(opened, split, rows.base + number, table)
        note = None if documents else _TOO_MANY if table.num_rows > MAX_REPACKED else _NOT_OURS
    elif start is None or table is None:
        note = "documents.parquet is missing or damaged, so documents cannot be named"
    else:
        documents = _documents(table, start, start + real)
    borders = [document.positions for document in documents or ()]
    borders = borders or _borders(content, content[0][:real], opened.eos_id)
    return Sample(
        split=split,
        sample=number,
        note=note,
        file=opened.name(rows.files[file]),
        row=row,
        positions=length,
        real_positions=real,
        stream_sample=stream_sample,
        stream_positions=(start, start + real) if start is not None and documents is not None else None,
        documents=documents,
        segments=_segments(content, borders, opened.eos_id, tokenizer),
    )


def sequence_length(opened: Opened, rows: Rows) -> int:
    """L: the shards' own, or for a corpus what the manifest (or data_params.json) says, 2,048
    where neither does.
    """
    if rows.layout is not None and len(rows.layout.shape) == 3:
        return max(1, rows.layout.shape[2])
    if opened.manifest is not None:
        return opened.manifest.seq_len
    stated = opened.foreign.get("max_seq_length")
    return stated if isinstance(stated, int) and stated > 0 else 2048


def extent(planes: npt.NDArray[Any]) -> int:
    """Positions of a row (P, L) that are not padding. Any integer dtype."""
    used = planes[1] != 0
    if planes.shape[0] == 5:
        used |= (planes[3] != 0) | (planes[4] != 0)
    positions = np.flatnonzero(used)
    return int(positions[-1]) + 1 if len(positions) else 0


def planes(opened: Opened, rows: Rows, number: int) -> npt.NDArray[Any]:
    """Sample `number`, which must be there: (planes, L), of a corpus (1, up to L). Raises DataError if it
    cannot be read. The dtype is that of the shard.
    """
    if rows.are_tokens:
        length = sequence_length(opened, rows)
        begin = number * length
        return _stretch(rows, begin, min(begin + length, rows.total))[None, :]
    file, row = rows.find(number)
    return _row(rows.files[file], row)


def _row(path: Path, row: int) -> npt.NDArray[Any]:
    with reading(path):
        planes: npt.NDArray[Any] = shards.read_rows(path, row, row + 1)[0]
    if planes.ndim != 2 or planes.shape[0] < 3:
        raise DataError(
            f"{path} has rows of shape {planes.shape}, expected 3 planes or more. It is not a shard of "
            "samples."
        )
    return planes


def _stretch(rows: Rows, start: int, stop: int) -> npt.NDArray[Any]:
    """Tokens [start, stop) of a corpus, which may be in several files."""
    parts = []
    while start < stop:
        file, row = rows.find(start)
        take = min(stop, rows.end(file)) - start
        with reading(rows.files[file]):
            part = shards.read_rows(rows.files[file], row, row + take)
        if part.ndim != 1:
            raise DataError(
                f"{rows.files[file]} has rows of shape {part.shape[1:]}, expected single tokens. It is not a "
                "shard of a corpus."
            )
        parts.append(part)
        start += take
    return np.concatenate(parts)


MAX_REPACKED = 20_000_000  # documents that are packed once more to name those of a sample: ten seconds
_TOO_MANY = (
    "to name the documents of a vsl sample all are packed once more, which is not done for more than "
    f"{MAX_REPACKED:,}"
)
_NOT_OURS = (
    "packing the documents once more does not give this sample, so they are not named: documents.parquet is "
    "not its table"
)


def _packed_documents(opened: Opened, split: str, row: int, table: DocumentTable) -> list[DocumentPart]:
    """The documents of a vsl row, by packing their lengths once more as formats/shard_formats/vsl.py packs.

    Empty if they cannot be found.
    """
    manifest = opened.manifest
    assert manifest is not None
    view = SplitView(opened.root, manifest, split)
    if table.num_rows > MAX_REPACKED or row >= view.num_rows:
        return []
    try:
        spans = view.documents_in(row)
    except DataError:
        return []
    return [_part(table.at(span.document), span.tokens, span.positions) for span in spans]


def _part(document: dict[str, Any], token_range: tuple[int, int], positions: tuple[int, int]) -> DocumentPart:
    """A row of documents.parquet as a sample names it."""
    return DocumentPart(
        document=document["row"],
        file=document["file"],
        line=document["line"] + 1,  # 1-based, as editors count
        offset=document["offset"],
        source=document["source"],
        bytes=document["bytes"],
        chars=document["chars"],
        tokens=document["tokens"],
        token_range=token_range,
        positions=positions,
    )


def _documents(table: DocumentTable, start: int, stop: int) -> list[DocumentPart]:
    """The documents of stream positions [start, stop), each with the part that is there."""
    parts = []
    for document in table.between(start, stop):
        begin = document["stream_offset"]
        first, last = max(begin, start), min(begin + document["tokens"] + 1, stop)  # EOS included
        token_range = (first - begin, min(last - begin, document["tokens"]))
        parts.append(_part(document, token_range, (first - start, last - start)))
    return parts


def _borders(planes: npt.NDArray[Any], ids: npt.NDArray[Any], eos_id: int | None) -> list[tuple[int, int]]:
    """[first, last) of each stretch: by position ids where there are any, else after each EOS."""
    if planes.shape[0] == 5:
        starts = np.flatnonzero(planes[4][: len(ids)] == 0)
    elif eos_id is not None:
        starts = np.concatenate([[0], np.flatnonzero(ids == eos_id) + 1])
    else:
        starts = np.zeros(1, np.int64)
    edges = [int(start) for start in starts if start < len(ids)] + [len(ids)]
    return list(pairwise(edges))


def _segments(
    planes: npt.NDArray[Any],
    borders: Sequence[tuple[int, int]],
    eos_id: int | None,
    tokenizer: Tokenizer | None,
) -> list[Segment]:
    ids = planes[0]
    segments = []
    for number, (first, last) in enumerate(borders):
        is_eos = eos_id is not None and last > first and int(ids[last - 1]) == eos_id
        # In vsl samples a document's EOS is only the label of its last token.
        ends = is_eos or (planes.shape[0] == 5 and last > first and int(planes[2][last - 1]) == eos_id)
        tokens = ids[first : last - 1 if is_eos else last]
        text = None
        if tokenizer is not None:
            text = tokenizer.decode(tokens[(tokens >= 0) & (tokens < tokenizer.vocab_size)])
        first_ids = None if text is not None else [int(token) for token in tokens[:64]]
        segments.append(Segment((first, last), ends, number, text, first_ids))
    return segments
