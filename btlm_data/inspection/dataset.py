"""Find out what a path holds: a prepared dataset, a split or a shard of one, several sets, or shards that others made.

Nothing here trusts what is on disk: a dataset.json is decoded against the types below (its layout is documented in
formats/manifest.py), and whatever does not fit becomes a message that names the key.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from btlm_data.errors import DataError
from btlm_data.formats.manifest import FILE_NAME, FORMAT_VERSION
from btlm_data.formats.shard_formats import reader as shards
from btlm_data.task import Amount

DOCUMENTS = "documents.parquet"
MODEL_ZOO_PARAMS = "data_params.json"
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:/")  # pathlib has made one slash of two
MAX_MANIFEST_BYTES = 1 << 30


class FileEntry(msgspec.Struct, frozen=True):
    """A shard as the manifest lists it."""

    name: str
    n_examples: int
    tokens: int
    sha256: str
    bytes: int


class Listed(msgspec.Struct, frozen=True):
    """Any other file of a split."""

    name: str
    sha256: str
    bytes: int


class SplitEntry(msgspec.Struct, frozen=True):
    """One split. samples is None for a corpus."""

    documents: int
    stream_tokens: int
    label_tokens: int
    files: list[FileEntry]
    samples: int | None = None
    documents_file: Listed | None = None


class TokenizerEntry(msgspec.Struct, frozen=True):
    """What is needed to read ids."""

    name: str
    fingerprint: str
    eos_id: int
    vocab_size: int
    revision: str | None = None


class InputEntry(msgspec.Struct, frozen=True):
    """A source file."""

    name: str
    split: str
    size: int | None = None
    sha256: str | None = None
    source: str | None = None


class SetEntry(msgspec.Struct, frozen=True):
    """Which of the sets prepared together this is; share: its part of the documents, None where all sets have all."""

    index: int = 0
    share: float | None = None
    names: list[str] = []


class AmountEntry(msgspec.Struct, frozen=True):
    """A ledger's amount."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    @property
    def amount(self) -> Amount:
        """The same as the stages count it."""
        return Amount(self.documents, self.bytes, self.tokens)


class LedgerEntry(msgspec.Struct, frozen=True, rename={"came_in": "in"}):
    """What one stage did with one source of one split."""

    stage: str
    split: str
    source: str
    came_in: AmountEntry
    added: dict[str, AmountEntry]
    dropped: dict[str, AmountEntry]
    out: AmountEntry


class Manifest(msgspec.Struct, frozen=True):
    """dataset.json of one set."""

    format_version: int
    fingerprint: str
    version: str
    configuration: dict[str, Any]
    tokenizer: TokenizerEntry
    seq_len: int
    format: Literal["sample", "corpus", "vsl"]
    shuffle: Literal["samples", "documents", "none"]
    seed: int
    dtype: str
    splits: dict[str, SplitEntry]
    ledger: list[LedgerEntry]
    inputs: list[InputEntry] = []
    set: SetEntry = SetEntry()
    source: dict[str, Any] | None = None
    dedupe: dict[str, Any] | None = None
    outputs: dict[str, dict[str, Any]] = {}

    @property
    def tail(self) -> str:
        """What became of the last sample: "pad" or "drop"."""
        return str(self.configuration.get("tail", "pad"))

    @property
    def shard_dtype(self) -> str:
        """The type shards should have."""
        if self.format == "corpus":
            return "uint16" if self.dtype == "uint16" else "int32"
        options = self.configuration.get("shards")
        return (
            str(options.get("dtype", "int32"))
            if isinstance(options, dict) and self.format == "sample"
            else "int32"
        )


class SetList(msgspec.Struct, frozen=True):
    """dataset.json of a folder that holds several sets."""

    format_version: int
    sets: list[str]
    sha256: dict[str, str] = {}


