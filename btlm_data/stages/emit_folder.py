"""Whose text an `--emit-text` folder holds: no foreign file is overwritten, and nothing of an earlier run
stays.

    files.json  {"fingerprint": of the dataset, "complete": bool, "files": [{"name", "documents", "bytes",
                "sha256"}, ...]}

While text is being written `complete` is false and the files have names only: those of this run and of the
one before.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from btlm_data.errors import OutputError
from btlm_data.storage import Store, check_name

RECORD = "files.json"
_TEXT = "*/chunk*/example_*.jsonl.zst"


class Record(msgspec.Struct, frozen=True):
    """What files.json says; an empty one where there is none."""

    fingerprint: str | None = None
    complete: bool = False
    files: list[dict[str, Any]] = []

    @property
    def names(self) -> set[str]:
        """Of the files, below the folder."""
        return {check_name(str(file.get("name"))) for file in self.files}


def read(folder: Store) -> Record:
    """The folder's record. Raises OutputError if its files.json is not one of ours."""
    if folder.size(RECORD) is None:
        return Record()
    try:
        return msgspec.json.decode(folder.read(RECORD), type=Record)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise OutputError(
            f"{folder.shown}/{RECORD} was not written by btlm-data, or is damaged ({error}). "
            "Choose another --emit-text folder, or remove it."
        ) from None


def check(folder: Store, fingerprint: str, *, overwrite: bool) -> None:
    """Before any work. Raises OutputError if text there is not ours to replace; overwrite: another dataset's
    is.
    """
    record = read(folder)
    if foreign := sorted(_present(folder).keys() - record.names):
        raise OutputError(
            f"--emit-text {folder.shown} holds text that btlm-data did not write there ({', '.join(foreign[:3])}). "
            "It would be overwritten or mixed with the new. Choose an empty folder."
        )
    if record.fingerprint not in (None, fingerprint) and not overwrite:
        raise OutputError(
            f"--emit-text {folder.shown} holds the text of another dataset. Choose another folder, or pass --overwrite to "
            "replace it."
        )


def is_complete(folder: Store, fingerprint: str) -> bool:
    """Whether all text of the dataset is there, by names and sizes."""
    record = read(folder)
    if not record.complete or record.fingerprint != fingerprint:
        return False
    present = _present(folder)
    return all(present.get(str(file["name"])) == file.get("bytes") for file in record.files)


def begin(folder: Store, fingerprint: str, names: Sequence[str]) -> None:
    """Claim the folder for these files; remove what an earlier run left. Hold the folder's lease."""
    before = read(folder)
    files = [{"name": name} for name in sorted({*names, *before.names})]
    _write(folder, fingerprint, files, complete=False)
    # Only names as ours are, whatever is in the record.
    folder.delete(sorted((before.names - set(names)) & _present(folder).keys()))
    folder.sweep()


def finish(folder: Store, fingerprint: str, files: Iterable[dict[str, Any]]) -> None:
    """All of it is written."""
    folder.sweep()  # of workers that died
    _write(folder, fingerprint, list(files), complete=True)


def _write(folder: Store, fingerprint: str, files: list[dict[str, Any]], *, complete: bool) -> None:
    value = {"fingerprint": fingerprint, "complete": complete, "files": files}
    folder.write(RECORD, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _present(folder: Store) -> dict[str, int]:
    """Sizes of the text files there, by name."""
    return {entry.name: entry.size for entry in folder.list() if fnmatch.fnmatchcase(entry.name, _TEXT)}
