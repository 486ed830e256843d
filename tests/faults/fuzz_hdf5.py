"""HDF5 files for the fuzzer: shards of every kind of head and index, and HDF5 checkpoints, damaged where it hurts.

A mutation prefers the beginnings of HDF5's structures, knows the addresses and sizes that occur in the file, and may make the
checksums of the newer structures right again, as someone who means harm would. The HDF5 library makes the seeds, and has no
part in reading.
"""

from __future__ import annotations

import functools
import io
import itertools
import random
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import h5py
import numpy as np

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.hdf5_file import Head, lookup3
from btlm_data.formats.shard_formats.reader import ShardReader
from tests import shard_files

SHARD, CHECKPOINT = "data-00000.h5", "checkpoint.mdl"
SECRET = "secret/key.h5"  # beside the case's folder: what links of the seeds name
MAX_BYTES_READ = 1 << 22
_SIGNATURES = re.compile(
    rb"\x89HDF|TREE|SNOD|HEAP|OHDR|OCHK|FRHP|FHDB|FHIB|GCOL|FAHD|FADB|EAHD|EAIB|EASB|EADB|BTHD|BTIN|BTLF"
)
_WORDS = [
    0,
    1,
    2,
    3,
    7,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63,
    2**64 - 8,
    2**64 - 1,
]


class Seed(NamedTuple):
    """A valid file. checked: (first byte, bytes) of its structures that end in a checksum."""

    content: bytes
    checked: list[tuple[int, int]]


@functools.cache
def seeds(name: str) -> list[Seed]:
    """The valid files of one kind: SHARD or CHECKPOINT."""
    contents = _shards() if name == SHARD else _checkpoints()
    return [Seed(content, _checked(content)) for content in contents]


def _checked(content: bytes) -> list[tuple[int, int]]:
    """Where our parser finds structures with a checksum."""
    found: list[tuple[int, int]] = []
    real = Head.checked

    def noted(head: Head, address: int, count: int, signature: bytes, what: str) -> bytes:
        data = real(head, address, count, signature, what)
        found.append((head.base + address, count))
        return data

    with mock.patch.object(Head, "checked", noted):
        try:
            shard = ShardReader(_Memory(content))
            if len(shard.shape) and shard.shape[0]:
                shard.read(0, 1)
        except DataError:  # links and what else no shard has
            pass
    return found


class _Memory:
    """A `ByteSource` over bytes."""

    def __init__(self, content: bytes) -> None:
        self.name, self.size = "memory", len(content)
        self._content = content

    def read_at(self, offset: int, count: int) -> bytes:
        return self._content[offset : offset + count]

    def close(self) -> None:
        """Nothing is open."""


def _written(libver: Any, userblock: int = 0, **members: Any) -> bytes:
    """A file of the HDF5 library: each member is made by a call with the file and its name."""
    out = io.BytesIO()
    with h5py.File(out, "w", libver=libver, userblock_size=userblock) as file:
        for name, make in members.items():
            make(file, name)
    return out.getvalue()


def _dataset(data: Any, **how: Any) -> Any:
    return lambda file, name: file.create_dataset(name, data=data, **how)


def _lz4(data: Any, block_bytes: int) -> Any:
    return lambda file, name: shard_files.write_lz4(file, name, data, (8, 8), block_bytes)


def _linked(kind: str) -> Any:
    def make(file: Any, name: str) -> None:
        secret = f"../{SECRET}"
        if kind == "external":
            file[name] = h5py.ExternalLink(secret, "/data")
        elif kind == "soft":
            file["elsewhere"] = np.zeros((4, 3, 8), np.int32)
            file[name] = h5py.SoftLink("/elsewhere")
        elif kind == "storage":
            file.create_dataset(name, (4, 3, 8), "<i4", external=[(secret, 0, 400)])
        else:
            layout = h5py.VirtualLayout((4, 3, 8), "<i4")
            layout[:] = h5py.VirtualSource(secret, "data", (4, 3, 8))
            file.create_virtual_dataset(name, layout)

    return make


LIBRARIES = [("earliest", "v108"), ("v108", "v108"), ("v110", "v110"), ("latest", "latest")]


def _shards() -> list[bytes]:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 9000, (70, 17)).astype(np.uint16)
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.h5"
        shard_files.write_samples(path, rows)
        contents.append(path.read_bytes())
        shard_files.write_corpus(path, rows.reshape(-1))
        contents.append(path.read_bytes())
    data = generator.integers(0, 50, (70, 3, 8)).astype("<i4")
    hows: list[dict[str, Any]] = [
        {"chunks": (1, 3, 8), "compression": "gzip"},
        {"chunks": (2, 3, 5), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (1, 3, 8), "maxshape": (None, 3, 8), "compression": "lzf"},
        {"chunks": (9, 3, 8), "maxshape": (None, None, 8)},
        {"chunks": (70, 3, 8)},
        {},
    ]
    for libver, how in itertools.product(LIBRARIES, hows):
        contents.append(_written(libver, data=_dataset(data, **how)))
    many = np.arange(2000, dtype="<u2")
    contents += [
        _written("latest", data=_dataset(many, chunks=(1,), maxshape=limit)) for limit in ((None,), (2000,))
    ]
    for libver in LIBRARIES:
        others = {f"other{number}": _dataset(1) for number in range(12)}
        contents.append(_written(libver, 512, **others, data=_dataset(np.arange(5.0))))
        contents += [_written(libver, data=_linked(kind)) for kind in ("external", "soft", "storage")]
    contents += [
        _written(libver, data=_linked("virtual")) for libver in (None, ("v110", "v110"), ("latest", "latest"))
    ]
    return contents


