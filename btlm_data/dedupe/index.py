"""An index keeps what one run knows of its documents, so that later runs drop what matches it.

    DIR/RUN/index.json              {"format_version", "scheme", "bands", "rows", "num_perm", "num_documents",
                                    "earlier": [run, ...], "files": [[name, size, checksum, "work"], ...]}
    DIR/RUN/exact-PPPPPP.cols       `keys` (m,) uint64 ascending, the high half of exact hashes, and `low`
                                    (m,) uint64
    DIR/RUN/bands-PPPPPP.cols       `keys` (m,) uint64 ascending, band keys, and `ordinals` (m,) uint32
                                    (int64 of a run of more than 2^32 - 1 documents, as everywhere),
                                    ascending among equal keys
    DIR/RUN/signatures-BBBBBB.cols  `signatures` (n, num_perm) uint32 of documents first_ordinal,
                                    first_ordinal + 1, ...; meta: {"first_ordinal"}
    DIR/RUN/texts-BBBBBB.cols       of texts that stay, where texts are compared: `ordinals` (m,) uint32
                                    ascending (of the first document of each), `frames` uint8 and `bounds` (m
                                    + 1,) int64: normalised texts, each a zstd frame; meta: {"first_ordinal",
                                    "last_ordinal"}

RUN is the run's fingerprint. PPPPPP numbers contiguous ranges of keys, ascending; meta: {"log_partitions"}:
file p holds the keys whose highest log_partitions bits are p. `earlier` lists the runs that were in the index
when this one matched against it: a rerun matches against the same ones, whatever was added since. `files` are
named with their checksums: a missing or damaged one is an error, never a smaller index. A folder with
building.json and no index.json is unfinished. DIR is a folder or a URL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from btlm_data.dedupe import index_files
from btlm_data.dedupe.ranges import MOST_NARROW
from btlm_data.errors import ConfigError, DataError
from btlm_data.formats import columns
from btlm_data.formats.columns import Columns
from btlm_data.storage import Store, check_name, open_store
from btlm_data.task import Artifact

INDEX_VERSION = 2
Needs = Literal["texts", "signatures", None]
_RECORD = "index.json"
_BUILDING = "building.json"
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]


class SignatureReader:
    """Signatures by ordinal, over files that each hold those of consecutive documents; opened when needed."""

    def __init__(self, first_ordinals: Sequence[int], open_file: Callable[[int], Columns]) -> None:
        self._first = np.array(first_ordinals, np.int64)
        self._open = lru_cache(maxsize=256)(open_file)

    def read(self, ordinals: UInt32Array) -> UInt32Array:
        """Signatures of any documents, in the order requested: (n,) -> (n, P)."""
        numbers = np.searchsorted(self._first, ordinals, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        out: UInt32Array | None = None
        for begin, end in zip(edges, [*edges[1:], len(order)], strict=True):
            rows = order[begin:end]
            number = int(numbers[rows[0]])
            offsets = ordinals[rows].astype(np.int64) - self._first[number]
            signatures = self._open(number).scattered("signatures", offsets, np.ones(len(offsets), np.int64))
            if out is None:
                out = np.empty((len(ordinals), signatures.shape[1]), np.uint32)
            out[rows] = signatures[offsets]
        return out if out is not None else np.empty((0, 0), np.uint32)


def pack(texts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Texts as an index keeps them: frames, and n + 1 bounds. Returns frames (bytes,) uint8 and bounds (n +
    1,) int64.
    """
    compressor = zstandard.ZstdCompressor(level=1)
    frames = [compressor.compress(text) for text in texts]
    bounds = np.cumsum([0, *map(len, frames)], dtype=np.int64)
    return np.frombuffer(b"".join(frames), np.uint8), bounds


def unpack(frame: bytes, name: str) -> bytes:
    """Inverse of pack, for one text. Raises DataError, naming the file."""
    try:
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise DataError(
            f"{name} holds a text that cannot be decompressed ({error}). Restore the file."
        ) from error


