"""Two folders change places in one step of the file system, so that no reader ever sees half of either."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from btlm_data.errors import OutputError

_HERE = -100  # AT_FDCWD: paths are relative to the current folder
_EXCHANGE, _SWAP = 2, 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def exchange(left: Path, right: Path) -> None:
    """Let two folders on one file system change their names.

    Raises OutputError where the file system or the machine cannot do that.
    """
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(left), os.fsencode(right)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, _SWAP)
        else:
            failed = library.renameat2(_HERE, first, _HERE, second, _EXCHANGE)
    except AttributeError:
        failed = -1
        ctypes.set_errno(errno.ENOSYS)
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise OutputError(
            f"{left} and {right} cannot change places ({reason}). Copy the dataset to a local file system (ext4, XFS, Btrfs, "
            "APFS) that this machine mounts, and run the command there."
        )
    for folder in {left.parent, right.parent}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
