"""Sketches of documents: the .sketch files of a run, and the index that keeps them for tomorrow's runs.

    DIR/RUN/index.json              {"format_version", "scheme", "bands", "rows", "num_perm", "num_documents", "earlier": [run, ...]}
    DIR/RUN/exact-PPPPPP.cols       `keys` (m,) uint64 ascending, the high half of exact hashes, and `low` (m,) uint64, the low one
    DIR/RUN/bands-PPPPPP.cols       `keys` (m,) uint64 ascending, band keys, and `ordinals` (m,) uint32, ascending among equal keys
    DIR/RUN/signatures-BBBBBB.cols  `signatures` (n, num_perm) uint32 of documents first_ordinal, first_ordinal + 1, ...; meta: {"first_ordinal"}

RUN is the run's fingerprint. PPPPPP numbers contiguous ranges of keys, ascending; meta: {"log_partitions"}: file p holds the keys
whose highest log_partitions bits are p. `earlier` lists the runs that were in the index when this one matched against it: a rerun
matches against the same ones, whatever was added since. A folder under another name than a run's (".RUN.tmp") is unfinished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats import atomic, columns

INDEX_VERSION = 1
_MANIFEST = "index.json"
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]


class SignatureReader:
    """Signatures by ordinal, over the sketch files of a run or the signature files of an index; memory-mapped, opened when needed."""

    def __init__(self, first_ordinals: Sequence[int], paths: Sequence[Path]) -> None:
        self._first = np.array(first_ordinals, np.int64)
        self._paths = paths
        self._open = lru_cache(maxsize=256)(
            lambda number: columns.read(self._paths[number], ["signatures"])["signatures"]
        )

    def read(self, ordinals: UInt32Array) -> UInt32Array:
        """Signatures of any documents, in the order asked for: (n,) -> (n, P)."""
        blocks = np.searchsorted(self._first, ordinals, side="right") - 1
        order = np.argsort(blocks, kind="stable")
        edges = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        out: UInt32Array | None = None
        for begin, end in zip(edges, [*edges[1:], len(order)], strict=True):
            rows = order[begin:end]
            block = int(blocks[rows[0]])
            found = self._open(block)
            if out is None:
                out = np.empty((len(ordinals), found.shape[1]), np.uint32)
            out[rows] = found[ordinals[rows].astype(np.int64) - self._first[block]]
        return out if out is not None else np.empty((0, 0), np.uint32)


@dataclass(frozen=True)
class Kind:
    """What must agree between a run and an index for their keys to mean the same."""

    scheme: str
    bands: int
    rows: int
    num_perm: int


class Index:
    """The runs of an index folder that a run matches against."""

    def __init__(self, folder: Path, run: str, kind: Kind) -> None:
        """Raises ConfigError if an earlier run has other bands, rows or permutations, DataError if it cannot be read."""
        self.folder, self.run, self.kind = folder, run, kind
        found = sorted(path.parent.name for path in folder.glob(f"[!.]*/{_MANIFEST}"))
        self.earlier: list[str] = self._manifest(run)["earlier"] if self.is_added else found
        for name in self.earlier:
            manifest = self._manifest(name)
            theirs = Kind(*(manifest[key] for key in ("scheme", "bands", "rows", "num_perm")))
            if theirs != kind:
                raise ConfigError(
                    f"The index {folder} holds a run made with {_describe(theirs)}, this run has {_describe(kind)}. Their keys cannot be compared. "
                    "Use the same settings, or choose another --dedupe-index."
                )

    @property
    def path(self) -> Path:
        """The folder of this run."""
        return self.folder / self.run

    @property
    def is_added(self) -> bool:
        """Whether this run is in the index already."""
        return (self.path / _MANIFEST).exists()

    def _manifest(self, run: str) -> dict[str, Any]:
        path = self.folder / run / _MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"The index entry {path} cannot be read ({error}). Restore it, or remove its folder to forget that run."
            ) from error
        if manifest.get("format_version") != INDEX_VERSION:
            raise DataError(
                f"The index entry {path} has format version {manifest.get('format_version')}, this btlm-data reads {INDEX_VERSION}. "
                "Use the version that wrote it, or another --dedupe-index."
            )
        return manifest

    def ranges(
        self, what: str, partition: int, log_partitions: int
    ) -> Iterator[tuple[str, dict[str, npt.NDArray[Any]]]]:
        """(run, arrays) of earlier runs whose keys begin with `partition` as their highest log_partitions bits. what: "exact" or "bands"."""
        for name in self.earlier:
            for path in sorted((self.folder / name).glob(f"{what}-*.cols")):
                theirs = columns.read(path)
                log, number = theirs.meta["log_partitions"], int(path.stem.rsplit("-", 1)[1])
                shared = min(log, log_partitions)
                if number >> (log - shared) != partition >> (log_partitions - shared):
                    continue
                keys = theirs["keys"]
                low = np.searchsorted(keys, np.uint64((partition << (64 - log_partitions)) & (2**64 - 1)))
                last = ((partition + 1) << (64 - log_partitions)) - 1
                high = np.searchsorted(keys, np.uint64(last), side="right")
                if high > low:
                    yield name, {key: array[low:high] for key, array in theirs.arrays.items()}

    def signatures(self, run: str) -> SignatureReader:
        """Signatures of an earlier run by its ordinals."""
        paths = sorted((self.folder / run).glob("signatures-*.cols"))
        return SignatureReader([columns.read(path, []).meta["first_ordinal"] for path in paths], paths)

    def add(self, files: Sequence[Path], sketches: Sequence[tuple[int, Path]], num_documents: int) -> None:
        """Make this run's folder from sorted key files and the run's sketches (first ordinal, path); nothing if it is there already.

        Raises OutputError if the index cannot be written.
        """
        if self.is_added:
            return
        building = self.folder / f".{self.run}{atomic.TEMPORARY_SUFFIX}"
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            for path in files:
                shutil.copyfile(path, building / path.name)
            for number, (first_ordinal, path) in enumerate(sketches):
                signatures = columns.read(path, ["signatures"])["signatures"]
                columns.write(
                    building / f"signatures-{number:06d}.cols",
                    {"signatures": signatures},
                    {"first_ordinal": first_ordinal},
                )
            manifest = {
                "format_version": INDEX_VERSION,
                **self.kind.__dict__,
                "num_documents": num_documents,
                "earlier": self.earlier,
            }
            atomic.write_json(building / _MANIFEST, manifest)
            shutil.rmtree(self.path, ignore_errors=True)
            building.replace(self.path)
        except OSError as error:
            raise atomic.as_output_error(error, self.path) from error


def key_file(folder: Path, what: str, partition: int) -> Path:
    """Where a partition's sorted keys are kept until they are added to an index."""
    return folder / f"{what}-{partition:06d}.cols"


def _describe(kind: Kind) -> str:
    return f"scheme {kind.scheme}, {kind.bands} bands x {kind.rows} rows, {kind.num_perm} permutations"
