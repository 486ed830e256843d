"""Shards: what training reads, one HDF5 file with one dataset `data` each.

    base.py                          what a format is (ShardFormat)
    sample.py  corpus.py  vsl.py     one format each; FORMATS lists them
    writer.py  hdf5_layout.py        writing: the bytes of the file
    reader.py  hdf5_*.py  unpack.py  reading: the bytes of anybody's file, carefully
    order.py                         the order of samples after the shuffle

A format is a module with an object FORMAT; it is imported only when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btlm_data.formats.shard_formats.base import ShardFormat

# name -> module. The order is that of help.
FORMATS: dict[str, str] = {
    "sample": "btlm_data.formats.shard_formats.sample",
    "corpus": "btlm_data.formats.shard_formats.corpus",
    "vsl": "btlm_data.formats.shard_formats.vsl",
}


def get_format(name: str) -> ShardFormat:
    """The format of this name. Raises KeyError if there is none."""
    return load_format(FORMATS[name])


def load_format(module: str) -> ShardFormat:
    """The format that a module defines: what a task names, so that any process can do it."""
    shard_format: ShardFormat = importlib.import_module(module).FORMAT
    return shard_format


def format_of_rows(shape: tuple[int, ...]) -> ShardFormat | None:
    """The format whose rows have this shape, by their number of axes and planes; None if there is none."""
    for name in FORMATS:
        shard_format = get_format(name)
        if (len(shape) == 0 and not shard_format.planes) or (
            len(shape) == 2 and shape[0] == len(shard_format.planes)
        ):
            return shard_format
    return None
