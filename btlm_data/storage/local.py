"""A folder of this machine as a store. Writes go to a temporary name beside the final one; a link is never
written through.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import mmap
import os
import resource
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from btlm_data.errors import DataError, OutputError
from btlm_data.storage import cached
from btlm_data.storage.base import LEASE_SUFFIXES, TEMPORARY_SUFFIX, Entry, check_name

_TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER_TRIES = 50  # to make a folder that others remove as empty: each try loses a race of microseconds
_CLAIM_SECONDS = 10.0  # replacing a file takes milliseconds: an older claim is a dead process's


class _Creating(msgspec.Struct, frozen=True):
    file: BinaryIO
    path: Path


class LocalStore:
    """The files below a folder. See `btlm_data.storage.base.Store` for what each call does."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.url = str(self.root)
        self.shown = str(root)

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def path(self, name: str) -> Path:
        """Where a file of this name is."""
        return self.root / check_name(name)

    def reach(self) -> None:
        """Nothing to do: a local folder is there or can be made, or the first use says why not."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not there or is no regular file."""
        try:
            status = self.path(name).stat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Inode, modification and change time, size."""
        try:
            status = self.path(name).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def list(self, prefix: str = "") -> list[Entry]:
        """All regular files below the folder `prefix`."""
        entries: list[Entry] = []
        inside = len(os.path.join(self.root, ""))
        folders = [os.path.join(self.root, check_name(prefix)) if prefix else str(self.root)]
        while folders:
            folder = folders.pop()
            try:
                children = list(os.scandir(folder))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # there is no such folder
                    continue
                raise DataError(
                    f"The folder {folder} cannot be listed ({error.strerror}). Change that and run again."
                ) from error
            for child in children:
                if child.is_dir(follow_symlinks=False):
                    folders.append(child.path)
                elif not child.name.endswith(TEMPORARY_SUFFIX) and (size := _size(child)) is not None:
                    entries.append(Entry(child.path[inside:], size))
        return sorted(entries)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file."""
        with self.open(name) as file:
            if start:
                file.seek(start)
            data = file.read() if stop is None else file.read(stop - start)
        if stop is not None and len(data) != stop - start:
            raise DataError(
                f"{self.path(name)} ends before byte {stop:,}; it was cut. Rerun the same command; it is made again."
            )
        return data

    def map(self, name: str) -> memoryview:
        """The whole file, memory-mapped read-only."""
        with self.open(name) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # holds a descriptor of its own
            except OSError as error:
                if not _may_open_more(error):
                    raise _unreadable(self.path(name), error) from error
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return memoryview(mapped)

    def open(self, name: str) -> BinaryIO:
        """The file for reading. Anything but a regular file (a FIFO, a device) is refused at once."""
        path = self.path(name)
        try:
            descriptor = os.open(path, _TO_READ)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{path} is missing. Rerun the same command; it is made again.") from error
        except OSError as error:
            if not _may_open_more(error):
                raise _unreadable(path, error) from error
            descriptor = os.open(path, _TO_READ)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DataError(f"{path} is not a regular file. Remove it and run the same command again.")
        return io.open(descriptor, "rb")  # noqa: UP020 - `open` is this method's own name

    @contextlib.contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[_Creating]:
        """Write a file aside, fsync it, rename it, fsync its folder."""
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        try:
            with self._open_aside(path, temporary) as file:
                yield _Creating(file, temporary)
                file.flush()
                if durable:
                    _fsync(file.fileno())
            temporary.replace(path)
            if durable:
                _fsync_folder(path.parent)
        except OSError as error:
            raise as_output_error(error, path) from error
        finally:
            with contextlib.suppress(OSError):  # not to hide the first error
                temporary.unlink(missing_ok=True)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write one small file atomically."""
        with self.create(name, durable=durable) as creating:
            creating.file.write(data)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files, and folders that become empty by it."""
        folders: set[Path] = set()
        for name in names:
            path = self.path(name)
            try:
                self._refuse_links(path)
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                continue
            except OSError as error:
                raise as_output_error(error, path) from error
            folders.add(path.parent)
        for folder in sorted(folders, key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):
                while folder != self.root:
                    folder.rmdir()
                    folder = folder.parent

    def sweep(self) -> int:
        """Remove temporary files of this project below the folder, but for folders that another run holds (by
        its lease).
        """
        count = 0
        for folder, subfolders, names in os.walk(self.root, followlinks=False):
            if folder != os.fspath(self.root) and any(name.endswith(LEASE_SUFFIXES) for name in names):
                subfolders.clear()
                continue
            for name in names:
                if name.endswith(TEMPORARY_SUFFIX) and name.startswith("."):
                    Path(folder, name).unlink(missing_ok=True)
                    count += 1
        return count

    # For leases: content hashes are the versions; the exclusive creation and the rename are the file
    # system's.

    def create_new(self, name: str, data: bytes) -> str | None:
        """Link a finished file to `name`, which fails if it is there."""
        path = self.path(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        try:
            with self._open_aside(path, temporary) as file:
                file.write(data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                return self._create_without_links(
                    path, data
                )  # some network and FUSE file systems have no hard links
            return _version(data)
        except OSError as error:
            raise as_output_error(error, path) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _create_without_links(self, path: Path, data: bytes) -> str | None:
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return None
        return _version(data)

    def replace_version(self, name: str, data: bytes, version: str) -> str | None:
        """Replace `name` if its content is still that of `version`.

        The new content is laid beside it first, under a name that only one of those who replace that version
        can make.
        """
        path = self.path(name)
        claim = path.with_name(f".{path.name}.{version[:16]}{TEMPORARY_SUFFIX}")
        if self.create_new(claim.relative_to(self.root).as_posix(), data) is None:
            _remove_stale(claim)
            return None
        present = self.read_version(name)
        if present is None or present[1] != version:
            claim.unlink(missing_ok=True)
            return None
        try:
            claim.replace(path)
        except FileNotFoundError:  # taken for a dead process's, or swept
            return None
        except OSError as error:
            raise as_output_error(error, path) from error
        after = self.read_version(name)
        return after[1] if after is not None and after[0] == data else None

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """Content and its hash."""
        if self.size(name) is None:
            return None
        try:
            data = self.read(name, 0, None)
        except DataError:
            return None
        return data, _version(data)

    def _open_aside(self, path: Path, temporary: Path) -> BinaryIO:
        """A new file beside `path`, whose folder is made; once more where another process, which has just emptied that
        folder, removes it between the two.
        """
        for _ in range(_FOLDER_TRIES):
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                return self._make_folder_and_open(path, temporary)
        return self._make_folder_and_open(path, temporary)

    def _make_folder_and_open(self, path: Path, temporary: Path) -> BinaryIO:
        self._refuse_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return cached.create(temporary)

    def _refuse_links(self, path: Path) -> None:
        """Raise OutputError if a folder between the root and `path` is a link: what it points to is not ours."""
        folder = path.parent
        while folder != self.root and self.root in folder.parents:
            if folder.is_symlink():
                raise OutputError(
                    f"{folder} is a link to {os.path.realpath(folder)}. btlm-data writes and deletes only inside {self.root}, "
                    "never through a link. Remove the link, or choose another folder."
                )
            folder = folder.parent


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a regular file; None for anything else, for a link that leads nowhere, and for what is gone by
    now.
    """
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _remove_stale(claim: Path) -> None:
    """Remove a claim whose process died while it replaced a file."""
    with contextlib.suppress(OSError):
        if abs(time.time() - claim.stat().st_mtime) > _CLAIM_SECONDS:
            claim.unlink()


def as_output_error(error: OSError, path: Path | str) -> OutputError:
    """Say in plain words what the operating system refused while `path` was being written."""
    if isinstance(error, OutputError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {path} could not be written. Nothing half-written was kept under that name. "
            "Free space and rerun the same command: `prepare` and `add` continue from here, and their --plan tells how much they "
            "need."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and (file := _file_above(Path(path))) is not None:
        return OutputError(
            f"{file} is a file, so {path} could not be written below it. Choose another folder."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"No permission to write {path} ({error.strerror}). Change the folder's permissions, or name another folder where "
            "the command has an option for it (--out, --work-dir), and rerun the same command."
        )
    return OutputError(
        f"{path} could not be written: {error.strerror or error}. Fix it and rerun the same command; it continues from here."
    )


def _file_above(path: Path) -> Path | None:
    """The first part of a path that is not a folder, if one is not."""
    return next((above for above in reversed(path.parents) if above.exists() and not above.is_dir()), None)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _may_open_more(error: OSError) -> bool:
    """Whether too many open files were the reason, and more are allowed from now on: the soft limit (1,024 on many
    systems) is raised to the hard one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if error.errno != errno.EMFILE or soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


def _unreadable(path: Path, error: OSError) -> DataError:
    advice = "Raise `ulimit -n`" if error.errno == errno.EMFILE else "Change that"
    return DataError(f"{path} cannot be read ({error.strerror}). {advice} and run the same command again.")
