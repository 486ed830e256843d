"""`--emit-text DIR`: read the source once more and write the kept text, as stages/emit_text.py lays it out.

    collect  a part       -> per block and split, the kept documents' cleaned records: work/emit/STEM-SPLIT.jsonl.zst
    write    output file  -> DIR/SPLIT/chunkN/example_..._M.jsonl.zst, 10,000 documents each

Two steps, because a part can only be read from its beginning while an output file takes documents from anywhere in it.
The kept documents are found again by their place (file and offset), not by their text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard

from btlm_data.advance import advance
from btlm_data.errors import DataError
from btlm_data.fingerprint import digest
from btlm_data.formats import atomic, columns
from btlm_data.splits import SPLITS
from btlm_data.stages import emit_text, read
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate
from btlm_data.stages.streams import FATES
from btlm_data.task import Counts, Task

VERSION = 1


def plan_collect(parts: Sequence[Task], blocks: Sequence[Block], lineage: str) -> list[Task]:
    """A task per part that was read."""
    first = {block.stem: block.first_ordinal for block in blocks}
    tasks = []
    for part in parts:
        mine = sorted(
            (stem, ordinal) for stem, ordinal in first.items() if stem.startswith(f"read/{part.id}-")
        )
        tasks.append(
            Task(part.id, {"segments": part.args["segments"], "blocks": mine}, [lineage], weight=part.weight)
        )
    return tasks


def collect(task: Task, settings: read.ReadSettings, work_dir: str) -> Counts:
    """Write a part's kept documents, a file per block and split. Raises DataError if the source is no longer what was read."""
    root = Path(work_dir)
    fates = columns.read(root / FATES)
    segments = [read.Segment.from_json(value) for value in task.args["segments"]]
    outputs: list[str] = []
    kept: list[list[int]] = []
    found = read.records(segments, settings, (0, 0))
    for (stem, first), records in zip(task.args["blocks"], found, strict=False):
        docs = columns.read(root / f"{stem}.docs")
        count = len(docs["offset"])
        places = {
            place: row for row, place in enumerate(zip(records.files, records.block.offsets, strict=True))
        }
        rows = [
            places.get(place) for place in zip(docs["file"].tolist(), docs["offset"].tolist(), strict=True)
        ]
        if any(row is None for row in rows):
            raise DataError(
                f"{segments[0].file.name} has changed since it was read: a document at offset "
                f"{docs['offset'][rows.index(None)]} is gone. Restore the file, or start again with another --work-dir."
            )
        fate, split = fates["fate"][first : first + count], fates["split"][first : first + count]
        kept_here = np.flatnonzero(fate == Fate.KEPT).tolist()
        kept_rows = [row for i in kept_here if (row := rows[i]) is not None]
        documents = records.documents(segments, kept_rows)
        texts, _ = read.BlockWriter(root, stem, segments, settings, {}).cleaned(documents)
        amounts = []
        for number, name in enumerate(SPLITS):
            chosen = np.flatnonzero(split[kept_here] == number).tolist()
            amounts.append(len(chosen))
            if chosen:
                path = f"emit/{Path(stem).name}-{name}.jsonl.zst"
                _write_lines(root / path, ((texts[i], documents.sources[i]) for i in chosen))
                outputs.append(path)
        kept.append(amounts)
    return Counts(extra={"outputs": outputs, "kept": kept})


def _write_lines(path: Path, documents: Iterator[tuple[str, str]]) -> None:
    encoder = msgspec.json.Encoder()
    compressor = zstandard.ZstdCompressor(level=1)
    with (
        atomic.replacing(path, durable=False) as temporary,
        temporary.open("wb") as raw,
        compressor.stream_writer(raw, closefd=False) as stream,
    ):
        for document in documents:
            stream.write(encoder.encode(document) + b"\n")


def plan_write(collected: Sequence[Task], results: Sequence[Counts], folder: str, lineage: str) -> list[Task]:
    """A task per output file. folder: of the text, relative to the work folder."""
    stems = [Path(stem).name for task in collected for stem, _ in task.args["blocks"]]
    kept = [amounts for counts in results for amounts in counts.extra["kept"]]
    tasks = []
    for number, split in enumerate(SPLITS):
        files = emit_text.plan(split, [amounts[number] for amounts in kept])
        for index, file in enumerate(files):
            stretches = [
                [f"emit/{stems[s.block]}-{split}.jsonl.zst", s.start, s.stop] for s in file.stretches
            ]
            args = {"name": file.name, "stretches": stretches, "documents": file.num_documents}
            output = os.path.join(folder, file.name)
            tasks.append(
                Task(
                    f"{split}-{index:06d}",
                    args,
                    [lineage],
                    outputs=[output],
                    hints={"folder": folder},
                    weight=file.num_documents,
                )
            )
    return tasks


def write(task: Task, settings: None, work_dir: str) -> Counts:
    """Write one output file."""
    root = Path(work_dir)
    stretches = tuple(
        emit_text.Stretch(i, start, stop) for i, (_, start, stop) in enumerate(task.args["stretches"])
    )

    def documents() -> Iterator[tuple[str, str]]:
        for path, start, stop in task.args["stretches"]:
            yield from emit_text.chosen(_read_lines(root / path), start, stop)

    written = emit_text.write_file(
        root / task.hints["folder"], emit_text.OutputFile(task.args["name"], stretches), documents()
    )
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


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    decoder = msgspec.json.Decoder(tuple[str, str])
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        held = b""
        while piece := stream.read(2**20):
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                yield decoder.decode(line)


def settings_digest(products: Mapping[str, str]) -> str:
    """Of what decides the text: the cleaning."""
    return digest(VERSION, products["docs"])


def summary(results: Sequence[Counts]) -> list[dict[str, Any]]:
    """What was written, for the record beside the text."""
    return [counts.extra["file"] for counts in results]
