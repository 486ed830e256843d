"""Decisions about groups become fates of all documents, and the list of clusters that people look at.

dedupe/decide/GROUP.cols       by ranges of documents (by_group.py; range r is group r + 1) the table `decided` of DECIDED: the members of a
                               group that are in a component of several, or go
dedupe/fates/RANGE.cols        `fate` (n,) uint8 of a range of documents: fates.py
dedupe/fates/copies-RANGE.cols `copies` (n,) uint32: how many documents a kept one stands for, itself included; `several` (n,)
                               bool: in a component of two or more; `text_stays` (n,) bool: the first document of a text of which
                               a copy stays
dedupe/cluster/RANGE.parquet   the clusters of a range of blocks, see cluster_table.py

Lists of the files of all ranges (by_ordinal.py): dedupe/fates.json and dedupe/copies.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.advance import advance
from btlm_data.blocks import RANGE_DOCUMENTS, Block, grouped
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe.cluster_table import ClusterRows
from btlm_data.dedupe.deciding import Decided
from btlm_data.dedupe.keys import check_ordinals
from btlm_data.dedupe.ranges import Ordinals, Ranges, of_rows
from btlm_data.fates import Fate
from btlm_data.formats.columns import Columns
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles

FATES, COPIES = "dedupe/fates.json", "dedupe/copies.json"
VERSION = 4
# A member as GROUP.cols has it; place: in the range.
DECIDED = np.dtype(
    [("place", "<u4"), ("fate", "u1"), ("copies", "<u4"), ("several", "?"), ("text_stays", "?")]
)
SHOWN_CLUSTERS = 10
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


def write_decided(
    files: TaskFiles, name: str, ordinals: Int64Array, decided: Decided, ranges: Ranges
) -> None:
    """Write what `join` needs to know of a group. ordinals: (n,) int64, of its members."""
    rows = np.flatnonzero(decided.several | (decided.fate != Fate.KEPT))
    records = np.empty(len(rows), DECIDED)
    records["place"] = ranges.places_of(ordinals[rows])
    for field in ("fate", "copies", "several", "text_stays"):
        records[field] = getattr(decided, field)[rows]
    pieces = [by_group.piece_of({"decided": (records, ranges.groups_of(ordinals[rows]))})]
    by_group.write(files, name, pieces)


def largest(ordinals: Int64Array, decided: Decided) -> list[list[int]]:
    """[first document, documents] of the largest components of two or more of a group, in the order of `merged`.
    ordinals: (n,) int64, of its members.
    """
    sizes = decided.sizes()
    several = np.flatnonzero(sizes > 1)
    chosen = several[np.argsort(-sizes[several].astype(np.int64), kind="stable")[:SHOWN_CLUSTERS]]
    return [[int(ordinals[row]), int(sizes[row])] for row in chosen]


def merged(parts: Sequence[Sequence[Sequence[int]]]) -> list[tuple[int, int]]:
    """The largest components of all groups: largest first, then by their first documents."""
    everything = [(int(root), int(size)) for part in parts for root, size in part]
    return sorted(everything, key=lambda item: (-item[1], item[0]))[:SHOWN_CLUSTERS]


def plan_fates(decided: Artifact, ranges: Ranges, lineage: str) -> Step:
    """A task per range, which puts a few bytes of each document in their places. decided: the list of the groups' files."""
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"documents": list(ranges.bounds(number)), **ranges.args},
            inputs=[lineage],
            through={"decided": [decided]},
            outputs=[("work", f"dedupe/fates/{kind}{number:06d}.cols") for kind in ("", "copies-")],
            weight=last - first,
            hints={"range": number},
        )
        for number in range(ranges.count)
        for first, last in [ranges.bounds(number)]
    ]
    return Step("dedupe.fates", VERSION, join, tasks, None, lineage, "doc")


