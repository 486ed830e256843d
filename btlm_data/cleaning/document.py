"""What a filter sees: a batch of documents, and the mapping that a user's function receives for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from btlm_data.errors import ConfigError


class WholeRecord(Protocol):
    """A record as the file has it, decoded when asked (`records.batch.RawRecord` is one)."""

    def fields(self) -> Mapping[str, Any]:
        """Every field by its name."""


class Documents(msgspec.Struct, frozen=True):
    """A batch of n documents, as the filters receive them; every sequence has n items.

    texts: after normalisation. sources: names of sources. files, offsets: the name of each document's file
    and where its record begins in it, in bytes as decompressed (for parquet, the number of its row). records:
    the whole record of each document; needed only where `Filters.needs_metadata`.
    """

    texts: Sequence[str]
    sources: Sequence[str]
    files: Sequence[str]
    offsets: Sequence[int]
    records: Sequence[WholeRecord] | None = None

    def document(self, index: int, text: str, *, with_metadata: bool) -> Document:
        """Document `index` for a user's function, with `text` as the filters before it left it."""
        document = Document(
            text=text, source=self.sources[index], file=self.files[index], offset=self.offsets[index]
        )
        if with_metadata:
            if self.records is None:
                raise ConfigError(
                    f"A filter has `metadata: true`, but whole records of {self.files[index]} are not "
                    "available. "
                    "Remove the filter, or its `metadata`."
                )
            document["metadata"] = self.records[index].fields()
        return document


class Document(dict[str, Any]):
    """One document as a mapping: "text", "source", "file" (str), "offset" (int), and "metadata" where asked
    for.

    "metadata" is the record as it was read, a mapping of every field by its name; filters ask for it by
    `metadata: true`.
    """

    def __missing__(self, key: str) -> Any:
        if key == "metadata":
            raise ConfigError(
                'A filter reads document["metadata"], which is given only on request, because it costs time. '
                "Add `metadata: true` to that filter's entry in clean.filters."
            )
        raise KeyError(key)
