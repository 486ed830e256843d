"""A run's entry of an index (index.py), written by tasks.

    dedupe.index-split-KIND   keys of the documents that later ones are compared with, by file of the index | group of blocks
    dedupe.index-KIND         equal keys reduced to what stands for them                                    | file
    dedupe.index-signatures                                                                                 | file
    dedupe.index-texts        texts that a step of the caller has packed                                    | file

How the entry is cut into files follows from what it holds, never from the memory or the workers: the same corpus gives the same
index, byte for byte, and a later run that names its files by checksum depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from btlm_data.advance import advance
from btlm_data.blocks import grouped
from btlm_data.dedupe import keys, steps
from btlm_data.dedupe.index import SIGNATURES_A_FILE, Index, file_name
from btlm_data.dedupe.keys import Chosen
from btlm_data.dedupe.ranges import dtype_of
from btlm_data.dedupe.settings import ClusterSettings, KeyKind
from btlm_data.dedupe.sizes import SORT_BYTES, Sizes
from btlm_data.dedupe.steps import Steps
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 1
KEYS_A_FILE = 2**22  # about; keys are spread evenly
TEXT_BYTES_A_FILE = 2**26  # of compressed texts, unless one piece alone has more
Int64Array = npt.NDArray[np.int64]


class PackedTexts(msgspec.Struct, frozen=True):
    """A file of packed texts (index.pack) of consecutive documents. columns: `ordinals` (m,) uint32 ascending, counted from
    first_ordinal; `frames`, `bounds`. pieces: index.pieces_of.
    """

    first_ordinal: int
    file: Artifact
    pieces: Sequence[tuple[int, int]]


def add(
    runner: Runner,
    run_steps: Steps,
    index: Index,
    chosen: Chosen,
    texts: Sequence[PackedTexts] = (),
    *,
    with_signatures: bool = False,
) -> None:
    """Add the run of these steps to an index, which the runner's stores must have; nothing if it is there already. texts: where texts
    are compared. with_signatures: those of the sketches are kept. Raises OutputError if the index cannot be written.
    """
    if index.is_added:
        return
    index.begin()
    settings = run_steps.settings
    bare = replace(run_steps, settings=replace(settings, index=None))
    written: list[Artifact] = []
    planned, passes = list[Step](), list[Step]()
    for kind in settings.key_kinds:
        split = _plan_split(bare, kind, chosen)
        sort = _plan_keys(bare, index, kind, None, chosen)
        if not runner.is_done(sort):
            log = _log_files(bare, kind)
            listed = bare.split_keys(runner, split, log, f"dedupe/index-groups-{kind}.json", passes)
            sort = _plan_keys(bare, index, kind, listed, chosen)
        written += _outputs(runner, sort)
        planned += [split, sort]
    if with_signatures:
        step = _plan_signatures(bare, index)
        written += _outputs(runner, step)
        planned.append(step)
    if settings.by_text:
        step = _plan_texts(bare, index, texts)
        written += _outputs(runner, step)
        planned.append(step)
    index.finish(written, run_steps.num_documents)
    runner.discard(*planned, *passes)


def _outputs(runner: Runner, step: Step) -> list[Artifact]:
    return [output for result in runner.run(step) for output in result.outputs]


def estimate(sizes: Sizes, workload: Workload) -> list[Estimate]:
    """What the steps take, and packing the texts before them."""
    settings, rates, volume = sizes.settings, workload.rates, workload.volume
    bounded = rates.process_bytes + sizes.budget
    steps = []
    if settings.by_text:
        packed = round(rates.text_ratio * volume.text_bytes)
        packing, copying = (rate * volume.text_bytes for rate in (rates.pack_text_byte, rates.copied_byte))
        steps += [
            Estimate(
                "dedupe.kept-texts",
                tasks=volume.parts,
                documents=volume.documents,
                read_bytes=workload.token_bytes * volume.tokens,
                reads=3 * workload.blocks,
                work_bytes=packed,
                memory_bytes=bounded,
                cpu_seconds=volume.parts * rates.task + packing,
            ),
            Estimate(
                "dedupe.index-texts",
                tasks=max(1, -(-packed // TEXT_BYTES_A_FILE)),
                documents=volume.documents,
                read_bytes=packed,
                reads=2 * workload.blocks,
                freed_bytes=packed,
                memory_bytes=rates.process_bytes + 3 * TEXT_BYTES_A_FILE,
                cpu_seconds=copying * rates.text_ratio,
            ),
        ]
    for kind in settings.key_kinds:
        num_keys = volume.documents * settings.keys_per_document(kind)
        steps += [
            Estimate(
                f"dedupe.index-split-{kind}",
                tasks=-(-volume.documents // sizes.group_documents(kind)),
                documents=volume.documents,
                read_bytes=16 * num_keys,
                reads=2 * workload.blocks,
                work_bytes=16 * num_keys,
                memory_bytes=bounded,
                cpu_seconds=num_keys * rates.split_key,
            ),
            Estimate(
                f"dedupe.index-{kind}",
                tasks=1 << log_files(num_keys),
                documents=volume.documents,
                read_bytes=16 * num_keys,
                freed_bytes=16 * num_keys,
                memory_bytes=rates.process_bytes + min(num_keys, 2 * KEYS_A_FILE) * SORT_BYTES[kind],
                cpu_seconds=num_keys * rates.sort_key,
            ),
        ]
    return steps


# Keys -------------------------------------------------------------------------------------------------------


def log_files(num_keys: int) -> int:
    """So many highest bits of a key say in which file it is, where there are about `num_keys`."""
    return max(0, (-(-num_keys // KEYS_A_FILE) - 1).bit_length())


def _log_files(of_run: Steps, kind: KeyKind) -> int:
    return log_files(of_run.num_documents * of_run.settings.keys_per_document(kind))


def _plan_split(of_run: Steps, kind: KeyKind, chosen: Chosen) -> Step:
    """The keys of the chosen documents of each group of blocks, by file."""
    log = _log_files(of_run, kind)
    tasks = [
        Task(
            id=f"{number:06d}",
            args={
                "kind": kind,
                "log_partitions": log,
                "wide": of_run.ranges.wide,
                "column": chosen.column,
            },
            inputs=[of_run.lineage],
            reads={
                "sketches": [block.sketch for block in group if block.sketch is not None],
                "chosen": [chosen.listed],
            },
            outputs=[("work", f"dedupe/index-split-{kind}/{number:06d}.cols")],
            weight=sum(block.num_documents for block in group),
            hints={"blocks": group},
        )
        for number, group in enumerate(grouped(of_run.blocks, of_run.sizes.group_documents(kind)))
    ]
    name = f"dedupe.index-split-{kind}"
    return Step(name, VERSION, split, tasks, of_run.settings, of_run.lineage, "doc")


def split(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Partition the keys of one group of blocks by their highest bits."""
    blocks = task.hints["blocks"]
    chosen = Chosen(task.reads["chosen"][0], task.args["column"])
    takes_part = chosen.rows(files, blocks[0].first_ordinal, blocks[-1].last_ordinal)
    dtype = dtype_of(wide=task.args["wide"])
    kind, log = task.args["kind"], task.args["log_partitions"]
    group_keys, bounds = keys.partitioned(files, blocks, settings, kind, log, takes_part, dtype)
    keys.write_group(files, task.outputs[0][1], group_keys, bounds)
    return Counts()


