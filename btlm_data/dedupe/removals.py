"""Decides about each group of components, and writes removals.parquet: a row per document that deduplication drops, with the one that is kept for it.

Rows are by component (its first document), then by the removed document, both in source order.

document        uint32   the removed document's ordinal: row number over all blocks (uint64 of more than 2^32 - 1 documents, as
                         are `kept_document` and `cluster`)
kept_document   uint32   of the one kept for it; null where that is in an index of earlier runs
reason          string   as the ledger names it
bands           uint16   bands that the two share (all of them where their normalised texts are equal); null
                         without bands
similarity      float64  Jaccard similarity of their features; null where texts were not compared
containment     float64  share of the removed document's features that the kept one has; kept_containment: the
                         reverse
cluster         uint32   ordinal of the first document of their component
cluster_size    uint32   documents of the component
file, line, offset, source, bytes, split               the removed document: file in the source, line
                                                       (0-based) and offset of its record there, source name,
                                                       bytes of cleaned text, split
kept_file, kept_line, kept_offset, kept_source, kept_bytes, kept_split    the kept one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.dedupe import clusters
from btlm_data.dedupe.deciding import IN_INDEX, NOT_IN_RUN, decide, rows_of
from btlm_data.dedupe.members import Group, read_group
from btlm_data.dedupe.ranges import Ranges
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.fates import Fate
from btlm_data.formats import parquet_splice
from btlm_data.formats.columns import Columns
from btlm_data.splits import SPLITS
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

NAME = "removals.parquet"
VERSION = 2
_ROW_GROUP = 131_072
_ORDINALS = ("document", "kept_document", "cluster")
_LOCATION = ("file", "line", "offset", "source", "bytes", "split")


def plan(
    num_groups: int,
    members: Artifact,
    compared: Sequence[Artifact],
    settings: ClusterSettings,
    ranges: Ranges,
    lineage: str,
) -> Step:
    """A task per group: decides, and lists what goes. members: list of files. compared: of each group, where texts were
    compared.
    """
    tasks = [
        Task(
            id=f"{group:06d}",
            args={"group": group, **ranges.args},
            inputs=[lineage],
            through={"members": [members], "compared": [compared[group - 1]] if compared else []},
            outputs=[("work", f"dedupe/decide/{group:06d}.{kind}") for kind in ("cols", "parquet")],
            hints={"ranges": ranges},
        )
        for group in range(1, num_groups + 1)
    ]
    return Step("dedupe.decide", VERSION, work, tasks, settings, lineage, "task")


def work(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """The decisions about one group, and its rows."""
    import pyarrow.parquet as pq

    group = read_group(files, task.through["members"][0], task.args["group"], with_texts=False)
    compared = files.columns(task.through["compared"][0]) if task.through["compared"] else None
    decided = decide(group, settings.dedupe, compared)
    ordinals = group.columns["ordinal"]
    clusters.write_decided(files, task.outputs[0][1], ordinals, decided, task.hints["ranges"])
    removed = np.flatnonzero(decided.fate != Fate.KEPT)
    removed = removed[np.lexsort((removed, decided.cluster[removed]))]
    kept = decided.kept[removed].astype(np.int64)
    kept[kept == NOT_IN_RUN] = -1
    sizes = decided.sizes()
    columns: dict[str, Any] = {
        "document": _optional(ordinals, removed),
        "kept_document": _optional(ordinals, kept),
        "reason": _names(decided.fate[removed], [f.reason for f in Fate]),
        **_evidence(group, removed, kept, compared),
        "cluster": _optional(group.columns["cluster"], removed),
        "cluster_size": sizes[decided.cluster[removed]],
        **_locations(group, removed, ""),
        **_locations(group, kept, "kept_"),
    }
    with files.create(task.outputs[1][1]) as creating:
        pq.write_table(
            _table(columns, wide=bool(task.args["wide"])),
            creating.file,
            row_group_size=_ROW_GROUP,
            compression="zstd",
        )
    advance(task.weight)
    return Counts(
        extra={
            "largest": clusters.largest(ordinals, decided),
            "clusters": int(np.count_nonzero(sizes > 1)),
        }
    )


def plan_tables(parts: Mapping[str, Artifact], *, wide: bool) -> Step:
    """A task per table. parts: its name -> the list of its parts. wide: ordinals take 64 bits."""
    tasks = [
        Task(
            id=name.removesuffix(".parquet"),
            args={"wide": wide},
            reads={"parts": [listed]},
            outputs=[("work", f"dedupe/table/{name}")],
        )
        for name, listed in parts.items()
    ]
    return Step("dedupe.table", VERSION, join, tasks, None, "", "task")


def join(task: Task, settings: None, files: TaskFiles) -> Counts:
    """One table from its parts."""
    import pyarrow.parquet as pq

    parts = files.read_list(task.reads["parts"][0])
    store, name = task.outputs[0]
    if parts:
        with files.create_in_order(name, store) as writer:
            parquet_splice.splice(writer, (files.read(part) for part in parts))
    else:  # of removals.parquet: nothing was in a component of several
        with files.create(name) as creating:
            pq.write_table(_schema(wide=task.args["wide"]).empty_table(), creating.file, compression="zstd")
    advance(1)
    return Counts()


def _evidence(
    group: Group, removed: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], compared: Columns | None
) -> dict[str, Any]:
    """Bands, similarity and containments of each pair of rows."""
    import pyarrow as pa

    roots, keys = group.columns["root"], group.columns["keys"]
    has_kept = kept >= 0
    is_equal = has_kept & (roots[removed] == roots[kept])
    bands = np.count_nonzero(keys[removed] == keys[kept], axis=1).astype(np.uint16)
    known, root_rows = is_equal.copy(), rows_of(group, roots)
    values = {name: is_equal.astype(np.float64) for name in ("similarity", "containment", "kept_containment")}
    if compared is not None:
        codes = _code(rows_of(group, compared["gone"]), _rows_of_anchors(group, compared["anchor"]))
        by_code = np.argsort(codes)
        near = np.flatnonzero(~is_equal)
        anchors = np.where(has_kept[near], root_rows[kept[near]], np.uint32(NOT_IN_RUN))
        wanted = _code(root_rows[removed[near]], anchors)
        comparison = np.minimum(np.searchsorted(codes, wanted, sorter=by_code), max(0, len(codes) - 1))
        is_there = codes[by_code[comparison]] == wanted if len(codes) else np.zeros(len(near), np.bool_)
        near, comparison = near[is_there], by_code[comparison[is_there]]
        shared, anchor, gone = (
            compared[name][comparison].astype(np.float64) for name in ("shared", "anchor_size", "gone_size")
        )
        values["similarity"][near] = shared / (anchor + gone - shared)
        values["containment"][near] = shared / gone
        values["kept_containment"][near] = shared / anchor
        known[near] = True
        in_index = np.flatnonzero(~has_kept & ~known)  # not compared: an index has the very text
        known[in_index] = True
        for value in values.values():
            value[in_index] = 1.0
    has_bands = has_kept & (keys.shape[1] > 0)
    return {
        "bands": pa.array(bands, pa.uint16(), mask=~has_bands),
        **{name: pa.array(value, pa.float64(), mask=~known) for name, value in values.items()},
    }


def _rows_of_anchors(group: Group, anchors: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Rows of the texts that stay, NOT_IN_RUN where an index has them."""
    out = np.full(len(anchors), NOT_IN_RUN, np.uint32)
    is_here = anchors != IN_INDEX
    out[is_here] = rows_of(group, anchors[is_here])
    return out


