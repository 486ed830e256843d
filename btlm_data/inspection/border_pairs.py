"""The removed documents that are least alike to those kept for them, with both texts out of the source: for a
page that is handed on.

A text is shown only if its hash is the one that dropped.parquet and documents.parquet have for it, so that no
file but the dataset's own source can get into a page, whatever a received dataset says; and none at all once
documents of the dataset were forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from btlm_data.errors import BtlmError, DataError
from btlm_data.formats import forgotten
from btlm_data.formats.dataset import DROPPED, Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.removed_pairs import TABLE, Pair
from btlm_data.wording import counted

Row = dict[str, Any]  # of removals.parquet

NUM_PAIRS = 6
NUM_CONSIDERED = 500  # rows of the table, the least alike, of which pairs are chosen
MAX_SCANNED_BYTES = 1 << 26  # of files that have to be read from their beginning, inflated
MAX_DOCUMENTS = 20_000_000  # in tables that are searched for the hashes: a few seconds


class BorderPairs(msgspec.Struct, frozen=True):
    """pairs: the least alike first. note: why there are no texts, or fewer than there could be; "" if all is
    well.
    """

    pairs: list[Pair]
    note: str = ""


def read(opened: Opened) -> BorderPairs:
    """The pairs to show of a dataset. Whatever cannot be read is a note, never an error."""
    manifest = opened.manifest
    if manifest is None or not (opened.root / TABLE).exists():
        return BorderPairs([])
    try:
        return _read(opened, manifest)
    except (BtlmError, OSError) as error:
        return BorderPairs([], f"Their texts are not shown: {error}")


def _read(opened: Opened, manifest: Dataset) -> BorderPairs:
    rows = _least_alike(opened.root / TABLE)
    if not rows:
        return BorderPairs([])
    if forgotten.read(opened.root).certificates:
        return BorderPairs(
            [], "Documents of this dataset were forgotten, so no texts out of the source are shown."
        )
    documents = sum(split.documents or 0 for split in manifest.splits.values())
    if documents > MAX_DOCUMENTS:
        return BorderPairs(
            [],
            f"Their texts are not looked for among {counted(documents, 'document')}: `btlm-data inspect --duplicates` shows them.",
        )
    from btlm_data.inspection.duplicates import Texts  # and with it all that reads sources

    texts = Texts(opened, manifest, None)
    chosen = _affordable(rows, texts.bytes_before)
    chosen.sort(key=lambda row: row["similarity"])
    texts_read = texts.read(chosen)
    hashes = _hashes(opened.root, manifest, chosen)
    pairs = []
    for row in chosen:
        pair = Pair(
            row,
            texts_read[row["file"], row["offset"]],
            texts_read.get((row["kept_file"], row["kept_offset"])),
        )
        if not _is_of_dataset(pair, hashes):
            raise DataError("the source is not what it was when the dataset was made")
        pairs.append(pair)
    left = min(NUM_PAIRS, len(rows)) - len(pairs)
    note = ""
    if left:
        note = (
            f"The texts of {counted(left, 'more pair')} are far inside large compressed files: `btlm-data inspect "
            "--duplicates` shows them."
        )
    return BorderPairs(pairs, note)


def _affordable(rows: Sequence[Row], bytes_before: Callable[[str, int], int]) -> list[Row]:
    """Up to NUM_PAIRS of some pairs for which no more than MAX_SCANNED_BYTES of files are read: those first for which the least
    more is read, and each kept document once before any twice. bytes_before: what is read of a file to come to an offset.
    """
    left, chosen = list(rows), list[Row]()
    scanned: dict[str, int] = {}  # file -> bytes from its beginning
    kept = set[tuple[Any, Any]]()

    def with_row(row: Row) -> dict[str, int]:
        ends = dict(scanned)
        for name, offset in ((row["file"], row["offset"]), (row["kept_file"], row["kept_offset"])):
            if name is not None:
                ends[name] = max(ends.get(name, 0), bytes_before(name, offset))
        return ends

    while left and len(chosen) < NUM_PAIRS:
        row = min(
            left,
            key=lambda row: ((row["kept_file"], row["kept_offset"]) in kept, sum(with_row(row).values())),
        )
        left.remove(row)
        ends = with_row(row)
        if sum(ends.values()) <= MAX_SCANNED_BYTES:
            chosen.append(row)
            scanned = ends
            kept.add((row["kept_file"], row["kept_offset"]))
    return chosen


def _least_alike(path: Path) -> list[Row]:
    """Rows of removals.parquet whose texts were compared and differ, the least alike first: a few more than
    are shown. Each kept document has one before any has another: else one template fills the page.
    """
    import pyarrow.parquet as pq

    require_regular(path)
    with reading(path):
        file = pq.ParquetFile(path)
        similarity = file.read(["similarity"]).column(0).to_numpy(zero_copy_only=False).astype(np.float64)
        order = np.argsort(similarity, kind="stable")[:NUM_CONSIDERED]
        order = order[similarity[order] < 1]  # not those that were not compared (NaN), nor equal texts
        ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)])
        rows: dict[int, Row] = {}
        for group in np.unique(np.searchsorted(ends, order, side="right")).tolist():
            first = int(ends[group - 1]) if group else 0
            table = file.read_row_group(group)
            inside = order[(order >= first) & (order < ends[group])]
            rows |= dict(zip(inside.tolist(), table.take(inside - first).to_pylist(), strict=True))
    seen: dict[tuple[Any, Any], int] = {}
    turns = []
    for number in order.tolist():
        kept = (rows[number]["kept_file"], rows[number]["kept_offset"])
        seen[kept] = seen.get(kept, 0) + 1
        turns.append(seen[kept])
    turn_order = np.argsort(turns, kind="stable")[: 4 * NUM_PAIRS]
    return [rows[number] for number in order[turn_order].tolist()]


def _hashes(root: Path, manifest: Dataset, rows: Sequence[Row]) -> dict[tuple[str, int], bytes]:
    """Hashes of the documents of some pairs, by file and offset, as far as the tables have them."""
    tables = [root / DROPPED, *(root / split / "documents.parquet" for split in manifest.splits)]
    wanted: set[tuple[str, int]] = set()
    for row in rows:
        wanted |= {(row["file"], row["offset"]), (row["kept_file"], row["kept_offset"])}
    wanted = {(name, offset) for name, offset in wanted if name is not None}
    hashes = {}
    for path in tables:
        table = DocumentTable(path, ("file", "offset", "hash"))
        numbers = table.matching(
            {"offset": {offset for _, offset in wanted}, "file": {name for name, _ in wanted}}
        )
        for document in table.described(numbers):
            hashes[document["file"], document["offset"]] = document["hash"]
    return hashes


def _is_of_dataset(pair: Pair, hashes: dict[tuple[str, int], bytes]) -> bool:
    row = pair.row
    for name, offset, text in (
        (row["file"], row["offset"], pair.text),
        (row["kept_file"], row["kept_offset"], pair.kept_text),
    ):
        if text is not None and hashes.get((name, offset)) != xxhash.xxh3_128_digest(text.encode()):
            return False
    return True
