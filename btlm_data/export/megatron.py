r"""Megatron-LM's indexed dataset: the token stream and an index of its documents.

SPLIT.bin   the stream, uint16 where every id fits, else int32, little-endian
SPLIT.idx   9 bytes  b"MMIDIDX\0\0"
            8 bytes  uint64 version, 1
            1 byte   dtype: 8 = uint16, 4 = int32
            8 bytes  uint64 S, sequences (= documents here, each with its EOS)
            8 bytes  uint64 D, documents + 1
            4 S      int32 tokens of each sequence
            8 S      int64 byte offset of each sequence in the .bin file
            8 D      int64 sequence at which each document begins, and at the end S
"""

from __future__ import annotations

import struct

import numpy as np

from btlm_data.errors import DataError
from btlm_data.export.split import OpenedSplit
from btlm_data.export.target import ExportedSplit, describe, left_out_of_shards
from btlm_data.storage import Store

_DTYPES = {"uint16": 8, "int32": 4}
_STEP = 1 << 20


class Megatron:
    """See the module."""

    name = "megatron"
    title = "Megatron-LM .bin/.idx"

    def file_names(self, split: OpenedSplit) -> list[str]:
        """The stream and its index."""
        return [f"{split.name}.bin", f"{split.name}.idx"]

    def write(self, split: OpenedSplit, store: Store, folder: str) -> ExportedSplit:
        """Write the two files. Raises DataError for a document of more than 2^31 - 1 tokens."""
        stream, index = self.file_names(split)
        dtype = np.dtype("<u2" if split.dataset.tokenizer.vocab_size <= 2**16 else "<i4")
        with store.create(folder + stream) as creating:
            split.write_stream(creating, dtype)
        count = 0
        for _, tokens in split.documents():
            count += len(tokens)
            if len(tokens) and tokens.max() >= 2**31:
                raise DataError(
                    f"{split.shown} has a document of {tokens.max()} tokens; Megatron-LM reads 2^31 - 1."
                )
        with store.create(folder + index) as creating:
            file = creating.file
            file.write(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, _DTYPES[dtype.name], count, count + 1))
            for _, tokens in split.documents():
                file.write(tokens.astype("<i4").tobytes())
            for offsets, _ in split.documents():
                file.write((offsets * dtype.itemsize).astype("<i8").tobytes())
            for first in range(0, count + 1, _STEP):
                file.write(np.arange(first, min(first + _STEP, count + 1), dtype="<i8").tobytes())
        files = [describe(store, folder, name) for name in (stream, index)]
        return ExportedSplit(count, None, split.num_tokens, left_out_of_shards(split), files)
