"""Shards at a path, for tests: the writers of formats/shard_formats write into an open file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from btlm_data.formats.shard_formats import corpus, sample, vsl
from btlm_data.formats.shard_formats.writer import ShardInfo
from btlm_data.storage import open_store


def write_samples(path: Path, *args: Any, **options: Any) -> ShardInfo:
    """sample.write_samples into a file of this path, published whole."""
    with open_store(path.parent).create(path.name) as creating:
        return sample.write_samples(creating.file, *args, **options)


def write_vsl(path: Path, *args: Any, **options: Any) -> ShardInfo:
    """vsl.write_vsl into a file of this path, published whole."""
    with open_store(path.parent).create(path.name) as creating:
        return vsl.write_vsl(creating.file, *args, **options)


def write_corpus(path: Path, *args: Any, **options: Any) -> ShardInfo:
    """corpus.write_corpus into a file of this path, published whole."""
    with open_store(path.parent).create(path.name) as creating:
        return corpus.write_corpus(creating.file, *args, **options)


def write_lz4(
    file: h5py.File, name: str, data: Any, chunks: tuple[int, ...], block_bytes: int = 1 << 30
) -> Any:
    """A dataset through HDF5's registered filter 32004, which the library here does not have: chunks are made by hand."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(chunks)
    properties.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, (0,))
    space, dtype = h5py.h5s.create_simple(data.shape), h5py.h5t.py_create(data.dtype)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), dtype, space, properties))
    for corner in np.ndindex(*(-(-size // step) for size, step in zip(data.shape, chunks, strict=True))):
        start = tuple(place * step for place, step in zip(corner, chunks, strict=True))
        chunk = np.zeros(chunks, data.dtype)
        part = data[tuple(slice(at, at + step) for at, step in zip(start, chunks, strict=True))]
        chunk[tuple(map(slice, part.shape))] = part
        dataset.id.write_direct_chunk(start, lz4_chunk(chunk.tobytes(), block_bytes))
    return dataset


def lz4_chunk(content: bytes, block_bytes: int) -> bytes:
    """What filter 32004 makes of a chunk."""
    blocks = [content[at : at + block_bytes] for at in range(0, len(content), block_bytes)]
    stored = struct.pack(">QI", len(content), min(block_bytes, len(content)))
    for block in blocks:
        packed = pa.Codec("lz4_raw").compress(block, asbytes=True)
        kept = packed if len(packed) < len(block) else block
        stored += struct.pack(">I", len(kept)) + kept
    return stored
