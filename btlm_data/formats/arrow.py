"""pyarrow without pandas.

Where pandas is installed, pyarrow imports it before it makes its first array, to ask whether what it was given is one of
pandas' own: 0.3 s of each process, and 40 MB. Nothing here gives it any.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _NoPandas(importlib.abc.MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is left out", name="pandas")
        return None


def leave_pandas_out() -> None:
    """Import pyarrow and have it find no pandas; a user's function may still import and use it, with pyarrow too."""
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
