"""Documents by what the tables beside the shards say of them: the members of a cluster, and what is in no
split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from btlm_data.errors import DataError
from btlm_data.formats.dataset import DROPPED, Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.ledger import MOVED

CLUSTERS = "clusters.parquet"
MAX_MEMBERS = 200  # of a cluster that are shown
_MEMBER_COLUMNS = ("cluster", "kept", "fate", "split", "source", "file", "line", "offset", "bytes")
_DROPPED_COLUMNS = ("stage", "reason", "split", "source", "file", "line", "offset", "bytes")


class Members(msgspec.Struct, frozen=True):
    """The documents of a cluster, as rows of clusters.parquet; total: how many it has."""

    rows: list[dict[str, Any]]
    total: int


def members(root: Path, cluster: str) -> Members:
    """The cluster with this number, which is that of its first document. Raises DataError if it is no
    number, or the dataset has no such table.
    """
    if not (cluster.isascii() and cluster.isdigit() and len(cluster) < 11 and int(cluster) < 2**32):
        raise DataError(
            f"{cluster[:40]!r} is no number of a cluster. The page of a pair of duplicates has one."
        )
    table = DocumentTable(root / CLUSTERS, _MEMBER_COLUMNS)
    rows = table.matching({"cluster": {int(cluster)}})
    return Members(list(table.described(rows[:MAX_MEMBERS])), len(rows))


def reasons(manifest: Dataset) -> dict[str, int]:
    """Documents dropped for each reason, as the ledger has them; none whose reason dropped nothing. Records
    that could not be read are in rejects.jsonl, and documents that went to another split are not left out.
    """
    counts: dict[str, int] = {}
    for row in manifest.ledger:
        if row.stage == "acquire":
            continue
        for reason, amounts in row.dropped.items():
            if amounts.documents and not reason.startswith(MOVED):
                counts[reason] = counts.get(reason, 0) + amounts.documents
    return counts


def dropped(
    root: Path, reason: str, first: int = 0, count: int = 50
) -> tuple[list[dict[str, Any]], int | None]:
    """Documents in no split, from row `first` of dropped.parquet on, and the row to continue from (None at
    the end). reason: only those dropped for it; "" is any. Raises DataError if the dataset has no such table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = DocumentTable(root / DROPPED, _DROPPED_COLUMNS)
    listed: list[dict[str, Any]] = []
    for group in range(table.num_groups):
        begin, end = table.group_rows(group)
        if end <= first:
            continue
        wanted = np.arange(begin, end) >= first
        if reason:
            is_reason = pc.equal(table.arrow(group, ("reason",)).column("reason").cast(pa.string()), reason)
            wanted &= is_reason.to_numpy(zero_copy_only=False).astype(bool)
            if not wanted.any():
                continue
        rows = table.arrow(group)
        numbers = np.flatnonzero(wanted)
        taken = numbers[: count - len(listed)]
        listed += [
            {"row": begin + k, **values}
            for k, values in zip(taken.tolist(), rows.take(taken).to_pylist(), strict=True)
        ]
        if len(taken) < len(numbers):
            return listed, begin + int(numbers[len(taken)])
    return listed, None
