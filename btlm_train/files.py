"""Files that the trainer writes and reads: published whole or not at all, and never read beyond a limit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from btlm_data.errors import DataError, OutputError
from btlm_data.storage.local import LocalStore

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 2**26  # a checkpoint's state with the fingerprints of 10^5 shards takes 2**23


def write_bytes(path: Path, data: bytes) -> None:
    """Write one file atomically. Raises OutputError if that is refused."""
    LocalStore(path.parent).write(path.name, data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys and a final newline: the same value gives the same bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def creating(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` if the block ends well. Raises OutputError."""
    with LocalStore(path.parent).create(path.name) as file:
        yield file.path


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A regular file of at most max_bytes. Raises DataError for anything else, FileNotFoundError if it is
    missing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO does not block
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} is not a regular file. Copy the original again.")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(
            f"{path} is larger than {max_bytes:,} bytes, too large for what it is. Copy the original again."
        )
    return data


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError, FileNotFoundError if the file is missing."""
    data = read_bytes(path, max_bytes)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). Copy the original again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object. Copy the original again.")
    return value


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file to `path` and sync it; its mode is the umask's.

    Raises OSError, also for what safetensors reports in words only (a full disk).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.open("wb").close()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from error
    path.chmod(mode)  # safetensors makes it readable by its owner alone
    sync(path)


def sync(path: Path) -> None:
    """Have a file or folder survive a power cut, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def refuse_link(path: Path) -> None:
    """Raise OutputError if `path` is a symbolic link: what it points to is not this run's to write or
    delete.
    """
    if path.is_symlink():
        raise OutputError(
            f"{path} is a symbolic link to {os.path.realpath(path)}. The trainer writes and deletes only "
            "inside "
            "--model-dir, never through a link. Remove the link, or give the folder that it points to as --model-dir."
        )
