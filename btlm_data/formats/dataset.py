"""dataset.json: what a prepared dataset *is*, as one typed structure that everybody reads and writes through
this module.

    Dataset    one prepared set: configuration, inputs, tokenizer, splits with their files, ledger
    SetList    in the folder above several sets: their names and checksums, in order

format_version 2. The file says nothing of paths, times, machines or program versions (that is
`provenance.json`), so the same corpus elsewhere gives the same bytes. Everything is named: files by name,
size and SHA-256; inputs by name, size and digest. `fingerprint` covers what the dataset was made from,
`checksum` everything else in the file: SHA-256 of its JSON without the key `checksum`, keys sorted, no white
space, UTF-8.

A dataset.json may come from a stranger. `decode` checks types, ranges and sizes, and every name that is ever
joined to a path: split names are train, validation or test; sets are `mslN`; files are plain names without
separators that do not begin with a dot. So nothing that reads a dataset can be led outside its folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from btlm_data.errors import DataError
from btlm_data.formats.ledger import SPLITS, Count, Row, ShortText, SplitName
from btlm_data.formats.sealed_json import (
    NO_CHECKSUM,
    Sha256,
    canonical,
    checksum_of,
    convert,
    missing,
    parse,
    read_small,
    refused,
    sealed,
)
from btlm_data.formats.shard_formats import FORMATS, get_format
from btlm_data.formats.shard_formats.order import SampleOrder, sample_purpose

FORMAT_VERSION = 2  # also the type of `format_version` below
FILE_NAME = "dataset.json"
UNFINISHED_NAME = "preparing.json"  # what output_folder.py leaves in a folder while a run owns it
DOCUMENTS = "documents.parquet"
DROPPED = "dropped.parquet"
MAX_BYTES = 1 << 29  # of a dataset.json: a million input files and shards, or 50,000 sources in every stage

_FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z"
_SHARD_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,195}\.h5\Z"
_SET_NAME = r"^msl[1-9][0-9]{0,6}\Z"
_SET_NAME_OR_NONE = r"^(msl[1-9][0-9]{0,6})?\Z"
_DIGEST = r"^[a-z0-9_-]{1,20}:[0-9a-f]{8,128}\Z"
_XXH3 = r"^[0-9a-f]{32}\Z"

FileName = Annotated[str, Meta(pattern=_FILE_NAME)]
ShardName = Annotated[str, Meta(pattern=_SHARD_NAME)]
SetName = Annotated[str, Meta(pattern=_SET_NAME)]
Shuffle = Literal["samples", "documents", "none"]


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the dataset. name: without its folder."""

    name: FileName
    bytes: Count
    sha256: Sha256


