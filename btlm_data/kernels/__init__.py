"""Numba kernels: arrays in, arrays out; no I/O, no logging. Each has a plain twin in tests/reference."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_UNUSED = (
    "scipy",
    "cffi",
)  # linear algebra and calls of C libraries: numba loads both, no kernel here uses them
_is_wanted_alone = False


def want_numba_alone() -> None:
    """From now on, `load_numba` loads numba as if scipy and cffi were not installed, which takes more than half a second less.

    For the command only: in a process that continues with other work, numba would then know no `np.dot`.
    """
    global _is_wanted_alone
    _is_wanted_alone = True


def load_numba() -> Any:
    """Import numba; alone, if that is wanted and neither it nor what it is to do without is loaded already."""
    if not _is_wanted_alone or any(name in sys.modules for name in ("numba", *_UNUSED)):
        return importlib.import_module("numba")
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own mark for "not there"
    try:
        for name in ("numba.core.typing.cffi_utils", "numba.np.arraymath"):
            importlib.import_module(name)
    finally:
        for name in _UNUSED:
            del sys.modules[name]
    # Not to look through all installed packages for extensions of numba.
    sys.modules["numba.core.entrypoints"]._already_initialized = True  # type: ignore[attr-defined]
    return sys.modules["numba"]
