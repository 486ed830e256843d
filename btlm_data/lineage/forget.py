"""Take documents out of a finished dataset: their tokens are masked, every other sample stays as it is and
where it is.

A new dataset is built beside the old one (files that do not change are links to the same bytes), complete
with dataset.json and a certificate; then the two folders change places in one step of the file system, and
the old one is deleted. A kill at any moment leaves the old dataset or the new one; the next call removes what
a killed one left.
"""

from __future__ import annotations

import getpass
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from btlm_data.errors import DataError, InputError, OutputError
from btlm_data.formats import dataset, forgotten, ledger, pages, provenance
from btlm_data.formats.dataset import DOCUMENTS, FILE_NAME, Dataset, SetList, ShardFile, StoredFile
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.forgotten import Certificate, ChangedShard, Forgotten, ForgottenDocument, SeenBy
from btlm_data.formats.guarded import reading, require_no_link
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.formats.shard_formats.writer import Compression, ShardInfo, ShardOptions, ShardWriter
from btlm_data.lineage import search
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.passages import find_passages, passage_of
from btlm_data.lineage.queries import Query
from btlm_data.lineage.runs import Run, open_run
from btlm_data.lineage.split_view import Extent, SplitView
from btlm_data.lineage.where import rows_where
from btlm_data.storage import digest, open_store
from btlm_data.storage.base import TEMPORARY_SUFFIX
from btlm_data.storage.exchange import exchange
from btlm_data.storage.lease import hold

PREPARING = "preparing.json"  # what a run leaves in a folder that it owns (inspection/opening.py)
WORK_FOLDER = ".work"
SIGNATURE = "dataset.json.sig"
_PIECE_CHUNKS = 256  # copied at once
_FIRST_STEPS = 1000


@dataclass
class Outcome:
    """What was done. documents: masked, over all sets; nothing: questions that no document answers (in
    words); done: those that an earlier certificate answers; certificate: where it is; pages: those beside the
    dataset that were about the old one, and are gone.
    """

    documents: int = 0
    shards: int = 0
    masked: int = 0
    nothing: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    still_held: list[str] = field(default_factory=list)
    seen_by: list[SeenBy] = field(default_factory=list)
    certificate: Path | None = None
    pages: list[str] = field(default_factory=list)


@dataclass
class _Plan:
    """What is forgotten of one set: documents of each split, and the questions that requested them."""

    of_set: SetView
    extents: dict[str, list[Extent]] = field(default_factory=dict)


def forget(path: Path, queries: Sequence[Query], *, reason: str = "", runs: Sequence[Path] = ()) -> Outcome:
    """Mask every document that answers a question. runs: training runs, whose steps that saw them the
    certificate names.

    Raises InputError if no document answers any, DataError if the dataset is not whole, OutputError if it
    cannot be written.
    """
    root = (path.parent if path.name == FILE_NAME else path).absolute()
    if not (root / FILE_NAME).is_file():
        dataset.read(root)  # which says what is missing
    if (root.parent / FILE_NAME).is_file() and isinstance(dataset.read(root.parent), SetList):
        raise InputError(
            f"{root} is one of the sets of {root.parent}, which have the same documents. Name that folder."
        )
    parent = open_store(root.parent)
    if root.is_symlink():
        raise InputError(f"{root} is a link. Name the folder that it leads to: {root.resolve()}.")
    lock = f".{root.name}.forget.lock"
    with hold(parent, lock, f"The dataset {root} is", option="folder"):
        staging = root.parent / f".{root.name}.forget{TEMPORARY_SUFFIX}"
        if staging.is_symlink() or staging.is_file():
            raise OutputError(f"{staging} is in the way: it is not a folder that btlm-data made. Remove it.")
        if staging.exists():  # a killed call left it: a half-built new dataset, or the old one
            shutil.rmtree(staging)
        if (root / PREPARING).exists():
            raise DataError(
                f"{root} is being prepared, or its run was stopped. Finish it first: run the same command again."
            )
        open_store(root).sweep()  # of a call that was killed while it wrote the pages
        for left in root.parent.glob(
            f".{glob.escape(lock)}.*{TEMPORARY_SUFFIX}"
        ):  # or while it took the lease
            left.unlink(missing_ok=True)
        return _forget(root, staging, queries, reason, runs)


