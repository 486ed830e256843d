"""dropped.parquet: the documents that were read and are in no split, in source order, each with the stage
that dropped it and why.

Columns as in documents.parquet (stages/documents.py), without places in a stream: `file`, `line`, `offset`,
`source`, `bytes`, `hash`, the kept fields; `split` (as the source has it), `stage`, `reason` (as the ledger
names them; all dictionary-encoded). Records that could not be read are in rejects.jsonl. Documents that
another set of the same run has are not listed.

reads   a group of blocks' .docs (and .fields), the fates of all documents
writes  shard/dropped/GROUP.parquet
balance rows = documents that clean, dedupe, holdout and the mix dropped, less those drawn for another split
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import mix_plan
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.formats import text_columns
from btlm_data.formats.columns import Columns
from btlm_data.stages import mixing
from btlm_data.stages.documents import hashes, named, write_parquet
from btlm_data.stages.mixing import BlockMix, MixFiles
from btlm_data.stages.places import places_of
from btlm_data.stages.shuffle import group_documents, groups_of
from btlm_data.stages.stream import StreamSettings
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 2
# Of documents that cleaning dropped, or kept; of the latter their characters too.
_COLUMNS = ("file", "line", "offset", "source", "num_bytes", "hash")
_CHARS = "num_chars"


def estimate(workload: Workload) -> list[Estimate]:
    """What the step takes; how many documents are dropped nobody can know, so of them nothing."""
    volume, rates = workload.volume, workload.rates
    together = group_documents(volume.documents)
    groups = max(1, -(-volume.documents // together))
    return [
        Estimate(
            "shard.dropped",
            tasks=groups,
            documents=volume.documents,
            read_bytes=9 * volume.documents,
            reads=4 * workload.blocks,
            memory_bytes=rates.process_bytes + 120 * min(volume.documents, together),
            cpu_seconds=groups * rates.task + volume.documents * rates.table_document / 4,
        )
    ]


def plan(
    blocks: Sequence[Block],
    fates: Artifact,
    mix: MixFiles,
    settings: StreamSettings,
    kept: Sequence[str],
) -> Step:
    """A task per group of consecutive blocks. kept: columns of the records' own fields."""
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"blocks": [list(blocks[i][:5]) for i in group], "kept": list(kept)},
            reads={
                "docs": [blocks[i].docs for i in group],
                "fields": [file for i in group if (file := blocks[i].fields) is not None],
                "fates": [fates],
                **mix.reads(settings.settings.mix),
            },
            outputs=[("work", f"shard/dropped/{number:06d}.parquet")],
            weight=max(1, sum(blocks[i].num_documents for i in group)),
            hints={"blocks": [blocks[i] for i in group]},
        )
        for number, group in enumerate(groups_of(blocks))
    ]
    s = settings.settings
    shares = [part.share for part in s.seq_len]
    draws = s.mix.is_used or any(share is not None for share in shares)
    decides = digest(
        s.mix.model_dump(mode="json"),
        shares if draws else None,
        s.seed if draws else None,
        list(settings.splits),
    )
    return Step("shard.dropped", VERSION, work, tasks, settings, decides, "doc")


