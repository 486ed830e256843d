"""What a target of an export is, and what it reports."""

from __future__ import annotations

from typing import Annotated, Protocol

import msgspec

from btlm_data.export.split import OpenedSplit
from btlm_data.formats.ledger import Count
from btlm_data.storage import Store
from btlm_data.storage.digest import sha256_stream


class ExportedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A written file. name: relative to the folder of its set."""

    name: str
    bytes: Count
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ExportedSplit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one split became. tokens: ids written. left_out_tokens: ids of the split that are in no file, by
    reason.
    """

    documents: Count | None
    samples: Count | None
    tokens: Count
    left_out_tokens: dict[str, Count]
    files: list[ExportedFile]


class ExportTarget(Protocol):
    """One format of another trainer.

    name: for `--to`. title: for help.
    """

    name: str
    title: str

    def file_names(self, split: OpenedSplit) -> list[str]:
        """The files that `write` will make, relative to the folder of the set."""
        ...

    def write(self, split: OpenedSplit, store: Store, folder: str) -> ExportedSplit:
        """Write a split below `folder` ("" or ending in "/") of the store.

        Raises DataError where the dataset is damaged, OutputError where a file cannot be written.
        """
        ...


def describe(store: Store, folder: str, name: str) -> ExportedFile:
    """What export.json says of a file just written."""
    with store.open(folder + name) as file:
        digest = sha256_stream(file)
        return ExportedFile(name, file.tell(), digest)


def left_out_of_shards(split: OpenedSplit) -> dict[str, int]:
    """Tokens of the stream that the shards do not hold."""
    missing = split.entry.stream_tokens - split.num_tokens
    return {"not_in_the_shards": missing} if missing else {}
