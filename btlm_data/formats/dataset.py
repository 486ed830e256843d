"""dataset.json: what a prepared dataset *is*, as one typed structure that everybody reads and writes through this module.

    Dataset    one prepared set: its configuration, inputs, tokenizer, splits with their files, ledger. In its folder.
    SetList    a folder of several sets: their names and checksums, in order. In the folder above the sets.

format_version 2. The file says nothing of paths, times, machines or program versions (that is `provenance.json`), so the
same corpus elsewhere gives the same bytes. Everything is named: files by name, size and SHA-256; inputs by name, size
and digest. `fingerprint` covers what the dataset was made from, `checksum` everything else in the file: SHA-256 of its
JSON without the key `checksum`, keys sorted, no white space, UTF-8.

A dataset.json may come from a stranger. `decode` checks types, ranges and sizes, and every name that is ever joined to a
path: split names are train, validation or test; sets are `mslN`; files are plain names without separators that do not
begin with a dot. So nothing that reads a dataset can be led outside its folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from btlm_data.errors import DataError
from btlm_data.formats.ledger import SPLITS, Count, Row, ShortText, SplitName

FORMAT_VERSION = 2  # also the type of `format_version` below
FILE_NAME = "dataset.json"
DOCUMENTS = "documents.parquet"
MAX_BYTES = 1 << 29  # of a dataset.json: a million input files and shards, or 50,000 sources in every stage
NO_CHECKSUM = "0" * 64

_SHA256 = r"^[0-9a-f]{64}\Z"
_FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z"
_SHARD_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,195}\.h5\Z"
_SET_NAME = r"^msl[1-9][0-9]{0,6}\Z"
_SET_NAME_OR_NONE = r"^(msl[1-9][0-9]{0,6})?\Z"
_DIGEST = r"^[a-z0-9_-]{1,20}:[0-9a-f]{8,128}\Z"

Sha256 = Annotated[str, Meta(pattern=_SHA256)]
FileName = Annotated[str, Meta(pattern=_FILE_NAME)]
ShardName = Annotated[str, Meta(pattern=_SHARD_NAME)]
SetName = Annotated[str, Meta(pattern=_SET_NAME)]
Format = Literal["sample", "corpus", "vsl"]
Shuffle = Literal["samples", "documents", "none"]


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the dataset. name: without its folder."""

    name: FileName
    bytes: Count
    sha256: Sha256


class ShardFile(StoredFile, frozen=True, forbid_unknown_fields=True):
    """A shard. n_examples: rows (corpus: tokens). tokens: label positions (corpus: tokens)."""

    name: ShardName
    n_examples: Count
    tokens: Count


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One split. samples: None for a corpus. documents_file: its table of documents."""

    documents: Count
    stream_tokens: Count
    samples: Count | None
    label_tokens: Count
    files: list[ShardFile]
    documents_file: StoredFile

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the shard {twice} is listed twice in files")
        if self.documents_file.name != DOCUMENTS:
            raise ValueError(f"documents_file.name is {self.documents_file.name!r}, expected {DOCUMENTS!r}")


class Tokenizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What made the ids. name: `gpt2`, a hub id, or the last part of a path (the whole path is provenance)."""

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
    where it was not read whole. source: the source name of
    all its documents, None where each record says it. text_field: where it differs from configuration.source.text_field.
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


class SetPosition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of the sets prepared together this is.

    names: their folders in order; [""] where this is the only one. share: this set's part of the documents, None where
    every set holds all documents.
    """

    index: Count = 0
    names: list[Annotated[str, Meta(pattern=_SET_NAME_OR_NONE)]] = msgspec.field(default_factory=lambda: [""])
    share: Annotated[float, Meta(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.index >= len(self.names):
            raise ValueError(f"index is {self.index}, expected an index of names ({len(self.names)})")


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """dataset.json of one set. configuration: every setting that decides bytes, without the places of files."""

    fingerprint: Sha256
    configuration: dict[str, Any]
    inputs: list[InputFile]
    left_out: list[LeftOut]
    other_inputs: dict[ShortText, ShortText]
    tokenizer: Tokenizer
    seq_len: Annotated[int, Meta(ge=1, le=2**20)]
    format: Format
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
        if self.format == "corpus":
            return "uint16" if self.dtype == "uint16" else "int32"
        shards = self.configuration.get("shards")
        chosen = shards.get("dtype") if isinstance(shards, dict) and self.format == "sample" else None
        return chosen if chosen in ("int32", "uint16") else "int32"

    def split(self, name: str) -> Split:
        """The split of that name. Raises DataError if there is none."""
        if name not in self.splits:
            raise DataError(
                f"There is no split {name!r}. The dataset has {', '.join(self.splits) or 'none'}."
            )
        return self.splits[name]

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


# What is compared --------------------------------------------------------------------------------------------------

# Settings that say where something is, not what it is. What they name enters the fingerprint by content: source files as
# `inputs`, the tokenizer by its own fingerprint, evaluation sets and an index as `other_inputs`.
_PLACES = (
    ("source", "name"),
    ("source", "revision"),
    ("tokenizer", "name"),
    ("tokenizer", "revision"),
)
_NAMED_BY_PLACE = (("dedupe", "index"), ("holdout", "decontaminate"))  # the last part of the path is kept


def without_places(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as dataset.json records it: without the places of files, which provenance.json keeps."""
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
    return kept