@dataclass(frozen=True)
class Opened:
    """What stands at a path.

    root: the dataset's folder (of a foreign one: where its shards are). problem: why the dataset.json that is there cannot be
    used. splits: shards on disk by split, sorted by name as readers sort them. chosen: the one split, and only: the one
    shard, that the path names. sets: folders of several sets, each a dataset. foreign: what a Model Zoo data_params.json says.
    """

    path: Path
    root: Path
    manifest: Manifest | None = None
    problem: str | None = None
    splits: dict[str, list[Path]] = field(default_factory=dict)
    chosen: str | None = None
    only: Path | None = None
    sets: SetList | None = None
    foreign: dict[str, Any] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        """A file of the dataset for people: relative to its folder."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.as_posix()

    def documents_path(self, split: str) -> Path:
        """Where the split's table of documents should be."""
        return self.root / split / DOCUMENTS

    @property
    def eos_id(self) -> int | None:
        """The id that ends documents, where somebody says so."""
        return self.manifest.tokenizer.eos_id if self.manifest else _integer(self.foreign.get("eos_id"))

    @property
    def vocab_size(self) -> int | None:
        """One more than the largest id, where somebody says so."""
        return (
            self.manifest.tokenizer.vocab_size if self.manifest else _integer(self.foreign.get("vocab_size"))
        )


