"""The one pass over the text: read, clean, sketch for deduplication, tokenize; a file is fetched and parsed
once.

reads   source files, in parts: a file, a byte range of a plain file, a run of small files
writes  per block of about 16 MB: .docs, .sketch, .tokens (blocks.py) and, where any, .rejects
unit    a part; blocks inside it are kept as they are finished, so a part resumes inside a file
balance records = rejected + dropped + documents; bytes likewise, with the change by normalisation apart

Each product has a digest of its own (inputs and the settings it depends on). A part that is done again, for
example because the tokenizer changed, makes only the products whose digest changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from btlm_data.cleaning.evaluation_ngrams import EvalNgrams
from btlm_data.cleaning.filters import Filters
from btlm_data.cleaning.normalize import normalizer_version
from btlm_data.cleaning.signals import Signals
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.formats.input_digest import stretch_digests
from btlm_data.recipe.models import Settings
from btlm_data.records.base import BATCH_BYTES, ReadOptions, Stretch
from btlm_data.records.batch import RecordBatch, Reject
from btlm_data.records.reader import read_batches
from btlm_data.sources.local import unchanged
from btlm_data.stages import decontaminate
from btlm_data.stages.block_writer import BlockWriter, Part, ReadSettings, Records, find_product
from btlm_data.stages.file_ranges import FileRange
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles
from btlm_data.tokenizer import TokenizerSpec

VERSION = 4
NAME = "read"


_BLOCK_COPIES = (
    12  # what reading holds, in blocks of BATCH_BYTES: the file's bytes, records, texts, hashes, tokens
)


def document_bytes(settings: Settings) -> int:
    """Bytes of a document's row in .docs (blocks.py)."""
    return 34 + 32 * needs_sha256(settings)


def sketch_bytes(settings: Settings) -> int:
    """Bytes of a document's row in .sketch (blocks.py)."""
    dedupe = settings.dedupe
    if dedupe.method != "minhash":
        return 0 if dedupe.method == "none" else 16
    return 16 + 8 * dedupe.bands + 4 * dedupe.num_perm * keeps_signatures(settings)


def keeps_signatures(settings: Settings) -> bool:
    """Whether sketches have whole signatures: for comparing pairs, or for an index."""
    dedupe = settings.dedupe
    return dedupe.method == "minhash" and (
        dedupe.verify == "signature" or (dedupe.verify == "none" and dedupe.index is not None)
    )


def needs_sha256(settings: Settings) -> bool:
    """Whether train documents that equal a holdout document are found by their SHA-256."""
    return settings.dedupe.method == "none" or not settings.dedupe.holdout


def estimate(workload: Workload) -> list[Estimate]:
    """What reading, cleaning, sketching and tokenizing takes."""
    volume, rates, settings = workload.volume, workload.rates, workload.settings
    has_evaluation = workload.evaluation_bytes > 0
    per_document = document_bytes(settings) + sketch_bytes(settings) + 12 + 8 * has_evaluation
    cpu_byte = rates.clean_byte + rates.contamination_byte * has_evaluation
    return [
        Estimate(
            NAME,
            tasks=volume.parts,
            documents=volume.documents,
            source_bytes=volume.stored_bytes,
            read_bytes=decontaminate.TABLE_BYTES * workload.evaluation_bytes * volume.parts,
            work_bytes=volume.tokens * workload.token_bytes + volume.documents * per_document,
            memory_bytes=rates.process_bytes + _BLOCK_COPIES * BATCH_BYTES,
            cpu_seconds=volume.text_bytes * cpu_byte + volume.parts * rates.task,
        )
    ]


def product_digests(
    settings: Settings,
    filters: Filters,
    options: ReadOptions,
    tokenizer: TokenizerSpec,
    ngrams: Artifact | None,
    signals: Signals,
    *,
    keep_signatures: bool,
    need_sha256: bool,
) -> dict[str, str]:
    """What each product depends on, besides its part of the source."""
    d, source = settings.dedupe, settings.source
    docs = digest(
        VERSION,
        settings.clean,
        normalizer_version(settings.clean.normalize),
        filters.fingerprint if filters.entries else None,
        msgspec.to_builtins(options),
        source.exclude_sources,
        need_sha256,
    )
    products = {"docs": docs, "tokens": digest(docs, tokenizer.fingerprint)}
    if d.method != "none":
        products["sketch"] = digest(
            docs, d.method, d.scheme, d.bands, d.rows, d.num_perm, keep_signatures, d.shingle, d.shingle_size
        )
    if ngrams is not None:
        products["contamination"] = digest(docs, ngrams.checksum)
    if source.kept_columns:
        products["fields"] = digest(docs, source.kept_columns)
    if signals.entries:
        products["signals"] = digest(docs, signals.fingerprint)
    return products


