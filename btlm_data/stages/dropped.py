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

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.stages import mixing
from btlm_data.stages.documents import Rows, write_parquet
from btlm_data.stages.shuffle import GROUP_DOCUMENTS, groups_of, places_of
from btlm_data.stages.stream import StreamSettings
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 1


def estimate(workload: Workload) -> list[Estimate]:
    """What the step takes; how many documents are dropped nobody can know, so of them nothing."""
    volume, rates = workload.volume, workload.rates
    groups = max(1, -(-volume.documents // GROUP_DOCUMENTS))
    return [
        Estimate(
            "shard.dropped",
            tasks=groups,
            documents=volume.documents,
            read_bytes=9 * volume.documents,
            memory_bytes=rates.process_bytes + 120 * min(volume.documents, GROUP_DOCUMENTS),
            cpu_seconds=groups * rates.task + volume.documents * rates.table_document / 4,
        )
    ]


def plan(
    blocks: Sequence[Block],
    fates: Artifact,
    copies: Artifact | None,
    settings: StreamSettings,
    kept: Sequence[str],
) -> Step:
    """A task per group of consecutive blocks. copies: clusters.cols. kept: columns of the records' own fields."""
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"blocks": [list(blocks[i][:5]) for i in group], "kept": list(kept)},
            reads={
                "docs": [blocks[i].docs for i in group],
                "fields": [file for i in group if (file := blocks[i].fields) is not None],
                "fates": [fates],
                **mixing.reads(settings.settings.mix, copies),
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
    fates = files.columns(task.reads["fates"][0])
    tables = []
    for block in blocks:
        fate, split = (
            fates.rows(name, block.first_ordinal, block.last_ordinal) for name in ("fate", "split")
        )
        stands_for = mixing.stands_for(task, files, block.first_ordinal, block.last_ordinal)
        later = _dropped_later(files.columns(block.docs), fate, split, stands_for, settings)
        tables.append(_of_block(files, block, later, task.args["kept"]))
        advance(block.num_documents)
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    write_parquet(files, task, iter([table]))
    return Counts(extra={"documents": len(table)})


def _of_block(
    files: TaskFiles,
    block: Block,
    later: dict[int, tuple[str, str]],
    kept: Sequence[str],
) -> Any:
    """The rows of one block: what cleaning dropped, and what later stages did, in the order of the source. later:
    (stage, reason) by number in the block.
    """
    import pyarrow as pa

    docs = files.columns(block.docs)
    codes = docs["dropped/reason"]
    parts = [
        (True, np.arange(len(codes)), [("clean", docs.meta["reasons"][code]) for code in codes.tolist()]),
        (False, np.array(list(later), np.int64), list(later.values())),
    ]
    tables, file, offset = [], [], []
    for is_early, numbers, why in parts:
        rows = Rows(len(numbers), kept, dropped=is_early)
        if len(numbers):
            rows.add(files, block, np.arange(len(numbers)), numbers)
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
    stands_for: npt.NDArray[np.uint32] | None,
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
        placed = places_of(docs, fate, split, stands_for, stream, settings)
        is_placed[placed.candidates[placed.member & (placed.copies > 0)]] = True
        left_out[placed.candidates[placed.member & (placed.copies == 0)]] = True
    for number in np.flatnonzero((fate == Fate.KEPT) & ~is_placed).tolist():
        reasons[number] = ("shuffle", "left_out_by_mix" if left_out[number] else "in_other_set")
    return reasons