def open_path(path: Path) -> Opened:
    """Look at `path`: a dataset folder, a split folder, a shard, a folder of sets, or a folder of anybody's shards.

    A split folder or a shard below a dataset finds it. Raises DataError if there is nothing to look at.
    """
    if _URL.match(str(path)):
        raise DataError(
            f"{path} is no folder on this machine. Copy the dataset here first (for example with `aws s3 sync`), or name the copy that "
            "the run left in its work folder (WORK/dataset)."
        )
    path = path.absolute()
    try:
        if path.is_file():
            return _open_file(path)
        if path.is_dir():
            return _open_folder(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error
    raise DataError(f"There is no {path}. Name a dataset folder, a split folder or a shard (.h5).")


def _open_file(path: Path) -> Opened:
    if path.name == FILE_NAME:
        return _open_folder(path.parent)
    if path.suffix not in (".h5", ".hdf5"):
        raise DataError(
            f"{path} is no shard: its name does not end in .h5. Name a dataset folder, a split folder or a shard (.h5)."
        )
    above = path.parent.parent
    if (above / FILE_NAME).exists():
        opened = _open_folder(above)
        if opened.manifest is not None and path.parent.name in opened.splits and opened.sets is None:
            return Opened(
                path,
                opened.root,
                opened.manifest,
                opened.problem,
                opened.splits,
                path.parent.name,
                path,
                foreign=opened.foreign,
            )
    return Opened(
        path,
        path.parent,
        splits={path.parent.name or "shards": [path]},
        only=path,
        foreign=_model_zoo_params(path.parent),
    )


def _open_folder(path: Path) -> Opened:
    own = path / FILE_NAME
    if own.exists():
        decoded = _decode(own)
        if isinstance(decoded, SetList):
            return Opened(path, path, sets=decoded)
        if isinstance(decoded, Manifest):
            splits = {split: _shards_in(path / split) for split in decoded.splits}
            return Opened(path, path, decoded, splits=splits)
        return Opened(
            path, path, problem=decoded, splits=_foreign_splits(path), foreign=_model_zoo_params(path)
        )
    if (path.parent / FILE_NAME).exists():
        above = _open_folder(path.parent)
        if above.sets is None and path.name in above.splits:
            return Opened(
                path,
                above.root,
                above.manifest,
                above.problem,
                above.splits,
                path.name,
                foreign=above.foreign,
            )
    splits = _foreign_splits(path)
    if not splits:
        raise DataError(
            f"{path} holds no shards (*.h5) and no {FILE_NAME}. Name a dataset folder, a split folder or a shard."
        )
    return Opened(path, path, splits=splits, foreign=_model_zoo_params(path))


def _shards_in(folder: Path) -> list[Path]:
    """As readers see them: *.h5, not recursive, in text order."""
    return sorted(p for p in folder.glob("*.h5") if not p.name.startswith("."))


def _foreign_splits(path: Path) -> dict[str, list[Path]]:
    """The folder's own shards, or those of its sub-folders (one level), by name."""
    own = _shards_in(path)
    splits = {path.name or "shards": own} if own else {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if found := _shards_in(folder):
            splits[folder.name] = found
    return splits


def _decode(path: Path) -> Manifest | SetList | str:
    """The manifest, or in words what is wrong with it."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return f"{FILE_NAME} is {path.stat().st_size} bytes, more than any manifest"
        raw = path.read_bytes()
        tree = msgspec.json.decode(raw)
    except OSError as error:
        return f"{FILE_NAME} cannot be read: {error.strerror or error}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"{FILE_NAME} is not valid JSON: {error}"
    if not isinstance(tree, dict):
        return f"{FILE_NAME} holds a {type(tree).__name__}, expected an object"
    version = tree.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        return f"{FILE_NAME} is of format version {version!r}; this program knows {FORMAT_VERSION}"
    try:
        decoded = msgspec.convert(tree, SetList) if "sets" in tree else msgspec.convert(tree, Manifest)
    except msgspec.ValidationError as error:
        return f"{FILE_NAME}: {error}"
    if isinstance(decoded, Manifest):
        return _sane(decoded) or decoded
    return next(
        (f"{FILE_NAME}: set {name!r} is no folder name" for name in decoded.sets if not _plain(name)), decoded
    )


def _sane(manifest: Manifest) -> str | None:
    """What types alone cannot say, so that everybody after may count on it."""
    names = [
        *manifest.splits,
        *(f.name for s in manifest.splits.values() for f in s.files),
        *manifest.outputs,
    ]
    names += [s.documents_file.name for s in manifest.splits.values() if s.documents_file]
    for name in names:
        if not _plain(name):
            return f"{FILE_NAME}: {name!r} is no plain file name"
    if manifest.seq_len < 1:
        return f"{FILE_NAME}: seq_len is {manifest.seq_len}, expected at least 1"
    if not 0 <= manifest.tokenizer.eos_id < manifest.tokenizer.vocab_size:
        return f"{FILE_NAME}: tokenizer.eos_id is {manifest.tokenizer.eos_id}, expected an id below {manifest.tokenizer.vocab_size}"
    if len(manifest.set.names) > 1 and not 0 <= manifest.set.index < len(manifest.set.names):
        return f"{FILE_NAME}: set.index is {manifest.set.index}, expected an index of set.names"
    for split, entry in manifest.splits.items():
        counts = {
            "documents": entry.documents,
            "stream_tokens": entry.stream_tokens,
            "label_tokens": entry.label_tokens,
        }
        counts["samples"] = entry.samples or 0
        for key, value in counts.items():
            if not 0 <= value < 2**48:
                return f"{FILE_NAME}: splits.{split}.{key} is {value}, expected a count"
    return None


def _plain(name: str) -> bool:
    return (
        bool(name) and name not in (".", "..") and "/" not in name and "\\" not in name and "\0" not in name
    )


def _model_zoo_params(folder: Path) -> dict[str, Any]:
    """What the Model Zoo's data_params.json says of the shards beside it: eos_id, pad_id, max_seq_length, vocab_size, tokenizer."""
    path = folder / MODEL_ZOO_PARAMS
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found: dict[str, Any] = {}
    for section in tree.values() if isinstance(tree, dict) else ():
        if not isinstance(section, dict):
            continue
        for key in ("eos_id", "pad_id", "max_seq_length", "vocab_size"):
            if _integer(section.get(key)) is not None:
                found.setdefault(key, section[key])
        for key in ("huggingface_tokenizer", "tokenizer_type"):
            if isinstance(section.get(key), str):
                found.setdefault("tokenizer", section[key])
    return found


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its library raise into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path} asks for more memory than there is. It is damaged, or not a shard; restore or remake it."
        ) from error
    # h5py and pyarrow raise all of these for torn files, `KeyError` and `AttributeError` for objects of an unexpected kind.
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        NotImplementedError,
    ) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged: {detail}. Restore it or prepare the dataset again.") from error


def layout_of(path: Path) -> shards.ShardLayout:
    """`shards.read_shard_info` for a file that may be anything. Raises DataError."""
    with reading(path):
        return shards.read_shard_info(path)
