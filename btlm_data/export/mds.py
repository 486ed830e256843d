"""MosaicML Streaming's MDS, version 2: samples of L ids in one column `tokens`.

    SPLIT/index.json        the shards: their columns, sizes and hashes
    SPLIT/shard.NNNNN.mds   4 bytes  uint32 n, samples
                            4 (n+1)  uint32 byte offset of each sample, and the end
                                     JSON: the columns
                                     n samples of L ids, uint16 where every id fits, else int32

The last sample is left out, and counted, where it is padded.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.export.split import OpenedSplit
from btlm_data.export.target import ExportedSplit, describe, left_out_of_shards
from btlm_data.storage import Store

SHARD_BYTES = 1 << 26  # MosaicML's own default


class Mds:
    """See the module."""

    name = "mds"
    title = "MosaicML MDS"

    def file_names(self, split: OpenedSplit) -> list[str]:
        """The shards and the index."""
        num_samples = split.entry.label_tokens // split.seq_len
        count = -(-num_samples // _Layout(split).per_shard)
        return [*(_shard_name(split, number) for number in range(count)), f"{split.name}/index.json"]

    def write(self, split: OpenedSplit, store: Store, folder: str) -> ExportedSplit:
        """Write the shards, then the index."""
        layout = _Layout(split)
        entries: list[dict[str, Any]] = []
        names: list[str] = []
        num_samples = 0
        for rows in _regrouped(split.whole_inputs(), layout.per_shard):
            name = _shard_name(split, len(entries))
            content = layout.shard(rows)
            store.write(folder + name, content)
            raw = {
                "basename": name.rpartition("/")[2],
                "bytes": len(content),
                "hashes": {"sha1": hashlib.sha1(content, usedforsecurity=False).hexdigest()},
            }
            entries.append(
                {**layout.columns, "raw_data": raw, "samples": len(rows), "version": 2, "zip_data": None}
            )
            names.append(name)
            num_samples += len(rows)
        index = {"shards": entries, "version": 2}
        names.append(f"{split.name}/index.json")
        text = json.dumps(index, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        store.write(folder + names[-1], text.encode())
        written = num_samples * split.seq_len
        left_out = {"short_of_a_sample": split.num_tokens - written} if split.num_tokens > written else {}
        files = [describe(store, folder, name) for name in names]
        return ExportedSplit(None, num_samples, written, left_out | left_out_of_shards(split), files)


def _shard_name(split: OpenedSplit, number: int) -> str:
    return f"{split.name}/shard.{number:05d}.mds"


class _Layout:
    """How samples of a split are laid down: columns, and samples a shard."""

    def __init__(self, split: OpenedSplit) -> None:
        self.dtype = np.dtype("<u2" if split.dataset.tokenizer.vocab_size <= 2**16 else "<i4")
        self.sample_bytes = split.seq_len * self.dtype.itemsize
        self.columns: dict[str, Any] = {
            "column_encodings": [f"ndarray:{self.dtype.name}:{split.seq_len}"],
            "column_names": ["tokens"],
            "column_sizes": [self.sample_bytes],
            "compression": None,
            "format": "mds",
            "hashes": ["sha1"],
            "size_limit": SHARD_BYTES,
        }
        self.header = json.dumps(self.columns, sort_keys=True).encode()
        self.per_shard = max(1, (SHARD_BYTES - len(self.header) - 8) // (self.sample_bytes + 4))

    def shard(self, rows: npt.NDArray[Any]) -> bytes:
        """The bytes of a shard of samples (n, L)."""
        first = 4 + 4 * (len(rows) + 1) + len(self.header)
        offsets = first + self.sample_bytes * np.arange(len(rows) + 1, dtype=np.int64)
        start = struct.pack("<I", len(rows)) + offsets.astype("<u4").tobytes()
        return start + self.header + rows.astype(self.dtype).tobytes()


def _regrouped(blocks: Iterator[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """The same rows in blocks of `size`, the last one shorter."""
    waiting: list[npt.NDArray[Any]] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        while count >= size:
            rows = np.concatenate(waiting)
            yield rows[:size]
            waiting, count = [rows[size:]], count - size
    if count:
        yield np.concatenate(waiting)
