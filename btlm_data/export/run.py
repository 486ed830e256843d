"""The export itself: splits to files, an interrupted one continued, an earlier one replaced only when told.

OUT/exporting.json   while the export runs: what is exported, the names of all files it may write, the
                     finished splits. With it the same command continues, and `--overwrite` knows what to
                     remove
OUT/export.json      written last
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from btlm_data.errors import BtlmError, ConfigError, DataError, OutputError
from btlm_data.export.split import OpenedSplit
from btlm_data.export.target import ExportedSplit, ExportTarget, describe
from btlm_data.export.targets import TARGETS
from btlm_data.formats import dataset as dataset_json
from btlm_data.formats import generations
from btlm_data.formats.shard_formats import get_format
from btlm_data.storage import Store, check_name, open_store
from btlm_data.storage.lease import hold

logger = logging.getLogger(__name__)

FILE_NAME = "export.json"
STATE = "exporting.json"
LEASE = "export.lock"
MAX_BYTES = 1 << 29  # of export.json and exporting.json

Results = dict[str, dict[str, ExportedSplit]]


class _State(msgspec.Struct, forbid_unknown_fields=True):
    """exporting.json. request: what was asked of which data. files: all names it may write. done: finished
    splits.
    """

    request: dict[str, Any]
    files: list[str]
    done: Results = {}
    format_version: Literal[1] = 1


class _ExportedSet(msgspec.Struct, frozen=True):
    dataset_fingerprint: str
    seq_len: int
    tokenizer: dict[str, Any]
    splits: dict[str, ExportedSplit]


class _Export(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """export.json."""

    to: str
    sets: dict[str, _ExportedSet]
    format_version: Literal[1] = 1


_Record = TypeVar("_Record", _State, _Export)


def export(
    dataset: Path, to: str, out: Path, *, splits: Sequence[str] = (), overwrite: bool = False
) -> Results:
    """Write a prepared dataset in another trainer's format; returns {set folder ("" if there is one set):
    {split: ...}}.

    dataset: a folder with dataset.json; with several prepared lengths each set goes to a folder of its name
    below `out`, and so does each generation after the first. splits: only these. The same call continues an interrupted export. Raises ConfigError for a
    vsl dataset or an unknown split or target, OutputError if `out` holds something else, DataError if the
    dataset is damaged.
    """
    if to not in TARGETS:
        raise ConfigError(f"There is no export to {to!r}. Choose one of {', '.join(TARGETS)}.")
    values = generations.read_sets(dataset)
    opened = {name: _open(dataset / name, value, splits) for name, value in values.items()}
    if out.exists() and not out.is_dir():
        raise OutputError(f"The output {out} is a file. Choose another folder.")
    store, target = open_store(out), TARGETS[to]
    request = {
        "to": to,
        "sets": {
            name: [values[name].fingerprint, sorted(split.name for split in opened[name])] for name in opened
        },
    }
    _refuse_others(store, request, overwrite)
    with hold(store, LEASE, f"The output folder {out} is"):
        state = _claim(store, target, request, opened, overwrite)
        for name, chosen in opened.items():
            done = state.done.setdefault(name, {})
            for split in chosen:
                if split.name not in done:
                    split.check_file(split.entry.documents_file)
                    done[split.name] = target.write(split, store, _folder(name))
                    store.write(STATE, msgspec.json.encode(state))
        finished = _Export(
            to, {name: _exported_set(value, state.done[name]) for name, value in values.items()}
        )
        store.write(FILE_NAME, _pretty(finished))
        store.delete([STATE])
    return state.done


def _open(folder: Path, value: dataset_json.Dataset, splits: Sequence[str]) -> list[OpenedSplit]:
    """The splits to export. Raises ConfigError where one is not there, or the dataset cannot be exported."""
    if not get_format(value.format).follows_stream:
        raise ConfigError(
            f"{folder} is in the {value.format} format, whose bins hold cut documents out of order: it cannot be "
            "exported. Prepare the same recipe with --format corpus and export that; what both share is not done again."
        )
    unknown = [split for split in splits if split not in value.splits]
    if unknown:
        raise ConfigError(f"{folder} has no split {unknown[0]!r}. It has {', '.join(value.splits)}.")
    opened = [OpenedSplit(folder, name, value) for name in dict.fromkeys(splits or value.splits)]
    for split in opened:
        if not split.num_tokens:
            logger.warning("%s has no samples, so there is nothing to export", split.shown)
    return [split for split in opened if split.num_tokens]


def _folder(name: str) -> str:
    return f"{name}/" if name else ""


def _refuse_others(store: Store, request: Mapping[str, Any], overwrite: bool) -> None:
    """Raise OutputError where the folder holds anything that this export may not continue or replace."""
    names = {entry.name for entry in store.list()} - {LEASE}
    state, earlier = _read(store, STATE, _State), _read(store, FILE_NAME, _Export)
    if state is not None:
        if state.request != request and not overwrite:
            raise OutputError(
                f"The output folder {store.shown} holds an unfinished export of other data, or in another format. "
                "Run its command again to finish it, choose another folder, or pass --overwrite to replace it."
            )
    elif earlier is not None:
        if not overwrite:
            raise OutputError(
                f"The output folder {store.shown} holds an earlier export. Choose another folder, or pass "
                "--overwrite to replace it."
            )
    elif names:
        raise OutputError(
            f"The output folder {store.shown} holds files that are no export ({min(names)}). "
            "Choose an empty folder."
        )


def _claim(
    store: Store,
    target: ExportTarget,
    request: dict[str, Any],
    opened: Mapping[str, Sequence[OpenedSplit]],
    overwrite: bool,
) -> _State:
    """Take the folder: note what will be written, and remove what an earlier export left."""
    _refuse_others(store, request, overwrite)
    store.sweep()
    before, earlier = _read(store, STATE, _State), _read(store, FILE_NAME, _Export)
    planned = [
        _folder(name) + file
        for name, chosen in opened.items()
        for split in chosen
        for file in target.file_names(split)
    ]
    replaced = [
        *(before.files if before is not None else []),
        *(_files(earlier) if earlier is not None else []),
    ]
    present = {entry.name for entry in store.list()}
    foreign = sorted(present.intersection(planned) - set(replaced))
    if foreign:
        raise OutputError(
            f"{store.shown}/{foreign[0]} was not written by an export, and this one would replace it. "
            "Choose another folder."
        )
    continued = before is not None and before.request == request and not overwrite
    done = _intact(store, before.done) if before is not None and continued else {}
    state = _State(request, sorted({*planned, *replaced}), done)
    store.write(STATE, msgspec.json.encode(state))
    kept = {
        _folder(name) + file.name
        for name, splits in done.items()
        for split in splits.values()
        for file in split.files
    }
    store.delete([FILE_NAME, *(name for name in replaced if name not in kept)])
    return state


def _intact(store: Store, done: Results) -> Results:
    """The finished splits whose files are all there, with the bytes they had."""

    def is_intact(folder: str, split: ExportedSplit) -> bool:
        try:
            return all(describe(store, folder, file.name) == file for file in split.files)
        except DataError:
            return False

    return {
        name: {key: split for key, split in splits.items() if is_intact(_folder(name), split)}
        for name, splits in done.items()
    }


def _files(earlier: _Export) -> list[str]:
    return [
        _folder(name) + file.name
        for name, exported_set in earlier.sets.items()
        for split in exported_set.splits.values()
        for file in split.files
    ]


def _read(store: Store, name: str, kind: type[_Record]) -> _Record | None:
    """A record of an export, whose names are checked. Raises OutputError where it is there but cannot be
    used.
    """
    size = store.size(name)
    if size is None:
        return None
    try:
        if size > MAX_BYTES:
            raise DataError(f"it has {size:,} bytes")
        value = msgspec.json.decode(store.read(name), type=kind)
        for file in value.files if isinstance(value, _State) else _files(value):
            check_name(file)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BtlmError) as error:
        raise OutputError(
            f"{store.shown}/{name} cannot be read ({error}), so what may be replaced is unknown. "
            f"Remove {store.shown} yourself, or choose another folder."
        ) from error
    return value


def _exported_set(value: dataset_json.Dataset, splits: dict[str, ExportedSplit]) -> _ExportedSet:
    return _ExportedSet(value.fingerprint, value.seq_len, msgspec.to_builtins(value.tokenizer), splits)


def _pretty(value: _Export) -> bytes:
    tree = msgspec.to_builtins(value)
    return (json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