def plan(groups: Sequence[Sequence[FileRange]], settings: ReadSettings, ngrams: Artifact | None) -> Step:
    """A task per group of ranges. ngrams: the table of evaluation n-grams."""
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"products": dict(settings.products)},
            inputs=[r.identity for r in ranges],
            reads={"ngrams": [ngrams] if ngrams is not None else []},
            resumes=f"{NAME}/{number:06d}-",
            title=_title(ranges),
            weight=max(1, sum(r.num_bytes for r in ranges)),
            hints={"ranges": ranges},  # their identities are in `inputs`
        )
        for number, ranges in enumerate(groups)
    ]
    return Step(NAME, VERSION, work, tasks, settings, "", skip=skip)


def _title(ranges: Sequence[FileRange]) -> str:
    """The names of the files, or the stretch of the one."""
    first = ranges[0]
    if len(ranges) > 1:
        return f"{first.file.name} to {ranges[-1].file.name} ({len(ranges)} files)"
    if first.start or first.stop is not None:
        return f"{first.file.name} from byte {first.start:,}" + (
            f" to {first.stop:,}" if first.stop is not None else ""
        )
    return first.file.name


def ranges_of(task: Task) -> Sequence[FileRange]:
    """What a task of `plan` reads."""
    ranges: Sequence[FileRange] = task.hints["ranges"]
    return ranges


def work(task: Task, settings: ReadSettings, files: TaskFiles) -> Counts:
    """Read one part. Raises InputError under --strict, DataError if a verified tokenization differs."""
    ranges = ranges_of(task)
    identity = digest(list(task.inputs))
    wanted = {product: digest(identity, setting) for product, setting in task.args["products"].items()}
    part = Part(ranges, settings, wanted, _ngrams(task, files))
    stages = {"acquire": Counts(), "clean": Counts()}
    blocks: list[list[Any]] = []

    def collect(meta: dict[str, Any], stem: str) -> None:
        for name, counts in meta["stages"].items():
            stages[name].merge(Counts.from_json(counts))
        blocks.append([stem, meta["num_documents"]])

    # A part that is one large stretch continues behind the blocks an earlier attempt finished; small files
    # are read again.
    resume, is_final = (0, 0), False
    if len(ranges) == 1:
        while (
            not is_final
            and (meta := _reuse_block(files, stem := _stem(task, len(blocks)), wanted)) is not None
        ):
            collect(meta, stem)
            resume, is_final = (meta["end"], meta["num_lines"]), meta["final"]
    num_lines = resume[1]
    digests: list[list[str]] = []
    if is_final:
        digests = [_digests(settings, ranges[0])]
    else:
        for block in records(ranges, settings, resume, digests=digests):
            stem = _stem(task, len(blocks))
            collect(BlockWriter(files, stem, part).write(block), stem)
            num_lines = block.block.num_lines
    return Counts(
        extra={
            "stages": {name: counts.to_json() for name, counts in stages.items()},
            "blocks": blocks,
            "num_lines": num_lines,
            "digests": digests,
            "documents": sum(count for _, count in blocks),
        }
    )


def skip(task: Task, settings: ReadSettings, files: TaskFiles) -> Counts:
    """Leave a part out, because each process that read it has died: its files, or its part of a file, become
    rejects.
    """
    ranges = ranges_of(task)
    identity = digest(list(task.inputs), "skipped")
    wanted = {product: digest(identity, setting) for product, setting in task.args["products"].items()}
    records = Records()
    for index, file_range in enumerate(ranges):
        detail = "left out, because every process that read it died (--skip-failed)"
        reject = Reject(0, file_range.start, "unreadable_file", detail, file_range.num_bytes)
        records.take(RecordBatch(rejects=[reject], final=True), index)
    part = Part(ranges, settings, wanted, _ngrams(task, files))
    meta = BlockWriter(files, stem := _stem(task, 0), part).write(records)
    return Counts(
        extra={
            "stages": meta["stages"],
            "blocks": [[stem, 0]],
            "num_lines": _num_lines(ranges[0], settings) if len(ranges) == 1 else 0,
            "digests": [[] for _ in ranges],
            "documents": 0,
        }
    )