class IndexKind(NamedTuple):
    """What must agree between a run and an index for their keys to mean the same."""

    scheme: str
    bands: int
    rows: int
    num_perm: int

    def __str__(self) -> str:
        return f"scheme {self.scheme}, {self.bands} bands x {self.rows} rows, {self.num_perm} permutations"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """index.json of one run."""

    format_version: int
    scheme: str
    bands: int
    rows: int
    num_perm: int
    num_documents: int
    earlier: tuple[str, ...]
    files: tuple[tuple[str, int, str, str], ...]

    @property
    def kind(self) -> IndexKind:
        return IndexKind(self.scheme, self.bands, self.rows, self.num_perm)


class IndexReader(msgspec.Struct, frozen=True):
    """The runs of an index that a run matches against, and their files by name and checksum. Picklable."""

    location: str
    runs: tuple[tuple[str, tuple[Artifact, ...]], ...]

    @property
    def lineage(self) -> list[list[str]]:
        """What the outcome depends on: every file's checksum."""
        return [[run, *(file.checksum for file in files)] for run, files in self.runs]

    def ranges(
        self, kind: str, partition: int, log_partitions: int
    ) -> Iterator[tuple[str, dict[str, npt.NDArray[Any]]]]:
        """(run, arrays) whose keys begin with `partition` as their highest log_partitions bits. kind: "exact"
        or "bands".

        Raises DataError if a file is missing or damaged. Arrays are (n, ...) in the dtypes of the file.
        """
        store = open_store(self.location)
        for run, files in self.runs:
            for file in files:
                ending = file.name.rpartition("/")[2]
                if not ending.startswith(f"{kind}-"):
                    continue
                opened = _IndexFile(store, file)
                log, number = (
                    int(opened.meta["log_partitions"]),
                    int(ending.removesuffix(".cols").rpartition("-")[2]),
                )
                shared = min(log, log_partitions)
                if number >> (log - shared) != partition >> (log_partitions - shared):
                    continue
                keys = opened["keys"]
                low = int(
                    np.searchsorted(keys, np.uint64((partition << (64 - log_partitions)) & (2**64 - 1)))
                )
                last = ((partition + 1) << (64 - log_partitions)) - 1
                high = int(np.searchsorted(keys, np.uint64(last), side="right"))
                if high > low:
                    yield run, {name: opened.rows(name, low, high) for name in opened.names}

    def texts(self, run_number: int, ordinals: npt.NDArray[np.int64]) -> list[bytes]:
        """Normalised texts of an earlier run's documents, in the order requested. Raises DataError where one
        is missing. ordinals: (n,) int64.
        """
        store = open_store(self.location)
        run, files = self.runs[run_number]
        texts: dict[int, bytes] = {}
        for file in files:
            if not file.name.rpartition("/")[2].startswith("texts-"):
                continue
            opened = _IndexFile(store, file)
            in_file = ordinals[
                (ordinals >= opened.meta["first_ordinal"]) & (ordinals < opened.meta["last_ordinal"])
            ]
            if not len(in_file):
                continue
            all_ordinals, bounds = opened["ordinals"], opened["bounds"]
            for ordinal in np.unique(in_file).tolist():
                row = int(np.searchsorted(all_ordinals, ordinal))
                if row < len(all_ordinals) and int(all_ordinals[row]) == ordinal:
                    frame = opened.rows("frames", int(bounds[row]), int(bounds[row + 1]))
                    texts[ordinal] = unpack(frame.tobytes(), f"{store.shown}/{file.name}")
        if missing := [ordinal for ordinal in ordinals.tolist() if ordinal not in texts]:
            raise DataError(
                f"The index {store.shown} is damaged: the run {run} names document {missing[0]:,} and has not kept its "
                f"text. Remove the folder {run} to forget that run."
            )
        return [texts[ordinal] for ordinal in ordinals.tolist()]

    def signatures(self, run: str) -> SignatureReader:
        """Signatures of an earlier run by its ordinals."""
        store = open_store(self.location)
        files = [
            file for file in dict(self.runs)[run] if file.name.rpartition("/")[2].startswith("signatures-")
        ]
        first = [int(_IndexFile(store, file).meta["first_ordinal"]) for file in files]
        return SignatureReader(first, lambda number: _IndexFile(store, files[number]))


