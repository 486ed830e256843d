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
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

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


class _OncePerFolder:
    """Before a locator of numba's: it creates a file in its folder for every kernel, to see whether that can be written, which is a
    millisecond where files were removed lately (ext4 passes over their places). Here it is seen once in a process.
    """

    def ensure_cache_path(self) -> None:
        """Raise OSError if the folder cannot be written."""
        folder: str = self.get_cache_path()  # type: ignore[attr-defined]
        if folder not in _WRITABLE or not os.path.isdir(folder):
            super().ensure_cache_path()  # type: ignore[misc]
            _WRITABLE.add(folder)


_WRITABLE: set[str] = set()


_OfFunctions: Any = FunctionCache._impl_class


class _Numbas(_OfFunctions):  # type: ignore[misc]
    """Where numba keeps code, and how."""

    _locator_classes: ClassVar[list[Any]] = [
        type(locator.__name__, (_OncePerFolder, locator), {}) for locator in _OfFunctions._locator_classes
    ]


class _Forms(FunctionCache):
    """Where the forms of one kernel are kept. They count as long as no kernel's source has changed: it may be compiled into them."""

    _impl_class = _Numbas

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        numbas = self._cache_file
        self.files = FormFiles(
            self._cache_path, numbas._index_name.removesuffix(".nbi"), (numbas._source_stamp, _SOURCES)
        )
        self._cache_file = self.files

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The form of a signature, None where none is kept. numba's own first makes all ready that a compilation needs, which
        takes a tenth of a second of each process; kept code needs numba's runtime alone.
        """
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


class KernelCache:
    """What a kernel asks for its kept forms (numba.core.caching._Cache). Files are looked for when it is first called: a process
    calls few of a hundred kernels.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _forms(self) -> _Forms:
        return _Forms(self._function)

    @property
    def cache_path(self) -> str:
        """The folder."""
        path: str = self._forms.cache_path
        return path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The form of a signature, None where none is kept."""
        return self._forms.load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the form of a signature."""
        self._forms.save_overload(sig, data)

    def flush(self) -> None:
        """Forget all forms."""
        self._forms.flush()

    def is_empty(self) -> bool:
        """Whether there is no form."""
        return self._forms.files.is_empty()


def _stamp_of_sources() -> str:
    """Of sizes and times of all files of kernels that others call."""
    files = [(path.name, path.stat()) for path in sorted(Path(__file__).parent.glob("*.py"))]
    stamps = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()


_SOURCES = _stamp_of_sources()