def _ngrams(task: Task, files: TaskFiles) -> EvalNgrams | None:
    """The n-grams of evaluation sets, where the task names some."""
    named = task.reads["ngrams"]
    return decontaminate.open_ngrams(files.columns(named[0])) if named else None


def _num_lines(file_range: FileRange, settings: ReadSettings) -> int:
    """Lines that begin in a stretch of a plain file, so that the lines after it keep their numbers; 0 for a
    whole file.
    """
    if file_range.stop is None:  # nothing of the file is after it
        return 0
    count, position = int(file_range.start == 0), max(0, file_range.start - 1)
    with settings.fetcher.local_copy(file_range.file) as path, path.open("rb") as file:
        file.seek(position)
        while position < file_range.stop - 1 and (
            piece := file.read(min(1 << 20, file_range.stop - 1 - position))
        ):
            count += piece.count(b"\n")
            position += len(piece)
    return count


def _stem(task: Task, number: int) -> str:
    return f"{task.resumes}{number:05d}"


def _reuse_block(files: TaskFiles, stem: str, wanted: dict[str, str]) -> dict[str, Any] | None:
    """The .docs meta of a block of which an earlier attempt finished every product, else None."""
    artifacts = [find_product(files.work, stem, product, wanted) for product in wanted]
    present = [artifact for artifact in artifacts if artifact is not None]
    if len(present) < len(wanted):
        return None
    docs = next(artifact for artifact in present if artifact.name.endswith(".docs"))
    meta = dict(Columns(files.work, docs).meta)
    if meta["rejects"] is not None:
        rejects_file = Artifact(*meta["rejects"])
        if files.work.size(rejects_file.name) != rejects_file.size:
            return None
        present.append(rejects_file)
    for artifact in present:
        files.adopt(artifact)
    return meta


def records(
    ranges: Sequence[FileRange],
    settings: ReadSettings,
    resume: tuple[int, int],
    block_bytes: int = BATCH_BYTES,
    digests: list[list[str]] | None = None,
    *,
    all_records: bool = False,
) -> Iterator[Records]:
    """Blocks of about block_bytes; those of small files are put together. digests: filled for each range
    (input_digest.py).

    all_records: whole records are wanted beside the texts, regardless of the settings.

    Raises InputError if a file is no longer what was listed.
    """
    block, num_held = Records(), 0
    with_records = (
        settings.filters.needs_metadata
        or settings.signals.needs_metadata
        or bool(settings.settings.source.kept_columns)
        or all_records
    )
    for index, file_range in enumerate(ranges):
        with settings.fetcher.local_copy(file_range.file) as path:
            stretch = Stretch(file_range.start, file_range.stop, *resume)
            for batch in read_batches(
                path, file_range.file, settings.options, stretch, block_bytes, with_records
            ):
                if file_range.max_line is not None:
                    batch.keep_lines_before(file_range.max_line)
                block.take(batch, index)
                num_held += sum(map(len, batch.texts))
                if len(ranges) == 1 or num_held >= block_bytes:
                    yield block
                    block, num_held = Records(), 0
                if batch.final:
                    break
            if digests is not None:
                unchanged(file_range.file)  # before it is opened once more
                digests.append(_digests_at(path, file_range))
    if block.block.num_records:
        yield block


def _digests(settings: ReadSettings, file_range: FileRange) -> list[str]:
    with settings.fetcher.local_copy(file_range.file) as path:
        return _digests_at(path, file_range)


def _digests_at(path: Path, file_range: FileRange) -> list[str]:
    """Digests of the stretches of a range; none where --limit leaves a part of the file unread."""
    if file_range.max_line is not None:
        return []
    return stretch_digests(path, file_range.start, file_range.stop)
