"""Documents taken out of a split so that nothing of them is left: the stream closes up behind them, and is
packed and written again. No text is read.

The split is then what `prepare` makes of the same stream without these documents, byte for byte: its table
has no row of them, every document behind them is that much earlier, samples are cut and shuffled anew.
Documents that were masked before leave too. Shards that end before the first of them stay as they are
(corpus, and samples that are not shuffled). In the ledger they are dropped by the stage `shuffle`, as
`forgotten`; pack and shard follow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import InputError
from btlm_data.formats import ledger
from btlm_data.formats.dataset import DOCUMENTS, MixedSource, MixPhase, ShardFile, Split, StoredFile
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.forgotten import ChangedShard
from btlm_data.formats.sealed_json import NO_CHECKSUM
from btlm_data.lineage.changes import SplitChange
from btlm_data.lineage.masking import rewrite_table, with_masked
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.restream import MAX_SHARDS_AT_ONCE, Repacking, StoredStream, read_stream, without
from btlm_data.lineage.split_view import Extent, SplitView
from btlm_data.threads import in_threads

REASON = "forgotten"  # in the ledger
_STREAM = ".stream"


def remove(
    view: SplitView, extents: Sequence[Extent], folder: Path, rows: list[ledger.Row], reason: str = REASON
) -> SplitChange:
    """Remove documents of a split, and those that are masked in it, from its copy.

    extents: the documents; folder: the copy, whose files are links to those of `view`; rows: the ledger;
    reason: what it calls them. Raises InputError if no document would be left, DataError for a shard that is not the one dataset.json
    names, or a stream that is not whole in the shards.
    """
    gone = leaving(view, extents)
    if not gone:
        return SplitChange(view.entry, with_masked(rows, view.name, 0), [], [], [])
    if len(gone) == view.table.num_rows:
        raise InputError(
            f"Nothing of {view.name} would be left without these documents. Mask them (--how mask), or prepare the dataset "
            "without that split."
        )
    rows = _without_documents(rows, view, {extent.row for extent in gone}, reason)
    table = _write_table(view.table, gone, folder / DOCUMENTS)
    kept = DocumentTable(folder / DOCUMENTS)
    columns = [columns for _, columns in kept.batches(("stream_offset", "tokens"))]
    begin, length = (
        np.concatenate([part[name].astype(np.int64) for part in columns])
        for name in ("stream_offset", "tokens")
    )
    files = list[ShardFile]()
    changed = list[ChangedShard]()
    total = view.entry.stream_tokens - sum(extent.tokens + 1 for extent in gone)
    phases = _without_in_phases(view, gone)
    if view.entry.files and total > 1:
        old_begin = _begins_before(begin, gone)
        tokens = read_stream(view, folder / _STREAM, old_begin, old_begin + length + 1)
        stream = StoredStream(without(tokens, [(e.begin, e.end) for e in gone]), begin, length)
        borders = tuple(accumulate(phase.tokens for phase in phases))
        repacking = Repacking.of(stream, view.manifest, view.name, borders if len(phases) > 1 else ())
        phases = with_rows(phases, repacking.phase_rows)
        files, changed = write_shards(view, repacking, gone[0].begin, folder)
        kept_labels = repacking.shard_format.balance(stream.size, repacking.packing)
        rows = packed(rows, view.name, total, kept_labels.kept, dict(kept_labels.dropped))
    else:
        phases = with_rows(phases, [0] * len(phases))
        changed = [ChangedShard(view.name, file.name, file.sha256, NO_CHECKSUM) for file in view.entry.files]
        rows = packed(rows, view.name, total, 0, {"stream_too_short": total})
    for name in {old.name for old in view.entry.files} - {new.name for new in files}:
        (folder / name).unlink()
    renewed = Split(
        documents=kept.num_rows,
        stream_tokens=total,
        samples=None if view.is_corpus else sum(file.n_examples for file in files),
        label_tokens=sum(file.tokens for file in files),
        files=files,
        documents_file=table,
        phases=phases,
    )
    return SplitChange(renewed, with_masked(rows, view.name, 0), changed, gone, [0] * len(gone))


def leaving(view: SplitView, extents: Sequence[Extent]) -> list[Extent]:
    """Documents of a split that leave with some others: these, and those that are masked in it; in its order."""
    known = {extent.row for extent in extents}
    masked = [extent for extent in view.extents(Masks.rows_of(view)) if extent.row not in known]
    return sorted([*extents, *masked], key=lambda extent: extent.row)


def write_shards(
    view: SplitView, repacking: Repacking, position: int, folder: Path
) -> tuple[list[ShardFile], list[ChangedShard]]:
    """The shards of the stream that closed up at a position, and what became of those that were there."""
    old = {entry.name: entry for entry in view.entry.files}

    def written(number: int) -> ShardFile:
        name = repacking.plan.file_name(number)
        first, last = repacking.plan.rows_of(number)
        before = old.get(name)
        if before is not None and before.n_examples == last - first and repacking.is_before(number, position):
            return before
        path = folder / name
        path.unlink(missing_ok=True)  # a link to the old bytes
        return repacking.write(number, path)

    files = list(in_threads(written, range(repacking.plan.num_files), MAX_SHARDS_AT_ONCE))
    changed = []
    for file in files:
        before = old.pop(file.name, None)
        if before is not None and before is not file:
            changed.append(ChangedShard(view.name, file.name, before.sha256, file.sha256))
    return files, changed + [
        ChangedShard(view.name, entry.name, entry.sha256, NO_CHECKSUM) for entry in old.values()
    ]


def with_rows(phases: Sequence[MixPhase], rows: Sequence[int]) -> list[MixPhase]:
    """Phases that have other numbers of rows."""
    return [
        msgspec.structs.replace(phase, rows=count)
        for phase, count in zip(phases, rows[: len(phases)], strict=True)
    ]


def _without_in_phases(view: SplitView, gone: Sequence[Extent]) -> list[MixPhase]:
    """The phases of a mix by budget without these documents; their rows are still the old ones."""
    phases = list(view.entry.phases)
    if not phases:
        return phases
    ends = list(accumulate(phase.tokens for phase in phases))
    documents = view.table.rows([extent.row for extent in gone], ("stream_offset", "tokens", "source"))
    for document in documents:
        number = bisect_right(ends, document["stream_offset"])
        phase = phases[number]
        before = phase.sources[document["source"]]
        size = document["tokens"] + 1
        left = MixedSource(before.documents - 1, before.tokens - size, before.asked)
        phases[number] = msgspec.structs.replace(
            phase,
            documents=phase.documents - 1,
            tokens=phase.tokens - size,
            sources=phase.sources | {document["source"]: left},
        )
    return phases


def _begins_before(begin: npt.NDArray[np.int64], gone: Sequence[Extent]) -> npt.NDArray[np.int64]:
    """Where documents began before others were taken out. begin: (n,) int64, where they begin now."""
    sizes = np.array([extent.tokens + 1 for extent in gone], np.int64)
    left = np.cumsum(sizes)
    # In the stream that closed up, what was taken out before position p is all of what began at most there.
    edges = np.array([extent.begin for extent in gone], np.int64) - (left - sizes)
    before = np.concatenate([np.zeros(1, np.int64), left])
    moved: npt.NDArray[np.int64] = begin + before[np.searchsorted(edges, begin, side="right")]
    return moved


def _write_table(table: DocumentTable, gone: Sequence[Extent], path: Path) -> StoredFile:
    """documents.parquet without these documents, every other where it is now."""
    import pyarrow as pa

    rows = np.array([extent.row for extent in gone], np.int64)
    sizes = np.array([extent.tokens + 1 for extent in gone], np.int64)
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def change(first: int, part: Any) -> Any:
        numbers = np.arange(first, first + part.num_rows)
        leaving = np.searchsorted(rows, numbers)
        kept = ~np.isin(numbers, rows)
        column = part.column("stream_offset")
        moved = column.to_numpy() - before[leaving].astype(column.type.to_pandas_dtype())
        part = part.set_column(
            part.column_names.index("stream_offset"), "stream_offset", pa.array(moved, column.type)
        )
        part = part.drop_columns([name for name in part.column_names if name == "forgotten"])
        return part.filter(pa.array(kept))

    return rewrite_table(table, path, change)


def _without_documents(
    rows: list[ledger.Row], view: SplitView, gone: set[int], reason: str
) -> list[ledger.Row]:
    """The ledger whose stage `shuffle` drops these documents."""
    by_source: dict[str, list[int]] = {}
    for document in view.table.rows(sorted(gone), ("source", "bytes", "tokens")):
        amounts = by_source.setdefault(document["source"], [0, 0, 0])
        for k, amount in enumerate((1, document["bytes"], document["tokens"] + 1)):
            amounts[k] += amount
    changed = []
    for row in rows:
        if (row.stage, row.split) == ("shuffle", view.name) and row.source in by_source:
            left = row.out.amount
            taken = by_source[row.source]
            dropped = row.dropped.get(reason, ledger.Amounts()).amount.plus(ledger.Amounts(*taken).amount)
            row = msgspec.structs.replace(
                row,
                dropped=row.dropped | {reason: ledger.Amounts(*dropped)},
                out=ledger.Amounts(*(a - b for a, b in zip(left, taken, strict=True))),
            )
        changed.append(row)
    return changed


def packed(
    rows: list[ledger.Row], split: str, total: int, kept: int, dropped: dict[str, int]
) -> list[ledger.Row]:
    """The ledger with what `pack` and `shard` made of a stream of `total` tokens."""
    out = ledger.Amounts(tokens=kept)
    reasons = {reason: ledger.Amounts(tokens=tokens) for reason, tokens in dropped.items() if tokens}
    return [
        msgspec.structs.replace(row, received=ledger.Amounts(tokens=total), dropped=reasons, out=out)
        if (row.stage, row.split) == ("pack", split)
        else msgspec.structs.replace(row, received=out, out=out)
        if (row.stage, row.split) == ("shard", split)
        else row
        for row in rows
    ]
