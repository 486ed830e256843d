"""The only way to make a final file name: write aside, fsync, rename, fsync the folder.

A reader therefore sees a whole file or none. Temporary names start with a dot and end in `.tmp`, so that no
reader that globs (`*.h5`, `*.json`) ever picks one up; what a killed process left behind is removed by
`sweep` before the next run starts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from btlm_data.errors import OutputError

TEMPORARY_SUFFIX = ".tmp"


def temporary_name(path: Path) -> Path:
    """Where `path` is written before it gets its name: same folder (rename must not cross file systems)."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` only if the block ends without an exception.

    durable: also survive a power cut (fsync of the file and its folder). Raises OutputError for a full disk, a
    missing permission or a read-only file system; any other exception passes through. The temporary file is
    removed either way.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _fsync(temporary)
        temporary.replace(path)
        if durable:
            _fsync(path.parent)
    except OSError as error:
        raise as_output_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # not to hide what went wrong above
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write one small file atomically."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as JSON with sorted keys and a final newline: the same value gives the same bytes."""
    write_bytes(
        path,
        (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(),
        durable=durable,
    )


def sweep(folder: Path) -> int:
    """Remove what killed processes left half-written below `folder`; returns how many files that were.

    Call it only while holding the folder's lock: another run's temporary files look the same.
    """
    count = 0
    for path in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
        count += 1
    return count


def as_output_error(error: OSError, path: Path) -> OutputError:
    """Say in plain words what the operating system refused while `path` was being written."""
    if isinstance(error, OutputError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {path} could not be written. Nothing half-written was kept under that name. "
            "Free space (`--plan` tells how much a run needs) and run the same command again: it goes on from here."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"No permission to write {path} ({error.strerror}). Choose another --out or --work-dir, or change the folder's permissions, "
            "and run the same command again."
        )
    return OutputError(
        f"{path} could not be written: {error.strerror or error}. Mend that and run the same command again: it goes on from here."
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems cannot fsync a folder
            raise
    finally:
        os.close(descriptor)
