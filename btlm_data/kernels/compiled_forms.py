"""The compiled forms of kernels on disk: which files they are in, and when they count.

NAME.nbi        numba's index of one kernel: its version and the source's stamp, then form -> file
NAME.HASH.nbc   the code of one form. HASH: of the form, its source and numba's version, so that no other is ever in this file

A form's file is there before the index lists it. numba's own numbers the files and writes the index first: a process that
looks in between takes what another version has left there, and of two that compile different forms at once one may be given
the other's code.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from btlm_data.kernels.compiler import FunctionCache, IndexDataCacheFile, rtsys


class FormFiles(IndexDataCacheFile):
    """The files of one kernel. What `load` is given is the form that was requested, or None."""

    def save(self, key: Any, data: Any) -> None:
        """Keep a form. key: its types, the processor, and the function's own code; data: its code."""
        own = f"{self._version} {self._source_stamp} {key!r}"
        prefix = self._index_name.removesuffix(".nbi")
        name = f"{prefix}.{hashlib.sha256(own.encode()).hexdigest()[:16]}.nbc"
        listed = self._load_index()
        if not listed:
            # What is there is of another source or version. Who compiles beside at worst compiles once more.
            for path in Path(self._cache_path).glob(f"{glob.escape(prefix)}.*.nbc"):
                path.unlink(missing_ok=True)
        self._save_data(name, data)
        if listed.get(key) != name:
            self._save_index(self._load_index() | {key: name})

    def is_empty(self) -> bool:
        """Whether there is no form of this source by this version."""
        return not self._load_index()


class KernelCache(FunctionCache):
    """Where the forms of one kernel are kept. They count as long as no kernel's source has changed: it may be compiled into them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        numbas = self._cache_file
        self._forms = FormFiles(
            self._cache_path, numbas._index_name.removesuffix(".nbi"), (numbas._source_stamp, _SOURCES)
        )
        self._cache_file = self._forms

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The form of a signature, None where none is kept. numba's own first makes all ready that a compilation needs, which
        takes a tenth of a second of each process; kept code needs numba's runtime alone.
        """
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def is_empty(self) -> bool:
        """Whether there is no form."""
        return self._forms.is_empty()


def _stamp_of_sources() -> str:
    """Of sizes and times of all files of kernels that others call."""
    files = [(path.name, path.stat()) for path in sorted(Path(__file__).parent.glob("*.py"))]
    stamps = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


_SOURCES = _stamp_of_sources()