class ShardFile(StoredFile, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A shard. n_examples: rows (corpus: tokens). tokens: label positions (corpus: tokens). xxh3: XXH3 (128 bits) of the
    file, by which `forget` knows it again at a tenth of the time that SHA-256 takes; None in datasets from before it was
    recorded.
    """

    name: ShardName
    n_examples: Count
    tokens: Count
    xxh3: Annotated[str, Meta(pattern=_XXH3)] | None = None


class MixedSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source in a phase of a mix by budget: what it has there, and how many tokens the mix asked for."""

    documents: Count
    tokens: Count
    asked: Count


class MixPhase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A phase of a mix by budget: the next part of the stream, and of the order of samples. rows: of the shards
    (samples; corpus: tokens). tokens: of the stream.
    """

    name: Annotated[str, Meta(max_length=100)]
    documents: Count
    tokens: Count
    rows: Count
    sources: dict[ShortText, MixedSource]

    def __post_init__(self) -> None:
        sums = [sum(getattr(s, key) for s in self.sources.values()) for key in ("documents", "tokens")]
        if sums != [self.documents, self.tokens]:
            raise ValueError(
                f"its sources have {sums[0]} documents and {sums[1]} tokens, and it says otherwise"
            )


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One split. samples: None for a corpus. documents_file: its table of documents. phases: of a mix by budget, in
    order.
    """

    documents: Count
    stream_tokens: Count
    samples: Count | None
    label_tokens: Count
    files: list[ShardFile]
    documents_file: StoredFile
    phases: list[MixPhase] = []

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the shard {twice} is listed twice in files")
        if self.documents_file.name != DOCUMENTS:
            raise ValueError(f"documents_file.name is {self.documents_file.name!r}, expected {DOCUMENTS!r}")
        if self.phases:
            rows = sum(file.n_examples for file in self.files)
            for key, expected in (
                ("documents", self.documents),
                ("tokens", self.stream_tokens),
                ("rows", rows),
            ):
                total = sum(getattr(phase, key) for phase in self.phases)
                if total != expected:
                    raise ValueError(f"the phases have {total} {key} together, the split has {expected}")

    @property
    def borders(self) -> tuple[int, ...]:
        """Where its phases end, in tokens of the stream; () where there is one at most."""
        return tuple(accumulate(phase.tokens for phase in self.phases)) if len(self.phases) > 1 else ()

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """The same in rows."""
        return tuple(accumulate(phase.rows for phase in self.phases)) if len(self.phases) > 1 else ()


class Tokenizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What made the ids. name: `gpt2`, a hub id, or the last part of a path (provenance has all of it)."""

    name: ShortText
    fingerprint: ShortText
    eos_id: Annotated[int, Meta(ge=0, lt=2**31)]
    vocab_size: Annotated[int, Meta(ge=1, le=2**31)]

    def __post_init__(self) -> None:
        if self.eos_id >= self.vocab_size:
            raise ValueError(f"eos_id is {self.eos_id}, expected an id below vocab_size, {self.vocab_size}")


class InputFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source file.

    name: relative to the source, '/'-separated. digest: "ALGORITHM:HEX" of its bytes (input_digest.py), None
    where it was not read whole. source: the source name of all its documents, None where each record says it.
    text_field: where it differs from configuration.source.text_field.
    """

    name: ShortText
    split: SplitName
    size: Count
    digest: Annotated[str, Meta(pattern=_DIGEST)] | None = None
    source: ShortText | None = None
    text_field: ShortText | None = None

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if "\0" in self.name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"name is {self.name!r}, expected a relative path without '.' and '..'")


class LeftOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of the source that were not read. names: the first few of them."""

    reason: ShortText
    files: Count
    names: list[ShortText] = []


class SourceTotals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The source as a whole: files that were read, and their bytes as stored."""

    files: Count
    bytes: Count


class SetPosition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of the sets prepared together this is.

    names: their folders in order; [""] where this is the only one. share: this set's part of the documents,
    None where every set holds all documents.
    """

    index: Count = 0
    names: list[Annotated[str, Meta(pattern=_SET_NAME_OR_NONE)]] = msgspec.field(default_factory=lambda: [""])
    share: Annotated[float, Meta(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.index >= len(self.names):
            raise ValueError(f"index is {self.index}, expected an index of names ({len(self.names)})")


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """dataset.json of one set. configuration: every setting that decides bytes, without places of files."""

    fingerprint: Sha256
    configuration: dict[str, Any]
    source: SourceTotals
    inputs: list[InputFile]
    left_out: list[LeftOut]
    other_inputs: dict[ShortText, ShortText]
    tokenizer: Tokenizer
    seq_len: Annotated[int, Meta(ge=1, le=2**20)]
    format: ShortText
    shuffle: Shuffle
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    dtype: Literal["uint16", "uint32"]
    set: SetPosition
    splits: dict[SplitName, Split]
    ledger: list[Row]
    dedupe: dict[str, Any] | None
    outputs: list[StoredFile]
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[2] = 2

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}, expected one of {', '.join(FORMATS)}")
        names = [file.name for file in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError("outputs names a file twice")

    @property
    def tail(self) -> str:
        """What became of the last sample of a split: "pad" or "drop"."""
        return str(self.configuration.get("tail", "pad"))

    @property
    def shard_dtype(self) -> str:
        """The type of the numbers in shards."""
        shards = self.configuration.get("shards")
        chosen = shards.get("dtype") if isinstance(shards, dict) else None
        return get_format(self.format).element_type("uint16" if chosen == "uint16" else "int32", self.dtype)

    def split(self, name: str) -> Split:
        """The split of that name. Raises DataError if there is none."""
        if name not in self.splits:
            raise DataError(
                f"There is no split {name!r}. The dataset has {', '.join(self.splits) or 'none'}."
            )
        return self.splits[name]

    def sample_order(self, name: str, num_samples: int) -> SampleOrder | None:
        """The order of a split's samples; None where they stand as in the stream. num_samples: in its shards."""
        if self.shuffle != "samples" or not get_format(self.format).planes:
            return None
        entry = self.splits.get(name)
        ends = entry.phase_ends if entry else ()
        return SampleOrder(num_samples, self.seed, sample_purpose(self.seq_len, name), ends)

    def rows(self, stage: str, split: str | None = None) -> list[Row]:
        """The ledger's rows of one stage, of all splits or one."""
        return [row for row in self.ledger if row.stage == stage and split in (None, row.split)]

    def stored(self) -> Iterator[StoredFile]:
        """Every file that belongs to the set besides dataset.json; names are relative to the set's folder."""
        for name, split in self.splits.items():
            for file in (*split.files, split.documents_file):
                # Not built through the type's checks: a split's name and a file's make a path of two parts.
                yield StoredFile(f"{name}/{file.name}", file.bytes, file.sha256)
        yield from self.outputs

    def expected_fingerprint(self) -> str:
        """What `fingerprint` must be."""
        return fingerprint_of(self.configuration, self.inputs, self.tokenizer.fingerprint, self.other_inputs)


class SetReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A set of a folder of several. checksum: of its dataset.json."""

    name: SetName
    checksum: Sha256


class SetList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """dataset.json of a folder that holds several sets."""

    fingerprint: Sha256
    sets: list[SetReference]
    checksum: Sha256 = NO_CHECKSUM
    format_version: Literal[2] = 2

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) < len(names):
            raise ValueError("sets must name one set at least, and none twice")

    @property
    def names(self) -> list[str]:
        """Folders of the sets, in order."""
        return [entry.name for entry in self.sets]


# What is compared -------------------------------------------------------------------------------------------

# Settings that say where something is, not what it is. What they name enters the fingerprint by content:
# source files as `inputs`, the tokenizer by its own fingerprint, evaluation sets and an index as
# `other_inputs`.
_PLACES = (
    ("source", "name"),
    ("source", "revision"),
    ("tokenizer", "name"),
    ("tokenizer", "revision"),
)
_FILES_OF_FILTERS = ("function", "bad_words_file")
_NAMED_BY_PLACE = (("dedupe", "index"), ("holdout", "decontaminate"))  # the last part of the path is kept


def without_locations(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as dataset.json records it: without the places of files (see provenance.json)."""
    kept = {key: dict(value) if isinstance(value, Mapping) else value for key, value in configuration.items()}
    for section, key in _PLACES:
        if isinstance(kept.get(section), dict):
            kept[section].pop(key, None)
    for section, key in _NAMED_BY_PLACE:
        if isinstance(kept.get(section), dict) and kept[section].get(key):
            value = kept[section][key]
            kept[section][key] = (
                _last_part(value) if isinstance(value, str) else [_last_part(v) for v in value]
            )
    clean = kept.get("clean")
    if isinstance(clean, dict) and isinstance(clean.get("filters"), list):
        clean["filters"] = [_filter_without_locations(entry) for entry in clean["filters"]]
    return kept


def _filter_without_locations(entry: Any) -> Any:
    """An entry of clean.filters; the files that it names enter the fingerprint by content."""
    if isinstance(entry, str):
        return _last_part(entry)
    if not isinstance(entry, Mapping):
        return entry
    return {
        key: _last_part(value)
        if key in _FILES_OF_FILTERS and isinstance(value, str)
        else _filter_without_locations(value)
        if isinstance(value, Mapping)
        else value
        for key, value in entry.items()
    }


def _last_part(path: object) -> str:
    return str(path).rstrip("/").rsplit("/", 1)[-1]


def fingerprint_of(
    configuration: Mapping[str, Any],
    inputs: Iterable[InputFile],
    tokenizer: str,
    other_inputs: Mapping[str, str],
) -> str:
    """What a dataset was made from, as hex SHA-256; equal for equal content, wherever it is.

    configuration: as without_locations returns it. tokenizer: its fingerprint. other_inputs: digests of
    whatever else decides bytes (functions and word lists of filters, evaluation sets, an index), by what it
    is.
    """
    files = [[file.split, file.name, file.size, file.digest, file.source, file.text_field] for file in inputs]
    parts = [FORMAT_VERSION, configuration, files, tokenizer, dict(other_inputs)]
    return hashlib.sha256(canonical(parts)).hexdigest()


_IN_WORDS = {
    _FILE_NAME: "a file name of letters, digits, '.', '_' and '-'",
    _SHARD_NAME: "the name of a shard, such as data-00000.h5",
    _SET_NAME: "the name of a set, such as msl2048",
    _SET_NAME_OR_NONE: "the name of a set, such as msl2048, or nothing",
    _DIGEST: "a digest, such as xxh3_128_64m:0f3c...",
    _XXH3: "32 hexadecimal digits",
    r"^(train|validation|test)\Z": "train, validation or test",
}