class Index:
    """An index folder, seen from one run."""

    def __init__(self, location: str, run: str, kind: IndexKind, needs: Needs) -> None:
        """needs: what must have been kept of every document to compare it.

        Raises ConfigError if an earlier run has other bands, rows or permutations, or has not kept what is
        needed, DataError if it cannot be read.
        """
        self.store, self.run, self.kind = open_store(location), run, kind
        self._there = {entry.name: entry.size for entry in self.store.list()}
        present = sorted({name.partition("/")[0] for name in self._there if "/" in name})
        present = [name for name in present if self._is_finished(name)]
        self.is_added = run in present
        self.earlier = list(self._record(run).earlier) if self.is_added else present
        runs = []
        for name in self.earlier:
            record = self._record(name)
            if record.kind != kind:
                raise ConfigError(
                    f"The index {self.store.shown} holds a run made with {record.kind}, this run has {kind}. "
                    "Their keys cannot be compared. Use the same settings, or choose another --dedupe-index."
                )
            if (
                needs is not None
                and record.bands
                and not any(file[0].startswith(f"{needs}-") for file in record.files)
            ):
                raise ConfigError(
                    f"The index {self.store.shown} holds the run {name}, which kept no {needs} of its documents, so "
                    f"dedupe.verify={'text' if needs == 'texts' else 'signature'} cannot compare with them. Choose another "
                    f"--dedupe-index, remove the folder {name} to forget that run, or prepare with the dedupe.verify "
                    "that it was made with."
                )
            runs.append((name, tuple(self._artifact(name, file) for file in record.files)))
        self.reader = IndexReader(self.store.url, tuple(runs))

    def add(
        self,
        keys: Sequence[Artifact],
        sketches: Sequence[tuple[int, Artifact]],
        num_documents: int,
        work: Store,
        texts: Sequence[tuple[int, Artifact]] = (),
        stays: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Add this run from its sorted key files and its sketches (first ordinal, file); nothing if it is
        there already.

        keys: named "...-KIND-PPPPPP.cols". texts: files as they are kept, where texts are compared, with the
        ordinal from which theirs are counted. stays: (N,) whether a document is one to compare with; None:
        all are. Raises OutputError if the index cannot be written.
        """
        if self.is_added:
            return
        self.store.write(f"{self.run}/{_BUILDING}", b"{}\n")
        open_store(f"{self.store.url}/{self.run}").sweep()  # of a run that was killed while it added itself
        files: list[Artifact] = []
        for kind, per_document in (("exact", 1), ("bands", self.kind.bands)):
            of_kind = [file for file in keys if file.name.rpartition("/")[2].startswith(f"{kind}-")]
            if of_kind:
                log = index_files.log_partitions(num_documents * per_document)
                parts = (_keys_to_keep(work, file, kind, stays) for file in of_kind)
                for number, arrays in enumerate(index_files.cut_keys(parts, log)):
                    files.append(self._write(f"{kind}-{number:06d}", arrays, {"log_partitions": log}))
        sketched = ((first, Columns(work, sketch)["signatures"]) for first, sketch in sketches)
        for number, (first_ordinal, signatures) in enumerate(index_files.cut_signatures(sketched)):
            arrays = {"signatures": signatures}
            files.append(self._write(f"signatures-{number:06d}", arrays, {"first_ordinal": first_ordinal}))
        if texts:
            kept = (_texts_to_keep(work, first, artifact) for first, artifact in texts)
            for number, arrays in enumerate(index_files.cut_texts(kept)):
                files.append(self._write(f"texts-{number:06d}", arrays, _extent(arrays["ordinals"])))
        record = _Record(
            INDEX_VERSION,
            *self.kind,
            num_documents,
            tuple(self.earlier),
            tuple((file.name.partition("/")[2], file.size, file.checksum, "work") for file in files),
        )
        self.store.write(f"{self.run}/{_RECORD}", msgspec.json.encode(record, order="deterministic") + b"\n")
        self.store.delete([f"{self.run}/{_BUILDING}"])

    def _write(self, name: str, arrays: index_files.Arrays, meta: dict[str, int]) -> Artifact:
        return columns.write(self.store, f"{self.run}/{name}.cols", arrays, meta, durable=True)

    def _is_finished(self, run: str) -> bool:
        """Whether a run's folder is complete. Raises DataError if its record has been lost."""
        if f"{run}/{_RECORD}" in self._there:
            return True
        if f"{run}/{_BUILDING}" in self._there or not any(
            name.startswith((f"{run}/exact-", f"{run}/bands-", f"{run}/signatures-")) for name in self._there
        ):
            return False  # unfinished, or another program's folder
        raise DataError(
            f"The index {self.store.shown} is damaged: {run}/{_RECORD} is missing. Without it, documents that are in the "
            f"index would not be recognised. Restore it, or remove the folder {run} to forget that run."
        )

    def _record(self, run: str) -> _Record:
        name = f"{run}/{_RECORD}"
        if name not in self._there:
            raise DataError(
                f"The index {self.store.shown} no longer has the run {run}, which this run was matched against. Restore it, "
                f"or remove the folder {self.run} too, so that this run is matched against what is there now."
            )
        remedy = "Restore it, or remove its folder to forget that run."
        try:
            value = json.loads(self.store.read(name))
            version = value["format_version"]
            if version != INDEX_VERSION:
                raise DataError(
                    f"The index entry {self.store.shown}/{name} has format version {version!r}; this btlm-data reads "
                    f"{INDEX_VERSION}, which also names each file with its checksum. Use another --dedupe-index."
                )
            return msgspec.convert(value, _Record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"The index entry {self.store.shown}/{name} cannot be read ({error}). {remedy}"
            ) from error

    def _artifact(self, run: str, file: tuple[str, int, str, str]) -> Artifact:
        """A file that index.json names. Raises DataError if it is not there with its size."""
        artifact = Artifact(f"{run}/{check_name(file[0])}", file[1], file[2])
        if self._there.get(artifact.name) != artifact.size:
            size = self._there.get(artifact.name)
            state = "is missing" if size is None else f"has {size:,} bytes instead of {artifact.size:,}"
            raise DataError(
                f"The index {self.store.shown} is damaged: {artifact.name} {state}. Without it, documents that are in the "
                f"index would not be recognised. Restore it, or remove the folder {run} to forget that run."
            )
        return artifact


def _keys_to_keep(
    work: Store, file: Artifact, kind: str, stays: npt.NDArray[np.bool_] | None
) -> dict[str, npt.NDArray[Any]]:
    """Keys of one partition and what goes with them, of documents that stay."""
    opened = Columns(work, file)
    names = ("keys", "low") if kind == "exact" else ("keys", "ordinals")
    if stays is None:
        return {name: opened[name] for name in names}
    chosen = stays[opened["ordinals"]]
    return {name: opened[name][chosen] for name in names}


def _texts_to_keep(work: Store, first: int, file: Artifact) -> dict[str, npt.NDArray[Any]]:
    """Texts of a file, with their ordinals counted from `first`."""
    opened = Columns(work, file)
    ordinals = opened["ordinals"].astype(np.int64) + first
    if not len(ordinals) or int(ordinals[-1]) < MOST_NARROW:
        ordinals = ordinals.astype(np.uint32)
    return {"ordinals": ordinals, "frames": opened["frames"], "bounds": opened["bounds"]}


def _extent(ordinals: UInt32Array) -> dict[str, int]:
    """Of a file of texts, for its meta: whose texts it may have."""
    if not len(ordinals):
        return {"first_ordinal": 0, "last_ordinal": 0}
    return {"first_ordinal": int(ordinals[0]), "last_ordinal": int(ordinals[-1]) + 1}


class _IndexFile(Columns):
    """A columns file of an index: no run can make it again, so damage is told otherwise."""

    def _damaged(self, reason: str) -> DataError:
        run = self._artifact.name.partition("/")[0]
        return DataError(
            f"The index {self._store.shown} is damaged: {self._artifact.name}: {reason}. Restore the file, or remove the "
            f"folder {run} to forget that run."
        )