def _forget(
    root: Path, staging: Path, queries: Sequence[Query], reason: str, runs: Sequence[Path]
) -> Outcome:
    sets = open_dataset(root)
    outcome = Outcome()
    plans, answered = _find(sets, queries)
    asked_before = {
        asked
        for of_set in sets
        for certificate in forgotten.read(of_set.root).certificates
        for asked in certificate.asked
    }
    for number, query in enumerate(queries):
        if number not in answered:
            known = forgotten.question(query.kind, query.value) in asked_before
            (outcome.done if known else outcome.nothing).append(f"{query.kind} {query.value}")
    if not any(plan.extents for plan in plans):
        if outcome.done:
            return outcome
        raise InputError(
            f"No document of {root} answers {'the question' if len(queries) == 1 else 'any of the questions'}: "
            f"{', '.join(outcome.nothing[:3])}. `btlm-data trace` says whether it was dropped, or never there."
        )
    _require_no_links(root, sets)
    outcome.still_held = _still_held(root, sets)
    outcome.pages = [name for name in pages.PAGES if _is_ours(root / name)]
    opened = [(str(run), open_run(run)) for run in runs]
    _copy(root, staging)
    for plan in plans:
        _write_set(plan, staging / plan.of_set.name, queries, reason, opened, outcome)
    _write_list(staging)
    _sync(staging)
    exchange(root, staging)
    shutil.rmtree(staging)
    outcome.certificate = (
        root / forgotten.FILE_NAME if not sets[0].name else root / sets[0].name / forgotten.FILE_NAME
    )
    return outcome


# What is forgotten ------------------------------------------------------------------------------------------


def _find(sets: Sequence[SetView], queries: Sequence[Query]) -> tuple[list[_Plan], set[int]]:
    """The documents that answer, by set, and the numbers of the questions that have any."""
    wanted, plans, answered = search.Wanted.of(queries), [], set()
    passages, expressions = (
        [number for number, query in enumerate(queries) if query.kind == kind] for kind in ("text", "where")
    )
    for of_set in sets:
        plan = _Plan(of_set)
        extents: dict[str, dict[int, Extent]] = {}
        for name, view in of_set.splits.items():
            for document, numbers in search.in_table(view.table, wanted):
                if not document.get("forgotten"):
                    extent = Extent(document["row"], document["stream_offset"], document["tokens"])
                    extents.setdefault(name, {})[extent.row] = extent
                    answered.update(numbers)
            for number in expressions:
                for document in view.table.described(rows_where(view.table, queries[number].value)):
                    if not document.get("forgotten"):
                        extent = Extent(document["row"], document["stream_offset"], document["tokens"])
                        extents.setdefault(name, {})[extent.row] = extent
                        answered.add(number)
        if passages:
            texts = [passage_of(queries[number].value, of_set) for number in passages]
            for name, hits in find_passages(of_set, list(of_set.splits), texts).items():
                for hit in hits:
                    extents.setdefault(name, {})[hit.document.row] = hit.document
                    answered.add(passages[hit.query])
        plan.extents = {name: [chosen[row] for row in sorted(chosen)] for name, chosen in extents.items()}
        plans.append(plan)
    return plans, answered


def _still_held(root: Path, sets: Sequence[SetView]) -> list[str]:
    """Locations that hold the documents' text and are not this command's to change."""
    locations = []
    made = provenance.read(sets[0].root)
    run = made.configuration.get("run", {}) if made is not None else {}
    source = made.source.get("name") if made is not None else None
    locations.append(f"the source that the dataset was prepared from{f' ({source})' if source else ''}")
    if isinstance(run, dict):
        locations += [
            f"{words} {run[key]}"
            for key, words in (("emit_text", "the emitted text"), ("work_dir", "the work folder"))
            if run.get(key)
        ]
    if not (root / WORK_FOLDER).is_dir():
        locations.append("the work folder, where --work-dir named one")
    locations += [
        f"{name}, which is not as this program wrote it"
        for name in pages.PAGES
        if (root / name).exists() and not _is_ours(root / name)
    ]
    return [*locations, "the models that were trained on it, and their checkpoints"]


# The new dataset --------------------------------------------------------------------------------------------


def _require_no_links(root: Path, sets: Sequence[SetView]) -> None:
    """Raise DataError if a part of the dataset lies elsewhere: its texts would stay there."""
    for of_set in sets:
        stored = (file.name for file in of_set.manifest.stored())
        for name in (FILE_NAME, provenance.FILE_NAME, forgotten.FILE_NAME, *stored):
            require_no_link(root, f"{of_set.name}/{name}" if of_set.name else name)


def _copy(root: Path, staging: Path) -> None:
    """The dataset's folder once more: every file a link to the same bytes, but without the work folder,
    signature and pages.
    """
    for folder, folders, names in os.walk(root):
        relative = Path(folder).relative_to(root)
        if relative == Path():
            folders[:] = [name for name in folders if name != WORK_FOLDER]
        (staging / relative).mkdir(parents=True)
        shutil.copystat(folder, staging / relative)
        linked = [
            name for name in folders if (Path(folder) / name).is_symlink()
        ]  # of the user: see _require_no_links
        for name in [*names, *linked]:
            is_page = relative == Path() and name in pages.PAGES and _is_ours(Path(folder) / name)
            if name != SIGNATURE and not is_page:
                _link(Path(folder) / name, staging / relative / name)


def _is_ours(page: Path) -> bool:
    """Whether a page beside the dataset is as this program wrote it: it is about the old dataset, and may
    show its texts.
    """
    seal = (
        pages.seal_of(page.read_bytes())
        if page.is_file() and page.stat().st_size <= pages.MAX_BYTES
        else None
    )
    return seal is not None and seal.holds


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _write_set(
    plan: _Plan,
    folder: Path,
    queries: Sequence[Query],
    reason: str,
    runs: Sequence[tuple[str, Run]],
    outcome: Outcome,
) -> None:
    """The changed files of one set, and its certificate. folder: the set's, in the new dataset."""
    of_set = plan.of_set
    changed: list[ChangedShard] = []
    documents: list[ForgottenDocument] = []
    splits, rows = dict(of_set.manifest.splits), list(of_set.manifest.ledger)
    seen = [SeenBy(name, *_seen(run, plan)) for name, run in runs]
    for name, view in of_set.splits.items():
        masks, extents = Masks(view), plan.extents.get(name, [])
        if not extents:
            rows = _with_masked(rows, name, masks.num_labels)
            continue
        before = masks.num_labels
        hashes = {d["row"]: d.get("hash") for d in view.table.described([extent.row for extent in extents])}
        touched: set[int] = set()
        for extent in extents:
            spans = view.spans(extent)
            masks.add(spans)
            touched |= {view.shard_of(span.row)[0] for span in spans}
            masked = 0 if view.is_corpus else sum(span.labels[1] - span.labels[0] for span in spans)
            value = hashes[extent.row]
            documents.append(
                ForgottenDocument(name, extent.row, value.hex() if value else None, extent.tokens, masked)
            )
        files = list(view.entry.files)
        for number in sorted(touched):
            info = _write_shard(view, number, masks, folder / name / files[number].name)
            changed.append(ChangedShard(name, files[number].name, files[number].sha256, info.sha256))
            files[number] = ShardFile(
                name=files[number].name,
                bytes=info.num_bytes,
                sha256=info.sha256,
                n_examples=files[number].n_examples,
                tokens=files[number].tokens,
            )
        table = _write_table(view.table, {extent.row for extent in extents}, folder / name / DOCUMENTS)
        splits[name] = msgspec.structs.replace(splits[name], files=files, documents_file=table)
        rows = _with_masked(rows, name, masks.num_labels)
        outcome.masked += masks.num_labels - before
    chain = forgotten.read(of_set.root)
    certificate = Certificate(
        previous=chain.last,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        who=getpass.getuser(),
        reason=reason,
        how="mask",
        fingerprint=of_set.manifest.fingerprint,
        asked=[forgotten.question(query.kind, query.value) for query in queries],
        documents=documents,
        shards=changed,
        seen_by=seen,
        still_held=outcome.still_held,
    )
    chain = Forgotten([*chain.certificates, certificate])
    data = forgotten.encode(chain)
    _replace(folder / forgotten.FILE_NAME, data)
    file = StoredFile(forgotten.FILE_NAME, len(data), hashlib.sha256(data).hexdigest())
    outputs = [*(o for o in of_set.manifest.outputs if o.name != forgotten.FILE_NAME), file]
    others = of_set.manifest.other_inputs | {"forgotten": chain.questions}
    value = msgspec.structs.replace(
        of_set.manifest,
        splits=splits,
        ledger=rows,
        outputs=sorted(outputs, key=lambda output: output.name),
        other_inputs=others,
    )
    _publish(folder, msgspec.structs.replace(value, fingerprint=value.expected_fingerprint()))
    outcome.documents += len(documents)
    outcome.shards += len(changed)
    outcome.seen_by += seen


def _seen(run: Run, plan: _Plan) -> tuple[int, list[int], int]:
    """(steps of a run that have seen the documents, the first of them, steps that will)."""
    asked = []
    for name, extents in plan.extents.items():
        view = plan.of_set.splits[name]
        for extent in extents:
            for span in view.spans(extent):
                number, row = view.shard_of(span.row)
                rows = span.positions if view.is_corpus else (row, row + 1)
                asked.append(
                    (os.fspath(view.path(number).absolute()), view.entry.files[number].sha256, *rows)
                )
    done = run.steps_done
    steps = {sighting.step for sighting in run.seen(asked)}
    seen = sorted(step for step in steps if step < done)
    return len(seen), seen[:_FIRST_STEPS], len(steps) - len(seen)


def _with_masked(rows: list[ledger.Row], split: str, masked: int) -> list[ledger.Row]:
    """The ledger with the row of the stage `forget`: label positions without loss."""
    received = ledger.total(rows, "shard", "out", split)
    row = ledger.Row(
        stage="forget",
        split=split,
        source=ledger.ALL_SOURCES,
        received=ledger.Amounts(*received),
        added={},
        dropped={"masked": ledger.Amounts(tokens=masked)} if masked else {},
        out=ledger.Amounts(tokens=received.tokens - masked),
    )
    return [entry for entry in rows if (entry.stage, entry.split) != ("forget", split)] + [row]


def _write_shard(view: SplitView, number: int, masks: Masks, path: Path) -> ShardInfo:
    """A shard once more, with what is to be masked; chunks without any of it are copied as they are stored."""
    path.unlink()  # in the new dataset: a link to the old bytes
    first = view.first_row(number)
    shards = view.manifest.configuration.get("shards")
    given = shards if isinstance(shards, dict) else {}
    with ShardReader(view.path(number)) as shard, path.open("w+b") as file:
        compression: Compression = "gzip" if shard.layout.compression == "gzip" else "none"
        options = ShardOptions(
            compression=compression,
            level=int(given.get("level", 1)),
            hdf5_shuffle=shard.layout.hdf5_shuffle,
            dtype="uint16" if shard.layout.dtype == "uint16" else "int32",
        )
        size = shard.chunk_rows or max(1, (1 << 22) // max(1, int(np.prod(shard.shape[1:]))))
        chunks = (size, *shard.shape[1:])
        with ShardWriter(file, shard.shape, chunks, options) as writer:
            for start, stop, is_touched in _runs(masks, first, shard.shape[0], size):
                if not is_touched and shard.chunk_rows is not None:
                    for low in range(start // size, -(-stop // size), _PIECE_CHUNKS):
                        high = min(low + _PIECE_CHUNKS, -(-stop // size))
                        writer.add_stored(*shard.stored_chunks(low, high))
                    continue
                for low in range(start, stop, size):
                    rows = np.array(shard.read(low, min(low + size, stop)))
                    masks.apply(rows, first + low)
                    if compression == "gzip" and len(rows) < size:
                        rows = np.concatenate(
                            [rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)]
                        )
                    writer.add(rows.reshape(1, -1) if compression == "gzip" else rows)
        os.fsync(file.fileno())
    return writer.info(view.entry.files[number].tokens)


def _runs(masks: Masks, first: int, count: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, touched) of runs of chunks of a shard of `count` rows, the first of which is row `first`
    of the split.
    """
    touched = np.zeros(-(-count // size), bool)
    for row, spans in masks.by_row.items():
        for span in spans:
            length = span.positions[1] - span.positions[0] if masks.view.is_corpus else 1
            low, high = max(row - first, 0), min(row - first + length, count)
            if low < high:
                touched[low // size : -(-high // size)] = True
    edges = [0, *(np.flatnonzero(np.diff(touched)) + 1).tolist(), len(touched)]
    for low, high in pairwise(edges):
        if low < high:
            yield low * size, min(high * size, count), bool(touched[low])


def _write_table(table: DocumentTable, rows: set[int], path: Path) -> StoredFile:
    """documents.parquet with `forgotten`, and without the ids and fields of these rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.unlink()
    with reading(table.path), path.open("w+b") as file:
        writer = None
        for group in range(table.num_groups):
            first, last = table.group_rows(group)
            part = table.arrow(group)
            gone = np.fromiter((row in rows for row in range(first, last)), bool, last - first)
            if "forgotten" in part.column_names:
                gone |= part.column("forgotten").to_numpy()
                part = part.drop_columns(["forgotten"])
            for name in part.column_names:
                if name == "id" or name.startswith("fields."):
                    values = part.column(name).to_pylist()
                    kept = [None if is_gone else value for value, is_gone in zip(values, gone, strict=True)]
                    part = part.set_column(part.column_names.index(name), name, pa.array(kept, pa.string()))
            part = part.append_column("forgotten", pa.array(gone))
            writer = writer or pq.ParquetWriter(file, part.schema, compression="zstd")
            writer.write_table(part)
        assert writer is not None
        writer.close()
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.seek(0)
        return StoredFile(DOCUMENTS, size, digest.sha256_stream(file))


def _publish(folder: Path, value: Dataset | SetList) -> None:
    """dataset.json, and the provenance that belongs to it."""
    _replace(folder / FILE_NAME, dataset.encode(value))
    written = dataset.read(folder)
    made = provenance.read(folder)
    if made is not None:
        renewed = msgspec.structs.replace(made, dataset=written.checksum)
        _replace(folder / provenance.FILE_NAME, provenance.encode(renewed))


def _write_list(staging: Path) -> None:
    """The upper dataset.json of several sets, with their new checksums."""
    value = dataset.read(staging)
    if not isinstance(value, SetList):
        return
    references, fingerprints = [], []
    for reference in value.sets:
        of_set = dataset.read(staging / reference.name)
        references.append(dataset.SetReference(reference.name, of_set.checksum))
        fingerprints.append(of_set.fingerprint)
    _publish(staging, msgspec.structs.replace(value, sets=references, fingerprint=fingerprints[0]))


def _replace(path: Path, data: bytes) -> None:
    """A file of the new dataset, in place of the link to the old one."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Every folder's entries on disk."""
    for name, _, _ in os.walk(folder):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
