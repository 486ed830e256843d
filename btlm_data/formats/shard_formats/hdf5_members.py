"""Find the datasets of an HDF5 file of others by our own parser, so that its library is not needed.

The library follows links and virtual datasets to other files, runs filters members at run time, and has been
shown to write out of bounds for crafted files (CVE-2025-44904).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from btlm_data.formats.shard_formats.byte_source import ByteSource
from btlm_data.formats.shard_formats.hdf5_chunks import read_chunk_table
from btlm_data.formats.shard_formats.hdf5_file import Damaged, Head, NotPlain, read_messages, read_superblock
from btlm_data.formats.shard_formats.hdf5_head import Stored, read_dataset, symbols, whole_numbers


class Member(NamedTuple):
    """A dataset of the root group. numbers: its attributes that are one whole number or truth value."""

    stored: Stored
    numbers: dict[str, int]


def read_members(
    source: ByteSource, chosen: Callable[[str], bool], more_filters: frozenset[int] = frozenset()
) -> dict[str, Member]:
    """The chosen members of the root group by name, each a dataset of numbers stored whole in this file
    alone.

    Raises Damaged or NotPlain. A root group of the newest kind (`libver="latest"`, many members) is not read.
    """
    head, root = read_superblock(source)
    members: dict[str, Member] = {}
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
                members[name] = _member(head, address, more_filters)
            except (Damaged, NotPlain) as error:
                raise type(error)(str(error).replace("`data`", repr(name[:200]))) from None
    except (struct.error, IndexError):
        raise Damaged("a description in its head is cut off") from None
    return members


def _member(head: Head, address: int, more_filters: frozenset[int]) -> Member:
    stored = read_dataset(head, address, None, more_filters)
    if stored.chunks is not None and (read_chunk_table(head, stored).offsets < 0).any():
        raise NotPlain("parts of its `data` were never written")
    return Member(stored, whole_numbers(list(read_messages(head, address, "dataset"))))
