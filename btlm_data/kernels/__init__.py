"""Numba kernels: arrays in, arrays out; no I/O, no logging. Each has a plain twin in tests/reference."""

from __future__ import annotations

import sys


def load_numba_without_scipy() -> None:
    """Load numba as if scipy were not installed, which takes half a second less; no kernel here uses linear
    algebra.

    For the command only: in a process that continues with other work, numba would then know no `np.dot`. Does
    nothing where scipy is loaded already.
    """
    if "scipy" in sys.modules or "numba" in sys.modules:
        return
    sys.modules["scipy"] = None  # type: ignore[assignment]  # the import system's own mark for "not there"
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        del sys.modules["scipy"]