def _code(gone: npt.NDArray[np.uint32], anchor: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """A pair of rows as one number."""
    return gone.astype(np.uint64) << np.uint64(32) | anchor.astype(np.uint64)


def _locations(group: Group, rows: npt.NDArray[np.int64], prefix: str) -> dict[str, Any]:
    """File, line, offset, source, bytes and split of documents, for rows of a group; null where the row is
    -1.
    """
    names = {"file": group.files, "source": group.sources, "split": list(SPLITS)}
    is_null = rows < 0
    return {
        f"{prefix}{name}": _names(group.columns[name][rows], names[name], is_null)
        if name in names
        else _optional(group.columns[name], rows)
        for name in _LOCATION
    }


def _optional(column: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Any:
    import pyarrow as pa

    return pa.array(column[rows], mask=rows < 0)


def _names(
    codes: npt.NDArray[Any], names: Sequence[str], is_null: npt.NDArray[np.bool_] | None = None
) -> Any:
    """A dictionary column whose names are those in use, sorted."""
    import pyarrow as pa

    used = np.unique(codes if is_null is None else codes[~is_null]).tolist()
    in_order = sorted(used, key=lambda code: names[code])
    local = np.zeros(len(names) + 1, np.int32)
    local[in_order] = np.arange(len(in_order))
    indices = pa.array(local[codes], pa.int32(), mask=is_null)
    return pa.DictionaryArray.from_arrays(indices, pa.array([names[code] for code in in_order], pa.string()))


def _schema(*, wide: bool) -> Any:
    import pyarrow as pa

    ordinal = pa.uint64() if wide else pa.uint32()
    name = pa.dictionary(pa.int32(), pa.string())
    origin = {
        "file": name,
        "line": pa.uint64(),
        "offset": pa.uint64(),
        "source": name,
        "bytes": pa.uint32(),
        "split": name,
    }
    return pa.schema(
        {
            "document": ordinal,
            "kept_document": ordinal,
            "reason": name,
            "bands": pa.uint16(),
            "similarity": pa.float64(),
            "containment": pa.float64(),
            "kept_containment": pa.float64(),
            "cluster": ordinal,
            "cluster_size": pa.uint32(),
            **origin,
            **{f"kept_{key}": kind for key, kind in origin.items()},
        }
    )


def _table(columns: dict[str, Any], *, wide: bool) -> Any:
    import pyarrow as pa

    schema = _schema(wide=wide)
    columns = {**columns, **{name: columns[name].cast(schema.field(name).type) for name in _ORDINALS}}
    return pa.table([columns[field] for field in schema.names], schema=schema)
