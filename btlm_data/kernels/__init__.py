"""Numba kernels: arrays in, arrays out; no I/O, no logging. Each has a plain twin in tests/reference."""

from __future__ import annotations

import sys

_UNUSED = (
    "scipy",
    "cffi",
)  # linear algebra and calls of C libraries: numba loads both, no kernel here uses them


def load_numba_alone() -> None:
    """Load numba as if scipy and cffi were not installed, which takes more than half a second less.

    For the command only: in a process that continues with other work, numba would then know no `np.dot`. Does
    nothing where one of them is loaded already.
    """
    if any(name in sys.modules for name in ("numba", *_UNUSED)):
        return
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own mark for "not there"
    try:
        import numba.core.typing.cffi_utils
        import numba.np.arraymath  # noqa: F401
    finally:
        for name in _UNUSED:
            del sys.modules[name]
