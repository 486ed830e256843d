"""Check the datasets of an HDF5 file of others before its library opens it: plainly stored numbers, and nothing else.

The library follows links and virtual datasets to other files, runs filters found at run time, and has been shown to
write out of bounds for crafted files (CVE-2025-44904). So what it is to read is looked at first, with every address
and size checked against the file's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from btlm_data.formats.shard_formats.byte_source import ByteSource
from btlm_data.formats.shard_formats.hdf5_chunks import read_chunk_table
from btlm_data.formats.shard_formats.hdf5_file import Damaged, NotPlain, read_messages, read_superblock
from btlm_data.formats.shard_formats.hdf5_head import Stored, read_dataset, symbols

BITSHUFFLE, BLOSC, LZ4, ZSTD = 32008, 32001, 32004, 32015  # of the package hdf5plugin


def read_members(
    source: ByteSource, chosen: Callable[[str], bool], more_filters: frozenset[int] = frozenset()
) -> dict[str, Stored]:
    """The chosen members of the root group by name, each a dataset of numbers stored in this file alone, its chunks
    included.

    Raises Damaged or NotPlain. A root group of the newest kind (`libver="latest"`, many members) is not read.
    """
    head, root = read_superblock(source)
    members: dict[str, Stored] = {}
    try:
        table = next((m.data for m in read_messages(head, root, "root group") if m.kind == 0x0011), None)
        if table is None or len(table) < 16:
            raise NotPlain("its root group is of the newer kind. Write it with h5py's defaults")
        for raw, address, kind in symbols(head, *struct.unpack_from("<QQ", table)):
            name = raw.decode("utf-8", "surrogateescape")
            if not chosen(name):
                continue
            if kind == 2:
                raise NotPlain(f"its {name[:200]!r} is a link, which is not followed")
            try:
                stored = read_dataset(head, address, None, more_filters)
                if stored.chunks is not None:
                    read_chunk_table(head, stored)
            except (Damaged, NotPlain) as error:
                raise type(error)(str(error).replace("`data`", repr(name[:200]))) from None
            members[name] = stored
    except (struct.error, IndexError):
        raise Damaged("a description in its head is cut off") from None
    return members