# Writing and reading ----------------------------------------------------------------------------------------


def encode(value: Dataset | SetList) -> bytes:
    """The file of a dataset; the same value gives the same bytes. Raises DataError for what `decode` would
    refuse.
    """
    data = sealed(msgspec.to_builtins(value))
    decode(data, FILE_NAME)
    return data


def decode(data: bytes, shown: str, *, sealed: bool = True) -> Dataset | SetList:
    """The dataset that `data` describes; its splits come as train, validation, test.

    shown: the file's name for messages. sealed: require the right checksum. Raises DataError that names the
    key, its value and what was expected.
    """
    if len(data) > MAX_BYTES:
        raise refused(shown, f"it has {len(data):,} bytes, more than any dataset.json")
    tree = parse(data, shown)
    version = tree.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise DataError(
            f"{shown} has format version {version!r}; this program reads {FORMAT_VERSION}. "
            + (
                "Prepare the dataset again with this btlm-data."
                if version == 1
                else "Use the btlm-data that wrote it, or prepare the dataset again."
            )
        )
    if isinstance(splits := tree.get("splits"), dict):
        tree["splits"] = {name: splits[name] for name in sorted(splits, key=_split_order)}
    kind: type[Dataset | SetList] = SetList if "sets" in tree else Dataset
    value = convert(tree, kind, shown, _IN_WORDS)
    if sealed and tree.get("checksum") != (expected := checksum_of(tree)):
        raise refused(
            shown,
            f"checksum is {value.checksum}, the content gives {expected}: the file was changed or damaged",
        )
    return value


class _Store(Protocol):
    @property
    def shown(self) -> str: ...
    def size(self, name: str) -> int | None: ...
    def read(self, name: str) -> bytes: ...


def read(location: Path | _Store) -> Dataset | SetList:
    """The dataset.json of a folder (or the file itself), local or in a store. Raises DataError if it is
    missing or wrong.
    """
    return decode(*read_bytes(location))


def read_set(location: Path | _Store) -> Dataset:
    """The same, where one set is expected."""
    value = read(location)
    if isinstance(value, SetList):
        raise DataError(
            f"{_shown(location)} holds {len(value.sets)} sets, one was expected. Name one of "
            f"{', '.join(value.names)}."
        )
    return value


def read_sets(folder: Path) -> dict[str, Dataset]:
    """Every set of a dataset by its folder's name; "" where there is one set, in the folder itself."""
    value = read(folder)
    if isinstance(value, Dataset):
        return {"": value}
    sets: dict[str, Dataset] = {}
    for entry in value.sets:
        sets[entry.name] = dataset = read_set(folder / entry.name)
        if dataset.checksum != entry.checksum:
            raise DataError(
                f"{folder / entry.name / FILE_NAME} has checksum {dataset.checksum}, {folder / FILE_NAME} "
                f"says {entry.checksum}. "
                "The two are not of one run: restore them from one copy, or prepare the dataset again."
            )
    return sets


def read_bytes(location: Path | _Store) -> tuple[bytes, str]:
    """(content, name for messages) of a dataset.json; only a regular file of bounded size is read."""
    if not isinstance(location, Path):
        shown = f"{location.shown.rstrip('/')}/{FILE_NAME}"
        size = location.size(FILE_NAME)
        if size is None:
            raise _missing(shown, location.size(UNFINISHED_NAME) is not None)
        if size > MAX_BYTES:
            raise refused(shown, f"it has {size:,} bytes, more than any dataset.json")
        return location.read(FILE_NAME), shown
    path = location if location.name == FILE_NAME else location / FILE_NAME
    if not os.path.lexists(path) and (path.parent / UNFINISHED_NAME).exists():
        raise _missing(str(path), True)
    return read_small(path, MAX_BYTES), str(path)


def _missing(shown: str, is_unfinished: bool) -> DataError:
    """The error for a dataset.json that is not there, or not yet."""
    if not is_unfinished:
        return missing(shown)
    return DataError(
        f"There is no {shown} yet: the folder is being prepared, or its run was stopped. Finish it first: run the "
        "same command again."
    )


def _shown(location: Path | _Store) -> str:
    return str(location) if isinstance(location, Path) else location.shown


def _split_order(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else len(SPLITS)
