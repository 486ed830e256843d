"""`--emit-text DIR`: read the source once more and write the kept text, as stages/emit_text.py lays it out.

    collect  a part       -> per block and split, the kept documents' cleaned records:
                          emit/collect/STEM-SPLIT.jsonl.zst
    write    output file  -> DIR/SPLIT/chunkN/example_..._M.jsonl.zst, 10,000 documents each

Two steps, because a part can only be read from its beginning while an output file takes documents from
anywhere in it. The kept documents are found again by their place (file and offset), not by their text.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zstandard

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.engine.runner import Runner
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.splits import SPLITS
from btlm_data.stages import emit_folder, emit_text, read
from btlm_data.stages.block_writer import BlockWriter, Part, ReadSettings
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 3


def estimate(workload: Workload) -> list[Estimate]:
    """What reading the source once more and writing the kept text takes; nothing where it is not requested."""
    volume, rates = workload.volume, workload.rates
    if workload.run.emit_text is None:
        return []
    [reading] = read.estimate(workload)
    text_bytes = round(volume.text_bytes * rates.text_ratio)
    files = max(1, -(-volume.documents // emit_text.DOCUMENTS_PER_FILE))
    return [
        Estimate(
            "emit.collect",
            tasks=volume.parts,
            documents=volume.documents,
            source_bytes=volume.stored_bytes,
            read_bytes=read.document_bytes(workload.settings) * volume.documents,
            work_bytes=text_bytes,
            memory_bytes=reading.memory_bytes,
            cpu_seconds=reading.cpu_seconds / 2 + volume.text_bytes * rates.text_byte / 4,
        ),
        Estimate(
            "emit.write",
            tasks=files,
            documents=volume.documents,
            read_bytes=text_bytes,
            freed_bytes=text_bytes,
            out_bytes=text_bytes,
            memory_bytes=rates.process_bytes,
            cpu_seconds=files * rates.task + volume.text_bytes * rates.text_byte * 3 / 4,
        ),
    ]


def run(runner: Runner, collecting: Step, fingerprint: str) -> None:
    """Write all text into the text folder. collecting: as plan_collect makes it."""
    text = runner.stores.text
    assert text is not None
    writing = plan_write(collecting, runner.run(collecting))
    emit_folder.begin(text, fingerprint, [name for task in writing.tasks for _, name in task.outputs])
    results = runner.run(writing)
    emit_folder.finish(text, fingerprint, [result.counts.extra["file"] for result in results])
    runner.discard(collecting)


def plan_collect(parts: Step, blocks: Sequence[Block], fates: Artifact, settings: ReadSettings) -> Step:
    """A task per part that was read. parts: the step `read`. fates: with `fate` and `split`."""
    tasks = []
    for part in parts.tasks:
        assert part.resumes is not None
        part_blocks = [block for block in blocks if block.stem.startswith(part.resumes)]
        tasks.append(
            Task(
                id=part.id,
                args={
                    "blocks": [[b.stem, b.first_ordinal] for b in part_blocks],
                },
                inputs=part.inputs,
                reads={"docs": [block.docs for block in part_blocks], "fates": [fates]},
                weight=part.weight,
                hints={"ranges": read.ranges_of(part)},
            )
        )
    return Step("emit.collect", VERSION, collect, tasks, settings, digest(VERSION, settings.products["docs"]))


def collect(task: Task, settings: ReadSettings, files: TaskFiles) -> Counts:
    """Write a part's kept documents, a file per block and split.

    Raises DataError if the source is no longer what was read.
    """
    fates = ByOrdinal(files, task.reads["fates"][0])
    ranges = read.ranges_of(task)
    part = Part(ranges, settings, {})
    kept_per_block: list[list[int]] = []
    blocks = read.records(ranges, settings, (0, 0), all_records=True)
    by_name = {r.file.name: r.file.text_field for r in ranges}
    described = zip(task.args["blocks"], task.reads["docs"], strict=True)
    for ((stem, first), docs_file), block in zip(described, blocks, strict=False):
        docs = files.columns(docs_file)
        offsets = docs["offset"].tolist()
        row_of = {
            document: row for row, document in enumerate(zip(block.files, block.block.offsets, strict=True))
        }
        rows = [row_of.get(document) for document in zip(docs["file"].tolist(), offsets, strict=True)]
        if any(row is None for row in rows):
            raise DataError(
                f"{ranges[0].file.name} has changed since it was read: a document at offset "
                f"{offsets[rows.index(None)]} is gone. Restore the file, or start again with another --work-dir."
            )
        fate, split = (fates.rows(name, first, first + len(offsets)) for name in ("fate", "split"))
        kept = np.flatnonzero(fate == Fate.KEPT).tolist()
        documents = block.documents(ranges, [row for i in kept if (row := rows[i]) is not None])
        texts = BlockWriter(files, stem, part).cleaned(documents).texts
        records, amounts = documents.records or (), []
        text_fields = [by_name[name] or settings.options.fields.text for name in documents.files]
        for number, name in enumerate(SPLITS):
            chosen = np.flatnonzero(split[kept] == number).tolist()
            amounts.append(len(chosen))
            if chosen:
                lines = (
                    emit_text.encode(texts[i], documents.sources[i], records[i].fields(), text_fields[i])
                    for i in chosen
                )
                _write_lines(files, _collected(stem, name), lines)
        kept_per_block.append(amounts)
    return Counts(extra={"kept": kept_per_block})


def _collected(stem: str, split: str) -> str:
    return f"emit/collect/{stem.rpartition('/')[2]}-{split}.jsonl.zst"


def _write_lines(files: TaskFiles, name: str, lines: Iterator[bytes]) -> None:
    compressor = zstandard.ZstdCompressor(level=1)
    with files.create(name) as creating, compressor.stream_writer(creating.file, closefd=False) as stream:
        for line in lines:
            stream.write(line + b"\n")


def plan_write(collecting: Step, results: Sequence[Any]) -> Step:
    """A task per output file."""
    stems = [stem for task in collecting.tasks for stem, _ in task.args["blocks"]]
    kept = [amounts for result in results for amounts in result.counts.extra["kept"]]
    collected = {artifact.name: artifact for result in results for artifact in result.outputs}
    tasks = []
    for number, split in enumerate(SPLITS):
        for index, file in enumerate(emit_text.plan(split, [amounts[number] for amounts in kept])):
            tasks.append(
                Task(
                    id=f"{split}-{index:06d}",
                    args={"name": file.name, "stretches": [[s.start, s.stop] for s in file.stretches]},
                    reads={
                        "collected": [collected[_collected(stems[s.block], split)] for s in file.stretches]
                    },
                    outputs=[("text", file.name)],
                    weight=file.num_documents,
                )
            )
    return Step("emit.write", VERSION, write, tasks, None, collecting.settings_digest, "doc")


def write(task: Task, settings: None, files: TaskFiles) -> Counts:
    """Write one output file."""
    described = list(zip(task.reads["collected"], task.args["stretches"], strict=True))

    def lines() -> Iterator[bytes]:
        for artifact, (start, stop) in described:
            yield from emit_text.chosen(_read_lines(files.read(artifact)), start, stop)

    stretches = tuple(emit_text.Stretch(i, start, stop) for i, (_, (start, stop)) in enumerate(described))
    store, name = task.outputs[0]
    with files.create(name, store) as creating:
        written = emit_text.write_file(creating.file, emit_text.OutputFile(name, stretches), lines())
    advance(written.num_documents)
    return Counts(
        extra={
            "file": {
                "name": written.name,
                "documents": written.num_documents,
                "bytes": written.size,
                "sha256": written.sha256,
            }
        }
    )


def _read_lines(data: bytes) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as stream:
        for line in io.BufferedReader(stream):
            yield line[:-1]