def _last_part(place: object) -> str:
    return str(place).rstrip("/").rsplit("/", 1)[-1]


def fingerprint_of(
    configuration: Mapping[str, Any],
    inputs: Iterable[InputFile],
    tokenizer: str,
    other_inputs: Mapping[str, str],
) -> str:
    """What a dataset was made from, as hex SHA-256; equal for equal content, wherever it lies.

    configuration: as without_places returns it. tokenizer: its fingerprint. other_inputs: digests of whatever else
    decides bytes (functions and word lists of filters, evaluation sets, an index), by what it is.
    """
    files = [[file.split, file.name, file.size, file.digest, file.source, file.text_field] for file in inputs]
    parts = [FORMAT_VERSION, configuration, files, tokenizer, dict(other_inputs)]
    return hashlib.sha256(_canonical(parts)).hexdigest()


def _canonical(tree: object) -> bytes:
    return json.dumps(
        tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def checksum_of(tree: Mapping[str, Any]) -> str:
    """The checksum that the JSON object `tree` should carry."""
    return hashlib.sha256(_canonical({k: v for k, v in tree.items() if k != "checksum"})).hexdigest()


def sealed(tree: Mapping[str, Any]) -> bytes:
    """A JSON object with its checksum, as it stands on disk: keys sorted, a final newline."""
    return msgspec.json.format(_canonical({**tree, "checksum": checksum_of(tree)}), indent=1) + b"\n"


# Writing and reading -----------------------------------------------------------------------------------------------


def encode(value: Dataset | SetList) -> bytes:
    """The file of a dataset; the same value gives the same bytes. Raises DataError for what `decode` would refuse."""
    data = sealed(msgspec.to_builtins(value))
    decode(data, FILE_NAME)
    return data


def decode(data: bytes, shown: str, *, sealed: bool = True) -> Dataset | SetList:
    """The dataset that `data` describes; its splits come as train, validation, test.

    shown: the file's name for messages. sealed: require the right checksum. Raises DataError that names the key, its value
    and what was expected.
    """
    if len(data) > MAX_BYTES:
        raise _refused(shown, f"it has {len(data):,} bytes, more than any dataset.json")
    tree = _parse(data, shown)
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
    value = _convert(tree, SetList if "sets" in tree else Dataset, shown)
    if sealed and tree.get("checksum") != (expected := checksum_of(tree)):
        raise _refused(
            shown,
            f"checksum is {value.checksum}, the content gives {expected}: the file was changed or damaged",
        )
    return value


class _Store(Protocol):
    @property
    def shown(self) -> str: ...
    def size(self, name: str) -> int | None: ...
    def read(self, name: str) -> bytes: ...


def read(place: Path | _Store) -> Dataset | SetList:
    """The dataset.json of a folder (or the file itself), local or in a store. Raises DataError if it is missing or wrong."""
    return decode(*read_bytes(place))


def read_set(place: Path | _Store) -> Dataset:
    """The same, where one set is expected."""
    value = read(place)
    if isinstance(value, SetList):
        raise DataError(
            f"{_shown(place)} holds {len(value.sets)} sets, one was expected. Name one of {', '.join(value.names)}."
        )
    return value


def read_sets(folder: Path) -> dict[str, Dataset]:
    """Every set of a dataset by its folder's name; "" where there is one set, in the folder itself."""
    value = read(folder)
    if isinstance(value, Dataset):
        return {"": value}
    sets: dict[str, Dataset] = {}
    for entry in value.sets:
        sets[entry.name] = one = read_set(folder / entry.name)
        if one.checksum != entry.checksum:
            raise DataError(
                f"{folder / entry.name / FILE_NAME} has checksum {one.checksum}, {folder / FILE_NAME} says {entry.checksum}. "
                "The two are not of one run: restore them from one copy, or prepare the dataset again."
            )
    return sets


def read_bytes(place: Path | _Store) -> tuple[bytes, str]:
    """(content, name for messages) of a dataset.json; only a regular file of bounded size is read."""
    if not isinstance(place, Path):
        shown = f"{place.shown.rstrip('/')}/{FILE_NAME}"
        size = place.size(FILE_NAME)
        if size is None:
            raise _missing(shown)
        if size > MAX_BYTES:
            raise _refused(shown, f"it has {size:,} bytes, more than any dataset.json")
        return place.read(FILE_NAME), shown
    path = place if place.name == FILE_NAME else place / FILE_NAME
    return read_small(path, MAX_BYTES), str(path)


def read_small(path: Path, max_bytes: int) -> bytes:
    """A regular file of bounded size, read whole. Raises DataError for anything else: a pipe or a device would hang."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _refused(str(path), "it is not a regular file")
        if status.st_size > max_bytes:
            raise _refused(str(path), f"it has {status.st_size:,} bytes, at most {max_bytes:,} are expected")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(str(path)) from None
    except (OSError, ValueError) as error:
        raise _refused(str(path), getattr(error, "strerror", None) or str(error)) from None


def _shown(place: Path | _Store) -> str:
    return str(place) if isinstance(place, Path) else place.shown


def _missing(shown: str) -> DataError:
    return DataError(f"There is no {shown}. Name a dataset folder made by `btlm-data prepare`.")


def _refused(shown: str, problem: str) -> DataError:
    return DataError(f"{shown} cannot be used: {problem}. Restore it, or prepare the dataset again.")


def _split_order(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else len(SPLITS)


def _parse(data: bytes, shown: str) -> dict[str, Any]:
    try:
        tree = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(shown, f"it is not valid JSON ({error})") from None
    if not isinstance(tree, dict):
        raise _refused(shown, f"it holds a {type(tree).__name__}, expected an object")
    if not _finite(tree):
        raise _refused(shown, "it holds a number that is not finite")
    return tree


def _finite(tree: object) -> bool:
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return False
        stack.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    return True


def _convert(tree: dict[str, Any], kind: type[Dataset | SetList], shown: str) -> Dataset | SetList:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise DataError(_explain(tree, kind, shown, error)) from None
    except RecursionError:
        raise _refused(shown, "it is nested too deeply") from None


_IN_WORDS = {
    _SHA256: "64 hexadecimal digits",
    _FILE_NAME: "a file name of letters, digits, '.', '_' and '-'",
    _SHARD_NAME: "the name of a shard, such as data-00000.h5",
    _SET_NAME: "the name of a set, such as msl2048",
    _SET_NAME_OR_NONE: "the name of a set, such as msl2048, or nothing",
    _DIGEST: "a digest, such as xxh3_128_64m:0f3c...",
    r"^(train|validation|test)\Z": "train, validation or test",
}

# The key of a mistake ----------------------------------------------------------------------------------------------

_AT = re.compile(r"^(?P<message>.*?)(?: - at `(?P<inner>[^`]*)`(?: in `(?P<outer>[^`]*)`)?)?$", re.DOTALL)


def _explain(tree: dict[str, Any], kind: type[object], shown: str, error: msgspec.ValidationError) -> str:
    """The mistake with its key's full path and value.

    The decoder names a position as `$.splits[...].files[0].bytes`; which key of a dictionary it was is found by trying.
    """
    match = _AT.match(str(error))
    message, inner, outer = match.groups() if match else (str(error), None, None)
    keys = _keys(tree, kind, str(error), outer or inner or "$")
    value: object = tree
    for key in keys:
        value = value[key]  # type: ignore[index]  # a key of it, by construction
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    message = re.sub(r"^Object (missing|contains)", lambda found: f"it {found[1]}", message).replace("`", "")
    for pattern, words in _IN_WORDS.items():
        message = message.replace(f"str matching regex {pattern!r}", words)
    message = message.splitlines()[0]
    if inner == "key" and isinstance(value, dict):
        value = _failing_key(tree, kind, str(error), keys, value)
    if not isinstance(value, dict | list):
        text = repr(value)
        message = f"{message}, found {text if len(text) <= 80 else text[:77] + '...'}"
    return f"{shown}: {path or 'the file'}: {message}. Restore the file, or prepare the dataset again."


def _keys(tree: dict[str, Any], kind: type[object], problem: str, path: str) -> list[str | int]:
    """Keys from the root to the value that `path` means."""
    keys: list[str | int] = []
    value: object = tree
    for token in re.findall(r"\.[^.\[]+|\[\d+\]|\[\.\.\.\]", path):
        if token == "[...]" and isinstance(value, dict):
            key: str | int = _failing_key(tree, kind, problem, keys, value)
        elif token == "[...]":
            break
        else:
            key = int(token[1:-1]) if token[0] == "[" else token[1:]
        try:
            value = value[key]  # type: ignore[index]  # dict or list, as the decoder says
        except (LookupError, TypeError):
            break
        keys.append(key)
    return keys


def _failing_key(
    tree: dict[str, Any], kind: type[object], problem: str, keys: list[str | int], value: dict[str, Any]
) -> str:
    """The key of the dictionary at `keys` whose value is the mistake, by halving."""
    names = list(value)
    while len(names) > 1:
        half = names[: len(names) // 2]
        try:
            msgspec.convert(_replaced(tree, keys, {name: value[name] for name in half}), kind)
        except msgspec.ValidationError as error:
            names = half if str(error) == problem else names[len(names) // 2 :]
        else:
            names = names[len(names) // 2 :]
    return names[0]


def _replaced(tree: Any, keys: list[str | int], value: object) -> Any:
    """A copy of a tree with one value replaced."""
    if not keys:
        return value
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[keys[0]] = _replaced(tree[keys[0]], keys[1:], value)
    return copy