def _checkpoints() -> list[bytes]:
    generator = np.random.default_rng(0)
    tensors = [generator.random((16, 8)).astype("<f4"), generator.integers(0, 99, (8, 8)).astype("<i2")]
    hows: list[dict[str, Any]] = [
        {},
        {"chunks": (4, 4), "compression": "gzip"},
        {"chunks": (8, 8), "shuffle": True, "fletcher32": True},
        {"chunks": (3, 8), "maxshape": (None, 8), "compression": "lzf"},
    ]
    contents = []
    for libver, how in itertools.product([None, ("earliest", "latest"), ("v108", "v110")], hows):
        members = {f"model.{number}.weight": _dataset(tensor, **how) for number, tensor in enumerate(tensors)}
        members["optimizer.state"] = _dataset(np.zeros(3))
        contents.append(_written(libver, **members))
    for block_bytes in (100, 1 << 30):
        members = {"model.a": _lz4(tensors[0], block_bytes), "model.b": _lz4(tensors[1] * 0, 64)}
        contents.append(_written(None, **members))
    for kind in ("external", "soft", "storage", "virtual"):
        members = {"model.a": _linked(kind), "model.b": _dataset(tensors[0])}
        contents.append(_written(None, **members))
    return contents


# Damage -----------------------------------------------------------------------------------------------------


def damaged(chance: random.Random, kind: list[Seed]) -> bytes:
    """One of the seeds, with some mutations."""
    seed = chance.choice(kind)
    content = bytearray(seed.content)
    starts = [found.start() for found in _SIGNATURES.finditer(seed.content)] or [0]
    addresses = [*starts, len(content), len(content) - 1, len(content) + 8]
    for _ in range(chance.choice([1, 1, 2, 3, 6])):
        at = (
            chance.choice(starts) + chance.randrange(200)
            if chance.random() < 0.8
            else chance.randrange(len(content))
        )
        at = min(at, len(content) - 1)
        how = chance.randrange(8)
        if how == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            content[at] = chance.choice([0, 1, 2, 3, 8, 127, 128, 255])
        elif how in (2, 3):
            value = (
                chance.choice(addresses) if how == 2 else chance.choice(_WORDS) + chance.choice([0, 0, -1, 1])
            )
            _put(content, at - at % 8 if chance.random() < 0.7 else at, value, chance.choice([1, 2, 4, 8, 8]))
        elif how == 4:
            old = int.from_bytes(content[at : at + 4], "little")
            _put(content, at, old + chance.choice([-8, -1, 1, 8, 4096, -4096]), 4)
        elif how == 5:  # a structure over another
            source, length = chance.choice(starts), chance.choice([8, 24, 64, 200])
            content[at : at + length] = content[source : source + length][: len(content) - at]
        elif how == 6:  # the same place of another file
            other = chance.choice(kind).content
            length = chance.choice([8, 64, 512])
            content[at : at + length] = other[at : at + length]
        else:
            content = (
                content[: max(8, at)] if chance.random() < 0.3 else content + bytes(chance.randrange(600))
            )
        if not content:
            content = bytearray(seed.content)
    if chance.random() < 0.7:
        _repair(content, seed.checked)
    return bytes(content)


def _put(content: bytearray, at: int, value: int, width: int) -> None:
    field = (value % 2 ** (8 * width)).to_bytes(width, "little")
    content[at : at + width] = field[: len(content) - at]


def _repair(content: bytearray, checked: list[tuple[int, int]]) -> None:
    """Make checksums right, those of what is checked last first: none covers another."""
    for start, length in checked:
        if start + length <= len(content):
            struct.pack_into(
                "<I", content, start + length - 4, lookup3(bytes(content[start : start + length - 4]))
            )


# The two readers --------------------------------------------------------------------------------------------


def read_shard(chance: random.Random, folder: Path) -> None:
    """Everything that is asked of a shard."""
    with ShardReader(folder / SHARD) as shard:
        assert shard.layout.num_bytes == (folder / SHARD).stat().st_size
        rows = shard.shape[0]
        shard.carries_checksums()
        for start, stop in ((0, min(rows, 3)), (max(0, rows - 2), rows)):
            for offset, size in shard.stored_ranges(start, stop):
                assert offset >= 0
                assert offset + size <= shard.layout.num_bytes
        total = 0
        for start, piece in shard.pieces(1 << 16):
            assert start == total
            total += len(piece)
            if total * max(1, piece[0].nbytes) > MAX_BYTES_READ:
                return
        assert total == rows


def read_checkpoint(chance: random.Random, folder: Path) -> None:
    """As `btlm-train import` does."""
    from btlm_train.interchange.tensor_files import read_state

    state, _ = read_state(folder / CHECKPOINT)
    for tensor in state.values():
        assert not tensor.numel() or not (tensor == 42).all(), "numbers of another file"


def _parts(name: str, read: Callable[[random.Random, Path], None]) -> tuple[Any, Any, Any]:
    """What the fuzzer needs: seeds are made once, before it forks; a case's folder holds the damaged file alone."""

    def make(folder: Path) -> None:
        seeds(name)
        with h5py.File(folder.parent / SECRET, "w") as file:
            file["data"] = np.full((4, 3, 8), 42, np.int32)

    def damage(chance: random.Random, folder: Path) -> None:
        (folder / name).write_bytes(damaged(chance, seeds(name)))

    return make, damage, read


HDF5_SHARDS = _parts(SHARD, read_shard)
HDF5_CHECKPOINTS = _parts(CHECKPOINT, read_checkpoint)
