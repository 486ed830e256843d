"""Find out what a path holds: a prepared dataset, a split or a shard of one, several sets, or shards that
others made.

Nothing here trusts what is on disk: a dataset.json is decoded against the types of formats/dataset.py, and
whatever does not fit becomes a message that names the key.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt

from btlm_data.errors import DataError, InputError
from btlm_data.formats.dataset import (
    DOCUMENTS,
    FILE_NAME,
    UNFINISHED_NAME,
    Dataset,
    SetList,
    decode,
    read_bytes,
)
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.formats.sealed_json import read_small
from btlm_data.formats.shard_formats import reader as shards

WORK_FOLDER = ".work"  # where no other is named
MODEL_ZOO_PARAMS = "data_params.json"
MAX_PARAMS_BYTES = 1 << 20
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:/")  # pathlib has made one slash of two


class Opened(msgspec.Struct, frozen=True):
    """What is at a path.

    root: the dataset's folder (of a foreign one: where its shards are). problem: what is wrong with the
    dataset.json that is there; without a manifest, it could not be used at all. splits: shards on disk by
    split, sorted by name as readers sort them. chosen: the one split, and only: the one shard, that the path
    names. sets: folders of several sets, each a dataset. foreign: what a Model Zoo data_params.json says.
    preparing: how far a run has come that is not finished.
    """

    path: Path
    root: Path
    manifest: Dataset | None = None
    problem: str | None = None
    splits: dict[str, list[Path]] = msgspec.field(default_factory=dict)
    chosen: str | None = None
    only: Path | None = None
    sets: SetList | None = None
    foreign: dict[str, Any] = msgspec.field(default_factory=dict)
    preparing: str | None = None

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
        """The id that ends documents, where dataset.json or data_params.json says it."""
        return self.manifest.tokenizer.eos_id if self.manifest else _integer(self.foreign.get("eos_id"))

    @property
    def vocab_size(self) -> int | None:
        """One more than the largest id, where dataset.json or data_params.json says it."""
        return (
            self.manifest.tokenizer.vocab_size if self.manifest else _integer(self.foreign.get("vocab_size"))
        )


def refuse_url(path: Path) -> None:
    """Raise InputError if a path is the URL of something in an object store: datasets there are read from a copy."""
    if _URL.match(str(path)):
        url = str(path).replace(":/", "://", 1)
        raise InputError(
            f"{url} is no folder on this machine. Copy the dataset here (for example with `aws s3 sync {url} "
            f"COPY`) and name the copy; its report alone is written by `btlm-data inspect {url} --html`."
        )


def open_path(path: Path) -> Opened:
    """Look at `path`: a dataset folder, a split folder, a shard, a folder of sets, or a folder of anybody's
    shards.

    A split folder or a shard below a dataset finds it. Raises DataError if there is nothing to look at,
    InputError if there is nothing at all, or `path` is the URL of an object store.
    """
    refuse_url(path)
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
    raise InputError(f"There is no {path}. Name a dataset folder, a split folder or a shard (.h5).")


def _open_file(path: Path) -> Opened:
    if path.name == FILE_NAME:
        return _open_folder(path.parent)
    if path.suffix not in (".h5", ".hdf5"):
        raise InputError(
            f"{path} is no shard: its name does not end in .h5. Name a dataset folder, a split folder or "
            "a shard (.h5)."
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
    if (path / FILE_NAME).exists():
        decoded, problem = _decode(path)
        if isinstance(decoded, SetList):
            return Opened(path, path, sets=decoded, problem=problem)
        if isinstance(decoded, Dataset):
            splits: dict[str, list[Path]] = {split: _shards_in(path / split) for split in decoded.splits}
            return Opened(path, path, decoded, problem, splits=splits)
        return Opened(
            path, path, problem=problem, splits=_foreign_splits(path), foreign=_model_zoo_params(path)
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
    preparing = _preparing(path)
    if not splits and preparing is None:
        raise InputError(
            f"{path} holds no shards (*.h5) and no {FILE_NAME}. Name a dataset folder, a split folder or "
            "a shard."
        )
    return Opened(path, path, splits=splits, foreign=_model_zoo_params(path), preparing=preparing)


def _preparing(folder: Path) -> str | None:
    """In words how far a run has come that is preparing the folder, or was stopped; None if there is none."""
    if not (folder / UNFINISHED_NAME).is_file():
        return None
    try:
        steps = _finished_tasks(folder / WORK_FOLDER / "receipts")
    except OSError:
        steps = {}
    words = "this folder is being prepared, or its run was stopped: the same command continues it."
    if steps:
        return f"{words} Tasks done by step: {', '.join(f'{step} {n:,}' for step, n in steps.items())}."
    if (folder / WORK_FOLDER).is_dir():
        return f"{words} No task is done yet."
    return f"{words} Its work folder is elsewhere, so how far it has come is not known."


def _finished_tasks(receipts: Path) -> dict[str, int]:
    """Receipts by step, in the order in which the steps ran."""
    if not receipts.is_dir():
        return {}
    folders = sorted((p for p in receipts.iterdir() if p.is_dir()), key=lambda p: p.stat().st_ctime_ns)
    return {folder.name: sum(1 for _ in folder.glob("*.json")) for folder in folders}


def _shards_in(folder: Path) -> list[Path]:
    """As readers see them: *.h5, not recursive, in text order."""
    return sorted(p for p in folder.glob("*.h5") if not p.name.startswith("."))


def _foreign_splits(path: Path) -> dict[str, list[Path]]:
    """The folder's own shards, or those of its sub-folders (one level), by name."""
    own = _shards_in(path)
    splits = {path.name or "shards": own} if own else {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if files := _shards_in(folder):
            splits[folder.name] = files
    return splits


def _decode(folder: Path) -> tuple[Dataset | SetList | None, str | None]:
    """The dataset.json of a folder as far as it can be used, and a message about what is wrong with it."""
    try:
        data, shown = read_bytes(folder)
        decoded = decode(data, shown, sealed=False)
    except DataError as error:
        return None, str(error)
    try:
        decode(data, shown)
    except DataError as error:
        return decoded, str(error)
    return decoded, None


def _model_zoo_params(folder: Path) -> dict[str, Any]:
    """What the Model Zoo's data_params.json says of the shards beside it: eos_id, pad_id, max_seq_length,
    vocab_size, tokenizer.
    """
    try:
        tree = json.loads(read_small(folder / MODEL_ZOO_PARAMS, MAX_PARAMS_BYTES))
    except (DataError, ValueError, RecursionError):
        return {}
    params: dict[str, Any] = {}
    for section in tree.values() if isinstance(tree, dict) else ():
        if not isinstance(section, dict):
            continue
        for key in ("eos_id", "pad_id", "max_seq_length", "vocab_size"):
            if _integer(section.get(key)) is not None:
                params.setdefault(key, section[key])
        for key in ("huggingface_tokenizer", "tokenizer_type"):
            if isinstance(section.get(key), str):
                params.setdefault("tokenizer", section[key])
    return params


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none, or its link leads nowhere."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def layout_of(path: Path) -> shards.ShardLayout:
    """`shards.read_shard_info` for a file that may be anything. Raises DataError."""
    require_regular(path)
    with reading(path):
        return shards.read_shard_info(path)


class OpenShards:
    """Shards that stay open while rows of them are read; the least recently used are closed. few: only some rows of each are."""

    def __init__(self, most: int = 32, *, few: bool = False) -> None:
        self._most = most
        self._few = few
        self._readers: OrderedDict[Path, shards.ShardReader] = OrderedDict()

    def __enter__(self) -> OpenShards:
        return self

    def __exit__(self, *_: object) -> None:
        while self._readers:
            self._readers.popitem()[1].source.close()

    def ids(self, path: Path, start: int, stop: int, axes: int) -> npt.NDArray[Any]:
        """The ids of rows [start, stop) of a shard of samples (axes: 3), (n, L); of a corpus (axes: 1), (n,). The dtype is
        that of the shard. Raises DataError, also for a shard of other axes.
        """
        with reading(path):
            reader = self._open(path, axes)
            stop = max(start, min(stop, reader.shape[0]))
            return reader.first_planes(start, stop) if axes == 3 else reader.read(start, stop)

    def read(self, path: Path, start: int, stop: int, axes: int) -> npt.NDArray[Any]:
        """Rows [start, stop) of a shard, as far as it has them: (n, planes, L) of samples (axes: 3), (n,) of a corpus
        (axes: 1), in the dtype of the shard. Raises DataError if they cannot be read, or the shard has other axes.
        """
        with reading(path):
            reader = self._open(path, axes)
            return reader.read(start, max(start, min(stop, reader.shape[0])))

    def _open(self, path: Path, axes: int) -> shards.ShardReader:
        require_regular(path)
        reader = self._readers.pop(path, None) or shards.ShardReader(path, reads_few=self._few)
        self._readers[path] = reader
        if len(self._readers) > self._most:
            self._readers.popitem(last=False)[1].source.close()
        if len(reader.shape) != axes:
            expected = "samples (rows, planes, positions)" if axes == 3 else "a corpus (tokens)"
            raise DataError(
                f"{path} holds data of shape {reader.shape}, expected {expected}. Restore it from a copy, or "
                "prepare the dataset again."
            )
        return reader
