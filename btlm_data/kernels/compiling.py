"""How every kernel is compiled, and where its compiled form is kept for the next process.

numba keeps it in the package's own __pycache__, or where NUMBA_CACHE_DIR says. Where that folder cannot be
written (the package was installed by another user, a read-only image), it goes to the user's cache folder,
else to a folder of the user's own below the temporary one; where nothing can be written, each process
compiles for itself, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from btlm_data.kernels.compiled_forms import KernelCache
from btlm_data.kernels.compiler import numba

F = TypeVar("F", bound=Callable[..., Any])


def _choose_folder() -> Path | None:
    """The first folder that can be written; None if there is none."""
    return next((folder for folder in _candidates() if _can_write(folder)), None)


def _candidates() -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
    yield _IN_PACKAGE
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(cache):
        yield Path(cache, "btlm-data", "numba")
    # Compiled code is loaded from there: no one else may be able to write it.
    private = Path(tempfile.gettempdir(), f"btlm-data-numba-{os.geteuid()}")
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        status = private.lstat()
    except OSError:
        return
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        yield private


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


_IN_PACKAGE = Path(__file__).parent / "__pycache__"
CACHE_FOLDER = _choose_folder()  # where compiled kernels are kept; None: nowhere
if CACHE_FOLDER not in (None, _IN_PACKAGE):
    # What numba reads from NUMBA_CACHE_DIR when it is imported.
    numba.config.CACHE_DIR = str(CACHE_FOLDER)  # type: ignore[attr-defined]


def jit(function: F) -> F:
    """The decorator of every kernel: compiled without Python objects, releasing the interpreter's lock."""
    compiled: Any = numba.njit(nogil=True)(function)
    if CACHE_FOLDER is not None:
        compiled._cache = KernelCache(function)  # what its `enable_caching` does with numba's own
    return cast(F, compiled)


def is_compiled(kernel: Callable[..., Any]) -> bool:
    """Whether a compiled form of this source is kept."""
    cache = getattr(kernel, "_cache", None)
    return isinstance(cache, KernelCache) and not cache.is_empty()


@contextlib.contextmanager
def compiling_beside(load: Callable[[], None], kernel: Callable[..., Any]) -> Iterator[None]:
    """Compile kernels in a process of its own while the block compiles others; all are kept at its end. A first run would wait
    for its kernels for 17 s on one core.

    load: runs the kernels; kernel: the one of them that takes longest. Where it is compiled already, processes cannot be forked,
    there is one core, or nothing can be kept, they are left to their first use.
    """
    child = 0
    can_fork = sys.platform == "linux" and threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1
    if can_fork and CACHE_FOLDER is not None and not is_compiled(kernel):
        child = _compile_apart(load)
    try:
        yield
    except BaseException:
        if child:
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        if child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _compile_apart(load: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:  # what goes wrong here goes wrong once more, and is told, where the kernel is used
        os.closerange(3, 4096)  # locks, and pipes whose other end waits for the program's death
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, signal.SIG_DFL)
        load()
    finally:
        os._exit(0)