def join(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The fates of a range of documents."""
    first, last = task.args["documents"]
    total = last - first
    fate, copies = np.full(total, Fate.KEPT, np.uint8), np.ones(total, np.uint32)
    several, text_stays = np.zeros(total, np.bool_), np.ones(total, np.bool_)
    for piece in by_group.of_group(files, task.through["decided"][0], task.hints["range"] + 1):
        records = by_group.as_records(piece.of("decided")[0], DECIDED)
        check_ordinals(records["place"], total, f"What dedupe.decide says of documents {first:,} to {last:,}")
        for column, array in (
            ("fate", fate),
            ("copies", copies),
            ("several", several),
            ("text_stays", text_stays),
        ):
            array[records["place"]] = records[column]
    files.write_columns(task.outputs[0][1], {"fate": fate})
    files.write_columns(task.outputs[1][1], {"copies": copies, "several": several, "text_stays": text_stays})
    advance(task.weight)
    return Counts()


def plan_clusters(
    blocks: Sequence[Block],
    components: Artifact,
    fates: Artifact,
    copies: Artifact,
    shown: Sequence[tuple[int, int]],
    lineage: str,
    *,
    wide: bool,
) -> Step:
    """A task per range of blocks. components, fates, copies: lists of files. shown: the largest components. wide: ordinals take 64
    bits.
    """
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"shown": [list(item) for item in shown], "wide": wide},
            inputs=[lineage],
            reads={
                "docs": [block.docs for block in chosen],
                "fates": [fates],
                "copies": [copies],
            },
            through={"components": [components]},
            outputs=[("work", f"dedupe/cluster/{number:06d}.parquet")],
            weight=max(1, sum(block.num_documents for block in chosen)),
            hints={"blocks": chosen},
        )
        for number, chosen in enumerate(grouped(blocks, RANGE_DOCUMENTS))
    ]
    return Step("dedupe.cluster", VERSION, cluster, tasks, None, lineage, "doc")


def cluster(task: Task, settings: None, files: TaskFiles) -> Counts:
    """List the clusters of a range of blocks, and count its documents by fate.

    extra: `removed`, source -> bytes that go, all bytes and documents that go, of train; `in_clusters`, documents in
    components of several; `shown`, the largest components whose first document is here; `gone`, their documents of train
    that go, by source.
    """
    counts = Counts()
    removed: dict[str, list[int]] = {}
    shown: dict[int, dict[str, Any]] = {}
    gone: dict[int, dict[str, int]] = {root: {} for root, _ in task.args["shown"]}
    num_clustered = 0
    fates, copies, components = (
        ByOrdinal(files, files_of[0])
        for files_of in (task.reads["fates"], task.reads["copies"], task.through["components"])
    )
    blocks = task.hints["blocks"]
    base, end = blocks[0].first_ordinal, blocks[-1].last_ordinal
    of_group = (
        fates.rows("fate", base, end),
        components.rows("cluster", base, end),
        copies.rows("several", base, end),
    )
    with (
        files.create(task.outputs[0][1]) as creating,
        ClusterRows(creating.file, wide=task.args["wide"]) as rows,
    ):
        for block in blocks:
            docs = files.columns(block.docs).hold("source", "num_bytes")
            own = slice(block.first_ordinal - base, block.last_ordinal - base)
            fate, roots, several = (column[own] for column in of_group)
            clustered = np.flatnonzero(several)
            sources: list[str] = docs.meta["sources"]
            codes, num_bytes = docs["source"], docs["num_bytes"]
            _count(counts, removed, block.split, sources, codes, num_bytes.astype(np.int64), fate)
            num_clustered += len(clustered)
            if len(clustered):
                docs.hold("file", "line", "offset")
                _add_rows(rows, block, docs, codes, num_bytes, clustered, roots, fate)
            for root, size in task.args["shown"]:
                if block.first_ordinal <= root < block.last_ordinal:
                    shown[root] = _described(block, docs, root, size)
                if block.split == "train":
                    _count_in_cluster(gone[root], sources, codes[(roots == root) & (fate != Fate.KEPT)])
            advance(block.num_documents)
    counts.extra = {
        "removed": removed,
        "in_clusters": num_clustered,
        "shown": [shown[root] for root in sorted(shown)],
        "gone": [[root, sources_of] for root, sources_of in gone.items() if sources_of],
    }
    return counts


def _add_rows(
    rows: ClusterRows,
    block: Block,
    docs: Columns,
    codes: npt.NDArray[Any],
    num_bytes: npt.NDArray[Any],
    clustered: npt.NDArray[np.int64],
    roots: Ordinals,
    fate: UInt8Array,
) -> None:
    rows.add(
        block.split,
        [f.reason for f in Fate],
        docs.meta["sources"],
        docs.meta["files"],
        {
            "document": of_rows(clustered, block.first_ordinal, roots.dtype),
            "cluster": roots[clustered],
            "kept": fate[clustered] == Fate.KEPT,
            "fate": fate[clustered],
            "source": codes[clustered],
            "file": docs["file"][clustered],
            "line": docs["line"][clustered].astype(np.uint64) + np.uint64(block.first_line),
            "offset": docs["offset"][clustered],
            "bytes": num_bytes[clustered],
        },
    )


def _described(block: Block, docs: Columns, root: int, size: int) -> dict[str, Any]:
    """A component as the summary has it, by its first document."""
    row = root - block.first_ordinal
    return {
        "cluster": root,
        "documents": size,
        "source": docs.meta["sources"][int(docs["source"][row])],
        "file": docs.meta["files"][int(docs["file"][row])],
        "offset": int(docs["offset"][row]),
        "bytes": int(docs["num_bytes"][row]),
    }


def _count_in_cluster(gone: dict[str, int], sources: Sequence[str], codes: npt.NDArray[Any]) -> None:
    """Add a block's documents of one component that go, by source. codes: (n,), of their sources."""
    for code, amount in zip(*np.unique(codes, return_counts=True), strict=True):
        name = sources[int(code)]
        gone[name] = gone.get(name, 0) + int(amount)


def _count(
    counts: Counts,
    removed: dict[str, list[int]],
    split: str,
    sources: Sequence[str],
    codes: npt.NDArray[Any],
    num_bytes: npt.NDArray[np.int64],
    fate: UInt8Array,
) -> None:
    """Add one block's documents and bytes by source and fate, and what each source loses: source -> removed
    and all bytes, and removed documents, of train.
    """
    cells = codes.astype(np.int64) * len(Fate) + fate
    documents = np.bincount(cells, minlength=len(sources) * len(Fate)).reshape(-1, len(Fate))
    # A float sum is exact up to 2^53 bytes; a block is far smaller.
    amounts = (
        np.bincount(cells, num_bytes, minlength=len(sources) * len(Fate))
        .astype(np.int64)
        .reshape(-1, len(Fate))
    )
    for code, source in enumerate(sources):
        counts.add(split, source, "in", int(documents[code].sum()), int(amounts[code].sum()))
        for f in Fate:
            if documents[code, f]:
                cell = "out" if f == Fate.KEPT else f"drop:{f.reason}"
                counts.add(split, source, cell, int(documents[code, f]), int(amounts[code, f]))
        if split == "train":
            gone = removed.setdefault(source, [0, 0, 0])
            for f in Fate:
                if f not in (Fate.KEPT, Fate.IN_INDEX):  # what an index has is kept elsewhere
                    gone[0] += int(amounts[code, f])
                    gone[2] += int(documents[code, f])
            gone[1] += int(amounts[code].sum())


def summarised(
    results: Sequence[TaskResult], shown: Sequence[tuple[int, int]], num_clusters: int
) -> tuple[Counts, dict[str, list[int]], dict[str, Any]]:
    """The ledger's cells of all ranges, what each source of train loses (gates.py), and the summary of dataset.json."""
    counts = Counts()
    removed: dict[str, list[int]] = {}
    described: dict[int, Mapping[str, Any]] = {}
    gone: dict[int, dict[str, int]] = {root: {} for root, _ in shown}
    for result in results:
        counts.merge(result.counts)
        extra = result.counts.extra
        described |= {one["cluster"]: one for one in extra["shown"]}
        for source, amounts in extra["removed"].items():
            before = removed.get(source, [0, 0, 0])
            removed[source] = [one + other for one, other in zip(before, amounts, strict=True)]
        for root, by_source in extra["gone"]:
            for source, amount in by_source.items():
                gone[root][source] = gone[root].get(source, 0) + amount
    largest_clusters = [
        {
            **described[root],
            "removed": {
                source: [amount, counts.cells["train", source, "in"].documents]
                for source, amount in sorted(gone[root].items())
            },
        }
        for root, _ in shown
    ]
    summary = {
        "clusters": num_clusters,
        "documents_in_clusters": sum(result.counts.extra["in_clusters"] for result in results),
        "largest_clusters": largest_clusters,
    }
    return counts, removed, summary
