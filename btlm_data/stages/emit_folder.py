"""Whose text an `--emit-text` folder holds: nobody's file is overwritten, and nothing of an earlier run stays among the new.

    files.json  {"fingerprint": of the dataset, "complete": bool, "files": [{"name", "documents", "bytes", "sha256"}, ...]}

While text is being written `complete` is false and the files have names only: those of this run and of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from btlm_data.errors import OutputError
from btlm_data.formats import atomic

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
        return {str(file.get("name")) for file in self.files}


def read(folder: Path) -> Record:
    """The folder's record. Raises OutputError if its files.json is not one of ours."""
    path = folder / RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except (OSError, msgspec.DecodeError) as error:
        raise OutputError(
            f"{path} was not written by btlm-data, or is damaged ({error}). Choose another --emit-text folder, or remove it."
        ) from None


def check(folder: Path, fingerprint: str, *, overwrite: bool) -> None:
    """Before any work. Raises OutputError if text there is not ours to replace; overwrite: another dataset's is."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--emit-text {folder} is a file. Name a folder.")
    record = read(folder)
    if foreign := sorted(_present(folder) - record.names):
        raise OutputError(
            f"--emit-text {folder} holds text that btlm-data did not write there ({', '.join(foreign[:3])}). It would be overwritten or mixed with "
            "the new. Choose an empty folder."
        )
    if record.fingerprint not in (None, fingerprint) and not overwrite:
        raise OutputError(
            f"--emit-text {folder} holds the text of another dataset. Choose another folder, or pass --overwrite to replace it."
        )


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Whether all text of the dataset stands there, by names and sizes."""
    record = read(folder)
    if not record.complete or record.fingerprint != fingerprint:
        return False
    return all(
        (path := folder / str(file["name"])).is_file() and path.stat().st_size == file.get("bytes")
        for file in record.files
    )


def begin(folder: Path, fingerprint: str, names: Sequence[str]) -> None:
    """Claim the folder for these files; remove what an earlier or a killed run left. Hold the folder's lock."""
    before = read(folder)
    files = [{"name": name} for name in sorted({*names, *before.names})]
    _write(folder, fingerprint, files, complete=False)
    for name in (before.names - set(names)) & _present(
        folder
    ):  # only names as ours are, whatever stands in the record
        (folder / name).unlink()
    for path in folder.glob(f"*/chunk*/.example_*{atomic.TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def finish(folder: Path, fingerprint: str, files: Iterable[dict[str, Any]]) -> None:
    """All of it is written."""
    _write(folder, fingerprint, list(files), complete=True)


def _write(folder: Path, fingerprint: str, files: list[dict[str, Any]], *, complete: bool) -> None:
    atomic.write_json(folder / RECORD, {"fingerprint": fingerprint, "complete": complete, "files": files})


def _present(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in folder.glob(_TEXT) if not path.name.startswith(".")
    }
