"""The protocol of record formats and compressions, and how a file is to be read.

A format is one `RecordFormat` value in a file of its own, listed in `formats.py`; a compression is one
`Compression` value, listed in `compression/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import msgspec
from msgspec.structs import replace

from btlm_data.records.batch import RecordBatch

BATCH_BYTES = 16 * 2**20
MAX_BATCH_RECORDS = 2**16
MAX_WINDOW = 2**27  # what `zstd -d` accepts without --long


class StoredFile(Protocol):
    """What reading needs to know of a file (the listing entry of a source is one)."""

    @property
    def format(self) -> str:
        """Name of its record format."""

    @property
    def compression(self) -> str:
        """Name of its compression; "none" without."""

    @property
    def source(self) -> str | None:
        """The source name of all its documents; None: the record says it."""

    @property
    def text_field(self) -> str | None:
        """The field that holds the text, where it differs from the setting."""


class Fields(msgspec.Struct, frozen=True):
    """Which fields of a record hold the text and the source name; dots descend (see fields.py)."""

    text: str = "text"
    source: str = "meta.redpajama_set_name"


class ReadOptions(msgspec.Struct, frozen=True):
    """What decides how the bytes of a file become documents; all of it belongs into the digest of what is
    made from them.

    max_record_bytes: a longer record is rejected. max_window: bytes of memory that decompressing may take
    (the window of zstd, the dictionary of xz). encoding: of text files, a name that Python knows. txt: what a
    document of a .txt file is. text_join: put between the strings of a text field that is a list; None: such
    a record is rejected.
    """

    fields: Fields = Fields()
    max_record_bytes: int = 512 * 2**20
    max_window: int = MAX_WINDOW
    encoding: str = "utf-8"
    txt: Literal["file", "paragraphs", "lines"] = "file"
    text_join: str | None = None


class Stretch(msgspec.Struct, frozen=True):
    """The part of a file to read.

    start, stop: a byte range of an uncompressed file of lines (the lines that begin in it), or a range of row
    groups; other files are read whole. resume_at, lines_done: `end` and `num_lines` of an earlier batch, to
    continue after it.
    """

    start: int = 0
    stop: int | None = None
    resume_at: int = 0
    lines_done: int = 0


WHOLE = Stretch()


class ReadRequest(msgspec.Struct, frozen=True):
    """Everything a format's reader is told. with_records: whole records are wanted beside the texts. offsets: only records
    that begin there are needed, and a reader may leave out others (ascending); None: all are.
    """

    path: Path
    file: StoredFile
    options: ReadOptions
    stretch: Stretch = WHOLE
    batch_bytes: int = BATCH_BYTES
    with_records: bool = False
    offsets: Sequence[int] | None = None

    @property
    def fields(self) -> Fields:
        """The fields to read, the file's own text field before the setting."""
        fields = self.options.fields
        return replace(fields, text=self.file.text_field) if self.file.text_field else fields

    def new_batch(self) -> RecordBatch:
        """An empty batch."""
        batch = RecordBatch()
        if self.with_records:
            batch.records, batch.rejected_records = [], []
        return batch


class RecordFormat(msgspec.Struct, frozen=True):
    """How the records of one kind of file are read.

    name: as in settings and listings. endings: of file names, lower case. read: gives batches of about
    `batch_bytes`, in the order of the file, each as soon as it is known; never raises for bad content
    (OSError is dealt with by the caller). compressible: whether a file may be compressed as a whole.
    divisible: whether an uncompressed file may be read in byte ranges. in_words: how a file becomes records,
    for people, given source.txt; "" where it goes without saying.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[[ReadRequest], Iterator[RecordBatch]]
    compressible: bool = True
    divisible: bool = False
    in_words: Callable[[str], str] = lambda txt: ""


class Damage(msgspec.Struct, frozen=True):
    """A place in a compressed file behind which nothing, or only what follows a gap, can be read.

    reason: one of batch.FILE_REASONS. stored_bytes: how many bytes as stored were lost; 0 if not known.
    """

    reason: str
    detail: str
    stored_bytes: int = 0


class Compression(msgspec.Struct, frozen=True):
    """How a compressed file becomes bytes.

    starts: whether bytes (64, or fewer of a shorter file) are the beginning of such a file. decompress(file,
    piece_bytes, max_window): pieces of about piece_bytes, and a Damage at each place that cannot be read;
    what comes after it, if anything, was found again. Every byte that can be decompressed is given, wherever
    the damage is. Memory is bounded by max_window plus some MB, whatever the file claims. Raises OSError only
    for the file itself.
    """

    name: str
    endings: tuple[str, ...]
    starts: Callable[[bytes], bool]
    decompress: Callable[[BinaryIO, int, int], Iterator[bytes | Damage]]
