"""What several commands need: paths that must exist, names to complete, compiled code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from btlm_data import entry
from btlm_data.errors import ConfigError, InputError
from btlm_data.splits import SPLITS

_LEAST_ADDRESS_SPACE = 1_000_000_000  # below it, numba and OpenBLAS end the process without an exception

SPLIT = entry.Completed(lambda: SPLITS)


def is_url(path: Path) -> bool:
    """Whether a path was given as a URL other than file://; `Path` leaves one of its slashes."""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]+:/", str(path)) is not None


def existing(path: Path) -> Path:
    """The path, if it exists on this machine. Raises InputError: one that does not exist is a typo, not damage."""
    if is_url(path):
        from btlm_data.inspection.opening import refuse_url

        refuse_url(path)
    if not os.path.lexists(path):
        raise InputError(f"There is no {path}. Name a dataset folder, a split folder or a shard (.h5).")
    return path


def dataset(path: Path, *, or_split: bool = False) -> Path:
    """The path, if a dataset was prepared there, or it is a dataset.json. or_split: the folder of a split
    will do.

    Raises InputError: another folder or file is a typo, not damage.
    """
    existing(path)
    names = ("dataset.json", "preparing.json")
    folders = (path, path.resolve().parent) if or_split else (path,)
    is_present = any(os.path.lexists(folder / name) for folder in folders for name in names)
    if not is_present and path.name != names[0]:
        raise InputError(f"There is no {path / names[0]}. Name a dataset folder made by `btlm-data prepare`.")
    return path


def load_kernels() -> None:
    """Import the compiler of kernels, in a command that always needs one. Raises as `take_kernels`."""
    take_kernels()
    from btlm_data.kernels import load_numba

    load_numba()


def take_kernels() -> None:
    """Before the first kernel, in a command that may need none: what it needs is loaded then, and no more.

    Raises ConfigError where the shell's memory limit would make it crash instead of fail.
    """
    limit = _address_space()
    if limit is not None and limit < _LEAST_ADDRESS_SPACE:
        raise ConfigError(
            f"The shell allows each process {limit // 10**6:,} MB of memory (ulimit -v), and this program "
            f"needs {_LEAST_ADDRESS_SPACE // 10**6:,} MB at least. Raise the limit, for example with "
            "ulimit -v unlimited."
        )
    from btlm_data.kernels import want_numba_alone

    want_numba_alone()


def _address_space() -> int | None:
    """Bytes of address space that this process may use; None without a limit."""
    try:
        import resource
    except ImportError:  # not on every system
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit
