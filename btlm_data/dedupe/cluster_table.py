"""clusters.parquet: a row per document of each cluster of two or more, in source order.

document  uint32   ordinal: row number over all blocks (uint64 of more than 2^32 - 1 documents, as is `cluster`)
cluster   uint32   ordinal of the cluster's first document
kept      bool     whether deduplication keeps it
fate      string   "kept", or the reason it is dropped
split     string   train, validation or test, as the source has it
source    string   the record's source name
file      string   name of its file in the source
line      uint64   0-based, in that file
offset    uint64   where the record begins there: bytes decompressed, or row
bytes     uint32   UTF-8 bytes of its cleaned text
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 200_000  # of a row group: about 10 MB while it is written


class ClusterRows:
    """Writes clusters.parquet, row groups as they fill. Use as a context manager: its end writes the rest and
    the footer.
    """

    def __init__(self, file: BinaryIO, *, wide: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = pa.dictionary(pa.int32(), pa.string())
        ordinal = pa.uint64() if wide else pa.uint32()
        types = [ordinal, ordinal, pa.bool_(), names, names, names, names]
        types += [pa.uint64(), pa.uint64(), pa.uint32()]
        names_of_columns = [
            "document",
            "cluster",
            "kept",
            "fate",
            "split",
            "source",
            "file",
            "line",
            "offset",
            "bytes",
        ]
        self._schema = pa.schema(list(zip(names_of_columns, types, strict=True)))
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._held: list[Any] = []
        self._num_held = 0

    def add(
        self,
        split: str,
        fate_names: Sequence[str],
        source_names: Sequence[str],
        file_names: Sequence[str],
        rows: dict[str, Any],
    ) -> None:
        """Add documents of one block. rows: document, cluster, kept, line, offset, bytes as arrays; fate,
        source, file as codes.
        """
        import pyarrow as pa

        def named(codes: npt.NDArray[Any], names: Sequence[str]) -> Any:
            return pa.DictionaryArray.from_arrays(
                pa.array(codes.astype(np.int32)), pa.array(list(names), pa.string())
            )

        count = len(rows["document"])
        rows = rows | {
            "split": named(np.zeros(count, np.int32), [split]),
            "fate": named(rows["fate"], fate_names),
            "source": named(rows["source"], source_names),
            "file": named(rows["file"], file_names),
        }
        self._held.append(pa.table([rows[name] for name in self._schema.names], schema=self._schema))
        self._num_held += count
        if self._num_held >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a row group."""
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.concat_tables(self._held).unify_dictionaries())
        self._held, self._num_held = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._writer.close()  # in any case: left open, it fails when collected, after the file is closed
