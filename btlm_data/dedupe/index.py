"""An index keeps what one run knows of its documents, so that later runs drop what matches it.

    DIR/RUN/index.json              {"format_version", "scheme", "bands", "rows", "num_perm", "num_documents",
                                    "earlier": [run, ...], "files": [[name, size, checksum, "work"], ...]}
    DIR/RUN/exact-PPPPPP.cols       `keys` (m,) uint64 ascending, the high half of exact hashes, and `low`
                                    (m,) uint64
    DIR/RUN/bands-PPPPPP.cols       `keys` (m,) uint64 ascending, band keys, and `ordinals` (m,) uint32
                                    (int64 of a run of more than 2^32 - 1 documents, as everywhere),
                                    ascending among equal keys
    DIR/RUN/signatures-BBBBBB.cols  `signatures` (n, num_perm) uint32 of the documents from BBBBBB *
                                    SIGNATURES_A_FILE on
    DIR/RUN/texts-DDDDDDDDDDDD.cols of texts that stay, where texts are compared: `ordinals` (m,) uint32 or
                                    int64 ascending (of the first document of each; DDDDDDDDDDDD: no one is
                                    smaller), `frames` uint8 and `bounds` (m + 1,) int64: normalised texts, each
                                    a zstd frame

RUN is the run's fingerprint. PPPPPP numbers contiguous ranges of keys, ascending: of 2^k files p holds the keys
whose highest k bits are p. So a name says what is in a file, and only what is needed is opened. `earlier` lists the runs that were in the index
when this one matched against it: a rerun matches against the same ones, whatever was added since. `files` are
named with their checksums: a missing or damaged one is an error, never a smaller index. A folder with
building.json and no index.json is unfinished. DIR is a folder or a URL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats.columns import Columns
from btlm_data.storage import check_name, open_store
from btlm_data.task import Artifact

INDEX_VERSION = 3
SIGNATURES_A_FILE = 2**16
PIECE_BYTES = 2**20  # of compressed texts that stay together, and one text more
Needs = Literal["texts", "signatures", None]
_RECORD = "index.json"
_BUILDING = "building.json"
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


def file_name(run: str, kind: str, number: int) -> str:
    """Of a file of a run. number: of the file; of texts the first document that it may have."""
    return f"{run}/{kind}-{number:012d}.cols" if kind == "texts" else f"{run}/{kind}-{number:06d}.cols"


def _is_in_order(names: Sequence[str]) -> bool:
    """Whether these are names of files of an entry, each kind in the order of its numbers, and 2^k of each kind of keys."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        if not (parts := re.fullmatch(r"(exact|bands|signatures|texts)-([0-9]{6,15})\.cols", name)):
            return False
        numbers.setdefault(parts[1], []).append(int(parts[2]))
    texts = numbers.pop("texts", [])
    is_whole = all(present == list(range(len(present))) for present in numbers.values())
    counts = [len(numbers[kind]) for kind in ("exact", "bands") if kind in numbers]
    return is_whole and sorted(set(texts)) == texts and not any(count & (count - 1) for count in counts)


def _number(file: Artifact) -> int:
    """Inverse of file_name. Raises ValueError for another name."""
    return int(file.name.removesuffix(".cols").rpartition("-")[2])


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


def pieces_of(rows: Int64Array, bounds: Int64Array) -> list[tuple[int, int]]:
    """Documents whose texts stay together in an index: (end of the last one, bytes of frames) of each piece. rows: (m,) int64
    ascending, the documents of texts; bounds: (m + 1,) int64, of `pack`.
    """
    pieces: list[tuple[int, int]] = []
    begin = 0
    while begin < len(rows):
        end = int(np.searchsorted(bounds, bounds[begin] + PIECE_BYTES))
        end = min(max(end, begin + 1), len(rows))
        pieces.append((int(rows[end - 1]) + 1, int(bounds[end] - bounds[begin])))
        begin = end
    return pieces


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
        for run, _ in self.runs:
            files = self._files(run, kind)
            log = max(0, len(files) - 1).bit_length()
            shared = min(log, log_partitions)
            first = (partition >> (log_partitions - shared)) << (log - shared)
            for file in files[first : first + (1 << (log - shared))]:
                opened = _IndexFile(store, file)
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
        run, _ = self.runs[run_number]
        files = self._files(run, "texts")
        texts: dict[int, bytes] = {}
        wanted = np.unique(ordinals)
        in_file = np.searchsorted([_number(file) for file in files], wanted, side="right") - 1
        for number in np.unique(in_file[in_file >= 0]).tolist():
            opened = _IndexFile(store, files[number])
            all_ordinals, bounds = opened["ordinals"], opened["bounds"]
            for ordinal in wanted[in_file == number].tolist():
                row = int(np.searchsorted(all_ordinals, ordinal))
                if row < len(all_ordinals) and int(all_ordinals[row]) == ordinal:
                    frame = opened.rows("frames", int(bounds[row]), int(bounds[row + 1]))
                    texts[ordinal] = unpack(frame.tobytes(), f"{store.shown}/{files[number].name}")
        if missing := [ordinal for ordinal in ordinals.tolist() if ordinal not in texts]:
            raise DataError(
                f"The index {store.shown} is damaged: the run {run} names document {missing[0]:,} and has not kept its "
                f"text. Remove the folder {run} to forget that run."
            )
        return [texts[ordinal] for ordinal in ordinals.tolist()]

    def signatures(self, run: str) -> SignatureReader:
        """Signatures of an earlier run by its ordinals."""
        store = open_store(self.location)
        files = self._files(run, "signatures")
        first = [_number(file) * SIGNATURES_A_FILE for file in files]
        return SignatureReader(first, lambda number: _IndexFile(store, files[number]))

    def _files(self, run: str, kind: str) -> list[Artifact]:
        """A run's files of a kind, in order."""
        return [file for file in dict(self.runs)[run] if file.name.startswith(f"{run}/{kind}-")]


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

    def begin(self) -> None:
        """Mark this run's entry as unfinished: its files follow. Raises OutputError if the index cannot be written."""
        self.store.write(f"{self.run}/{_BUILDING}", b"{}\n")
        open_store(f"{self.store.url}/{self.run}").sweep()  # of a run that was killed while it added itself

    def finish(self, files: Sequence[Artifact], num_documents: int) -> None:
        """Make the entry one that later runs match against. files: all of it, each kind in order of its numbers."""
        record = _Record(
            INDEX_VERSION,
            *self.kind,
            num_documents,
            tuple(self.earlier),
            tuple((file.name.partition("/")[2], file.size, file.checksum, "work") for file in files),
        )
        self.store.write(f"{self.run}/{_RECORD}", msgspec.json.encode(record, order="deterministic") + b"\n")
        self.store.delete([f"{self.run}/{_BUILDING}"])

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
                    f"{INDEX_VERSION}. Name another --dedupe-index, or remove the folder {run} to forget that run."
                )
            record = msgspec.convert(value, _Record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"The index entry {self.store.shown}/{name} cannot be read ({error}). {remedy}"
            ) from error
        if not _is_in_order([file[0] for file in record.files]):
            raise DataError(
                f"The index entry {self.store.shown}/{name} does not name the files of an entry, in order. {remedy}"
            )
        return record

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


class _IndexFile(Columns):
    """A columns file of an index: no run can make it again, so damage is told otherwise."""

    def _damaged(self, reason: str) -> DataError:
        run = self._artifact.name.partition("/")[0]
        return DataError(
            f"The index {self._store.shown} is damaged: {self._artifact.name}: {reason}. Restore the file, or remove the "
            f"folder {run} to forget that run."
        )