def work(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """The dropped documents of one group."""
    import pyarrow as pa

    blocks: Sequence[Block] = task.hints["blocks"]
    fates = ByOrdinal(files, task.reads["fates"][0])
    base, end = blocks[0].first_ordinal, blocks[-1].last_ordinal
    of_group = [fates.rows(name, base, end) for name in ("fate", "split")]
    tables = []
    for block in blocks:
        rows = slice(block.first_ordinal - base, block.last_ordinal - base)
        fate, split = of_group[0][rows], of_group[1][rows]
        of_mix = mixing.of_block(task, files, block.first_ordinal, block.last_ordinal)
        docs = files.columns(block.docs).hold("dropped/reason", *(f"dropped/{name}" for name in _COLUMNS))
        later = _dropped_later(docs, fate, split, of_mix, settings)
        if later:
            docs.hold(*_COLUMNS, _CHARS)
        tables.append(_of_block(files, block, docs, later, task.args["kept"]))
        advance(block.num_documents)
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    write_parquet(files, task.outputs[0], table)
    return Counts(extra={"documents": len(table)})


def _of_block(
    files: TaskFiles,
    block: Block,
    docs: Columns,
    later: dict[int, tuple[str, str]],
    kept: Sequence[str],
) -> Any:
    """The rows of one block: what cleaning dropped, and what later stages did, in the order of the source. docs: of the
    block. later: (stage, reason) by number in the block.
    """
    import pyarrow as pa

    codes = docs["dropped/reason"]
    parts = [
        (True, np.arange(len(codes)), [("clean", docs.meta["reasons"][code]) for code in codes.tolist()]),
        (False, np.array(list(later), np.int64), list(later.values())),
    ]
    tables, file, offset = [], [], []
    for is_early, numbers, why in parts:
        rows = _Rows(len(numbers), kept, dropped=is_early)
        if len(numbers):
            rows.add(files, block, docs, np.arange(len(numbers)), numbers)
        columns = rows.columns()
        columns.pop("chars", None)
        texts = {
            "split": [block.split] * len(why),
            "stage": [stage for stage, _ in why],
            "reason": [reason for _, reason in why],
        }
        columns |= {name: pa.array(values, pa.string()).dictionary_encode() for name, values in texts.items()}
        tables.append(pa.table(columns))
        prefix = "dropped/" if is_early else ""
        file.append(docs[f"{prefix}file"][numbers])
        offset.append(docs[f"{prefix}offset"][numbers])
    order = np.lexsort((np.concatenate(offset), np.concatenate(file)))
    return pa.concat_tables(tables).unify_dictionaries().take(order)


def _dropped_later(
    docs: Columns,
    fate: npt.NDArray[np.uint8],
    split: npt.NDArray[np.uint8],
    of_mix: BlockMix,
    settings: StreamSettings,
) -> dict[int, tuple[str, str]]:
    """(stage, reason) of each document of a block, by its number there, that a later stage dropped."""
    reasons = {}
    for number in np.flatnonzero(fate != Fate.KEPT).tolist():
        reached = Fate(int(fate[number]))
        reasons[number] = (reached.stage, reached.reason)
    is_placed = np.zeros(len(fate), bool)
    left_out = np.zeros(len(fate), bool)
    for stream in settings.streams:
        placed = places_of(docs, fate, split, of_mix, stream, settings)
        is_placed[placed.candidates[placed.member & (placed.copies > 0)]] = True
        left_out[placed.candidates[placed.member & (placed.copies == 0)]] = True
    for number in np.flatnonzero((fate == Fate.KEPT) & ~is_placed).tolist():
        reasons[number] = ("shuffle", mix_plan.LEFT_OUT if left_out[number] else "in_other_set")
    return reasons


class _Rows:
    """Rows of a table of documents, gathered block by block.

    count: of all rows. kept: columns of the records' own fields. dropped: of the documents that cleaning
    dropped, not of those that passed it.
    """

    def __init__(self, count: int, kept: Sequence[str], *, dropped: bool = False) -> None:
        self._kept, self._prefix = kept, "dropped/" if dropped else ""
        self._numbers: dict[str, npt.NDArray[Any]] = {
            "file": np.empty(count, np.int32),
            "line": np.empty(count, np.uint64),
            "offset": np.empty(count, np.uint64),
            "source": np.empty(count, np.int32),
            "bytes": np.empty(count, np.uint32),
        }
        if not dropped:
            self._numbers["chars"] = np.empty(count, np.uint32)
        self._hash = np.empty((count, 16), np.uint8)
        self._names: dict[str, dict[str, int]] = {"file": {}, "source": {}}
        self._texts: dict[str, list[Any]] = {name: [] for name in kept}
        self._rows: list[npt.NDArray[np.int64]] = []

    def add(
        self,
        files: TaskFiles,
        block: Block,
        docs: Columns,
        rows: npt.NDArray[Any],
        numbers: npt.NDArray[np.int64],
    ) -> None:
        """Fill `rows` with the documents `numbers` of a block. rows, numbers: (n,) of an integer dtype."""
        out, prefix = self._numbers, self._prefix
        out["line"][rows] = docs[f"{prefix}line"][numbers].astype(np.uint64) + np.uint64(block.first_line)
        for column, field in (("offset", "offset"), ("bytes", "num_bytes"), ("chars", "num_chars")):
            if column in out:
                out[column][rows] = docs[f"{prefix}{field}"][numbers]
        self._hash[rows] = docs[f"{prefix}hash"][numbers]
        for column in ("file", "source"):
            codes = self._names[column]
            local = np.array(
                [codes.setdefault(name, len(codes)) for name in docs.meta[f"{column}s"]], np.int32
            )
            out[column][rows] = local[docs[f"{prefix}{column}"][numbers]]
        self._rows.append(np.asarray(rows, np.int64))
        if not self._kept:
            return
        if block.fields is None:
            raise DataError(f"The block {block.stem} has no kept fields. Rerun the same command.")
        fields = files.columns(block.fields)
        first = block.num_documents if prefix else 0
        for name in self._kept:
            self._texts[name].append(text_columns.to_arrow(fields, name).take(first + numbers))

    def columns(self) -> dict[str, Any]:
        """The columns, as they are in the table."""
        import pyarrow as pa

        out: dict[str, Any] = dict(self._numbers)
        for column, codes in self._names.items():
            out[column] = named(out[column], codes)
        out["hash"] = hashes(self._hash)
        order = np.argsort(np.concatenate([np.empty(0, np.int64), *self._rows]))
        for name, parts in self._texts.items():
            values = pa.chunked_array(parts, pa.large_string()).combine_chunks()
            out[name] = values.take(order).cast(pa.string())
        return out