def _plan_keys(of_run: Steps, index: Index, kind: KeyKind, groups: Artifact | None, chosen: Chosen) -> Step:
    """The files of keys. groups: the list of split files; None only to see what is done."""
    log = _log_files(of_run, kind)
    tasks = [
        Task(
            id=f"{number:06d}",
            args={
                "kind": kind,
                "log_partitions": log,
                "partition": number,
                "documents": of_run.num_documents,
                "wide": of_run.ranges.wide,
                "run": index.run,
            },
            inputs=[of_run.lineage],
            reads={"chosen": [chosen.listed]},
            through={"groups": [groups] if groups is not None else [], "blocks": [of_run.table]},
            outputs=[("index", file_name(index.run, kind, number))],
            weight=max(1, of_run.num_documents >> log),
        )
        for number in range(1 << log)
    ]
    return Step(f"dedupe.index-{kind}", VERSION, write_keys, tasks, of_run.settings, of_run.lineage, "doc")


def write_keys(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Of the documents of each key those with which a later one is compared, ascending by key and ordinal."""
    kind, log, dtype = task.args["kind"], task.args["log_partitions"], dtype_of(wide=task.args["wide"])
    # All keys of a file at once: which signatures stand for a bucket could follow from where it is cut.
    chunks = keys.partition_chunks(
        files,
        task.through["groups"][0],
        task.args["partition"],
        2 * KEYS_A_FILE,
        task.args["documents"],
        dtype,
    )
    linker = steps.linker(task, settings, files, kind, log, dtype)
    kept = linker.representatives(chunks)
    arrays: dict[str, npt.NDArray[Any]] = {"keys": kept.keys}
    arrays |= {"low": kept.low} if kind == "exact" else {"ordinals": kept.ordinals}
    files.write_columns(task.outputs[0][1], arrays, store="index")
    advance(task.weight)
    return Counts()


# Signatures -------------------------------------------------------------------------------------------------


def _plan_signatures(of_run: Steps, index: Index) -> Step:
    """The files of signatures, each of SIGNATURES_A_FILE consecutive documents."""
    blocks = [block for block in of_run.blocks if block.sketch is not None]
    tasks, begin = [], 0
    for number, first in enumerate(range(0, of_run.num_documents, SIGNATURES_A_FILE)):
        last = min(first + SIGNATURES_A_FILE, of_run.num_documents)
        while begin < len(blocks) and blocks[begin].last_ordinal <= first:
            begin += 1
        end = begin
        while end < len(blocks) and blocks[end].first_ordinal < last:
            end += 1
        tasks.append(
            Task(
                id=f"{number:06d}",
                args={"documents": [first, last], "run": index.run},
                inputs=[of_run.lineage],
                reads={"sketches": [block.sketch for block in blocks[begin:end] if block.sketch is not None]},
                outputs=[("index", file_name(index.run, "signatures", number))],
                weight=last - first,
                hints={"blocks": blocks[begin:end]},
            )
        )
    name = "dedupe.index-signatures"
    return Step(name, VERSION, write_signatures, tasks, of_run.settings, of_run.lineage, "doc")


def write_signatures(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Signatures of some documents; zeros of those that have none, which no key leads to."""
    first, last = task.args["documents"]
    signatures = np.zeros((last - first, settings.dedupe.num_perm), np.uint32)
    for block in task.hints["blocks"]:
        low, high = max(first, block.first_ordinal), min(last, block.last_ordinal)
        rows = files.columns(block.sketch).rows(
            "signatures", low - block.first_ordinal, high - block.first_ordinal
        )
        signatures[low - first : high - first] = rows
    files.write_columns(task.outputs[0][1], {"signatures": signatures}, store="index")
    advance(task.weight)
    return Counts()


# Texts ------------------------------------------------------------------------------------------------------


class _Stretch(msgspec.Struct, frozen=True):
    """Texts of the documents [begin, end) of a file, counted from its first."""

    of: PackedTexts
    begin: int
    end: int


def cut_texts(texts: Iterable[PackedTexts]) -> Iterator[list[_Stretch]]:
    """What goes into each file of texts; one at least."""
    held: list[_Stretch] = []
    num_bytes = count = 0
    for of_file in texts:
        begin = end = 0
        for following, size in of_file.pieces:
            if num_bytes and num_bytes + size > TEXT_BYTES_A_FILE:
                yield held + [_Stretch(of_file, begin, end)] * (end > begin)
                held, num_bytes, count, begin = [], 0, count + 1, end
            num_bytes, end = num_bytes + size, following
        held += [_Stretch(of_file, begin, end)] * (end > begin)
    if held or not count:
        yield held


def _plan_texts(of_run: Steps, index: Index, texts: Sequence[PackedTexts]) -> Step:
    """The files of texts, each named by the first document that it may have."""
    tasks: list[Task] = []
    for held in cut_texts(texts):
        first = held[0].of.first_ordinal + held[0].begin if held else 0
        tasks.append(
            Task(
                id=f"{len(tasks):06d}",
                args={
                    "stretches": [[each.of.first_ordinal, each.begin, each.end] for each in held],
                    "wide": of_run.ranges.wide,
                    "run": index.run,
                },
                inputs=[of_run.lineage],
                reads={"texts": [each.of.file for each in held]},
                outputs=[("index", file_name(index.run, "texts", first))],
                weight=max(1, sum(each.end - each.begin for each in held)),
            )
        )
    return Step("dedupe.index-texts", VERSION, write_texts, tasks, of_run.settings, of_run.lineage, "doc")


def write_texts(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Put together the texts of some documents."""
    dtype = dtype_of(wide=task.args["wide"])
    ordinals: list[npt.NDArray[Any]] = [np.empty(0, dtype)]
    frames: list[npt.NDArray[np.uint8]] = [np.empty(0, np.uint8)]
    sizes: list[Int64Array] = [np.zeros(1, np.int64)]
    for file, (base, begin, end) in zip(task.reads["texts"], task.args["stretches"], strict=True):
        opened = files.columns(file)
        rows, bounds = opened["ordinals"].astype(np.int64), opened["bounds"]
        low, high = np.searchsorted(rows, [begin, end]).tolist()
        ordinals.append((rows[low:high] + base).astype(dtype))
        frames.append(opened.rows("frames", int(bounds[low]), int(bounds[high])))
        sizes.append(np.diff(bounds[low : high + 1]))
    arrays = {
        "ordinals": np.concatenate(ordinals),
        "frames": np.concatenate(frames),
        "bounds": np.cumsum(np.concatenate(sizes), dtype=np.int64),
    }
    files.write_columns(task.outputs[0][1], arrays, store="index")
    advance(task.weight)
    return Counts()
