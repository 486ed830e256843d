"""Flat files of ids, as nanoGPT reads them.

SPLIT.bin             the stream, uint16 or uint32, little-endian and nothing else; nanoGPT's name for the
                      validation split, val.bin, is used
SPLIT.documents.npy   int64 (documents + 1,): where each document begins in the stream, and its end
"""

from __future__ import annotations

import numpy as np

from btlm_data.export.split import OpenedSplit
from btlm_data.export.target import ExportedSplit, describe, left_out_of_shards
from btlm_data.storage import Store


class Npy:
    """See the module."""

    name = "npy"
    title = "flat .bin"

    def file_names(self, split: OpenedSplit) -> list[str]:
        """The stream and the borders of its documents."""
        name = "val" if split.name == "validation" else split.name
        return [f"{name}.bin", f"{name}.documents.npy"]

    def write(self, split: OpenedSplit, store: Store, folder: str) -> ExportedSplit:
        """Write the two files."""
        stream, borders = self.file_names(split)
        with store.create(folder + stream) as creating:
            split.write_stream(creating, np.dtype(split.dataset.dtype).newbyteorder("<"))
        count = sum(len(offsets) for offsets, _ in split.documents())
        with store.create(folder + borders) as creating:
            header = {"descr": "<i8", "fortran_order": False, "shape": (count + 1,)}
            np.lib.format.write_array_header_1_0(creating.file, header)
            for offsets, _ in split.documents():
                creating.file.write(offsets.astype("<i8").tobytes())
            creating.file.write(np.array([split.num_tokens], "<i8").tobytes())
        files = [describe(store, folder, name) for name in (stream, borders)]
        return ExportedSplit(count, None, split.num_tokens, left_out_of_shards(split), files)
